//! `SamplingParams`: validated once where a request enters the engine.

use crate::error::{EngineError, Result};

/// Most alternatives a request may ask for beside a token.
pub const MAX_LOGPROBS: usize = 20;
/// Most outputs of one request.
pub const MAX_CHOICES: usize = 128;
/// Most entries of logit_bias, bad words, stop ids.
pub const MAX_TOKEN_LIST: usize = 1024;

/// How tokens are chosen and when a sequence ends.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus, (0, 1].
    pub top_p: f32,
    /// 0: off.
    pub top_k: u32,
    /// [0, 1], relative to the best token's probability; 0: off.
    pub min_p: f32,
    /// > 0; divides positive and multiplies negative logits of tokens seen in prompt or output; 1: off.
    pub repetition_penalty: f32,
    /// Subtracted once from tokens seen in the output.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: f32,
    /// Added to the logits of given tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Token sequences that must not appear in the output.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that end the sequence beside EOS; the stop token itself is sampled and counted.
    pub stop_token_ids: Vec<u32>,
    /// EOS does not end the sequence.
    pub ignore_eos: bool,
    /// No stop token is sampled before this many output tokens.
    pub min_tokens: u32,
    /// Output tokens at most, >= 1.
    pub max_tokens: u32,
    /// Seed of the request; None: a seed drawn when it is accepted.
    pub seed: Option<u64>,
    /// Report the chosen token's logprob and this many alternatives; None: no logprobs.
    pub logprobs: Option<u32>,
    /// Report logprobs of prompt tokens with this many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// Outputs of the request.
    pub n: u32,
}

impl Default for SamplingParams {
    /// Greedy, 16 tokens: the neutral values of each field.
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            min_tokens: 0,
            max_tokens: 16,
            seed: None,
            logprobs: None,
            prompt_logprobs: None,
            n: 1,
        }
    }
}

impl SamplingParams {
    /// Checks every field against its range and the vocabulary.
    ///
    /// # Errors
    /// `InvalidRequest` naming the field, the value and the range.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        let _ = vocab_size;
        Err(EngineError::InvalidRequest("not written".into()))
    }
}
