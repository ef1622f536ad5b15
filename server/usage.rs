//! Token counts of answers that have no tokens of their own.

use serde::Serialize;

/// `usage` of embeddings and reranking.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct PromptUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl PromptUsage {
    pub(crate) fn new(prompt_tokens: usize) -> Self {
        PromptUsage { prompt_tokens, total_tokens: prompt_tokens }
    }
}
