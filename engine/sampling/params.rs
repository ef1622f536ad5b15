//! `SamplingParams`: validated once where a request enters the engine.

use crate::error::{EngineError, Result};
use crate::grammar::Grammar;

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
    /// What the text of every output must match; stop tokens come only where it is complete.
    pub grammar: Option<Grammar>,
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
            grammar: None,
        }
    }
}

impl SamplingParams {
    /// Checks every field against its range and the vocabulary.
    ///
    /// # Errors
    /// `InvalidRequest` naming the field, the value and the range.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        in_range("temperature", self.temperature, self.temperature >= 0.0, "at least 0")?;
        in_range("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "in (0, 1]")?;
        in_range("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "in [0, 1]")?;
        in_range("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "above 0")?;
        for (field, value) in [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)] {
            in_range(field, value, (-2.0..=2.0).contains(&value), "in [-2, 2]")?;
        }
        self.validate_lists(vocab_size)?;
        at_least("max_tokens", self.max_tokens, 1)?;
        at_most("min_tokens", self.min_tokens as usize, self.max_tokens as usize, "max_tokens")?;
        at_most("logprobs", self.logprobs.unwrap_or(0) as usize, MAX_LOGPROBS, "the limit")?;
        at_most("prompt_logprobs", self.prompt_logprobs.unwrap_or(0) as usize, MAX_LOGPROBS, "the limit")?;
        at_least("n", self.n, 1)?;
        at_most("n", self.n as usize, MAX_CHOICES, "the limit")
    }

    fn validate_lists(&self, vocab_size: usize) -> Result<()> {
        let lists =
            [("logit_bias", self.logit_bias.len()), ("bad_words", self.bad_words.len()), ("stop_token_ids", self.stop_token_ids.len())];
        for (field, len) in lists {
            if len > MAX_TOKEN_LIST {
                return Err(invalid(format!("{field} has {len} entries, at most {MAX_TOKEN_LIST} are allowed")));
            }
        }
        for &(token, bias) in &self.logit_bias {
            in_vocab("logit_bias", token, vocab_size)?;
            in_range("logit_bias", bias, (-100.0..=100.0).contains(&bias), "in [-100, 100]")?;
        }
        for word in &self.bad_words {
            if word.is_empty() || word.len() > MAX_TOKEN_LIST {
                return Err(invalid(format!("bad_words has an entry of {} tokens, allowed are 1 to {MAX_TOKEN_LIST}", word.len())));
            }
            word.iter().try_for_each(|&token| in_vocab("bad_words", token, vocab_size))?;
        }
        self.stop_token_ids.iter().try_for_each(|&token| in_vocab("stop_token_ids", token, vocab_size))
    }
}

fn invalid(message: String) -> EngineError {
    EngineError::InvalidRequest(message)
}

fn in_range(field: &str, value: f32, holds: bool, range: &str) -> Result<()> {
    if holds && value.is_finite() { Ok(()) } else { Err(invalid(format!("{field} is {value}, must be {range}"))) }
}

fn at_least(field: &str, value: u32, min: u32) -> Result<()> {
    if value >= min { Ok(()) } else { Err(invalid(format!("{field} is {value}, must be at least {min}"))) }
}

fn at_most(field: &str, value: usize, max: usize, what: &str) -> Result<()> {
    if value <= max { Ok(()) } else { Err(invalid(format!("{field} is {value}, above {what} of {max}"))) }
}

fn in_vocab(field: &str, token: u32, vocab_size: usize) -> Result<()> {
    if (token as usize) < vocab_size {
        return Ok(());
    }
    Err(invalid(format!("{field} has token id {token}, the vocabulary has {vocab_size} ids")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neutral_values_pass() {
        SamplingParams::default().validate(10).unwrap();
    }

    #[test]
    fn each_field_is_checked() {
        let check = |expected: &str, change: &dyn Fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            match params.validate(10) {
                Ok(()) => assert!(expected.is_empty(), "accepted, expected {expected:?}"),
                Err(EngineError::InvalidRequest(message)) => assert_eq!(message, expected),
                Err(other) => panic!("{other}"),
            }
        };
        check("", &|p| (p.temperature, p.top_p, p.min_p) = (100.0, 1e-3, 1.0));
        check("temperature is -0.1, must be at least 0", &|p| p.temperature = -0.1);
        check("temperature is NaN, must be at least 0", &|p| p.temperature = f32::NAN);
        check("temperature is inf, must be at least 0", &|p| p.temperature = f32::INFINITY);
        check("top_p is 0, must be in (0, 1]", &|p| p.top_p = 0.0);
        check("top_p is 1.1, must be in (0, 1]", &|p| p.top_p = 1.1);
        check("min_p is -0.5, must be in [0, 1]", &|p| p.min_p = -0.5);
        check("min_p is 2, must be in [0, 1]", &|p| p.min_p = 2.0);
        check("repetition_penalty is 0, must be above 0", &|p| p.repetition_penalty = 0.0);
        check("presence_penalty is 2.5, must be in [-2, 2]", &|p| p.presence_penalty = 2.5);
        check("frequency_penalty is -3, must be in [-2, 2]", &|p| p.frequency_penalty = -3.0);
        check("", &|p| p.logit_bias = vec![(9, -100.0), (0, 100.0)]);
        check("logit_bias has token id 10, the vocabulary has 10 ids", &|p| p.logit_bias = vec![(10, 1.0)]);
        check("logit_bias is 101, must be in [-100, 100]", &|p| p.logit_bias = vec![(1, 101.0)]);
        check("logit_bias has 1025 entries, at most 1024 are allowed", &|p| p.logit_bias = vec![(1, 0.0); 1025]);
        check("bad_words has an entry of 0 tokens, allowed are 1 to 1024", &|p| p.bad_words = vec![vec![]]);
        check("bad_words has token id 11, the vocabulary has 10 ids", &|p| p.bad_words = vec![vec![1, 11]]);
        check("stop_token_ids has token id 10, the vocabulary has 10 ids", &|p| p.stop_token_ids = vec![10]);
        check("max_tokens is 0, must be at least 1", &|p| p.max_tokens = 0);
        check("min_tokens is 17, above max_tokens of 16", &|p| p.min_tokens = 17);
        check("logprobs is 21, above the limit of 20", &|p| p.logprobs = Some(21));
        check("prompt_logprobs is 21, above the limit of 20", &|p| p.prompt_logprobs = Some(21));
        check("n is 0, must be at least 1", &|p| p.n = 0);
        check("n is 129, above the limit of 128", &|p| p.n = 129);
        check("", &|p| (p.n, p.logprobs, p.min_tokens) = (128, Some(20), 16));
    }
}
