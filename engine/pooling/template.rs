//! How decoders that rerank are asked: the frame of Qwen3-Reranker (its model card, Apache-2.0), answered with "yes" or "no".

use super::{Encoded, PoolingText};
use crate::error::{EngineError, Result};
use crate::text::Tokenizer;

/// What the query is for, where a request does not say.
pub const DEFAULT_INSTRUCTION: &str = "Given a web search query, retrieve relevant passages that answer the query";

const BEFORE: &str = concat!(
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. ",
    "Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n",
);
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// The sequence whose next token says whether `document` answers `query`.
///
/// # Errors
/// As `PoolingText::framed`.
pub fn question(text: &PoolingText, instruction: &str, query: &str, document: &str, max_len: Option<usize>) -> Result<Encoded> {
    text.framed(BEFORE, &format!("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"), AFTER, max_len)
}

/// Ids of the two answers: (yes, no).
///
/// # Errors
/// `Unsupported` when the tokeniser has no single token for one of them.
pub fn answers(tokenizer: &Tokenizer) -> Result<(u32, u32)> {
    let one = |word: &str| {
        let missing = || EngineError::Unsupported(format!("a reranker whose tokeniser has no token `{word}`"));
        tokenizer.token_id(word).ok_or_else(missing)
    };
    Ok((one("yes")?, one("no")?))
}
