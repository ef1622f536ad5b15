//! From a request's `GenerationConfig` to the engine's `SamplingParams`.

use pagoda_engine::sampling::SamplingParams;
use pagoda_engine::sampling::params::MAX_CHOICES;
use pagoda_engine::text::Tokenizer;

use super::{engine_error, invalid};
use crate::{BackendError, GenerationConfig};

/// Sampling parameters of a request that has `room` tokens left in the window. Ranges are checked by the engine.
pub(super) fn sampling(config: &GenerationConfig, room: u32, tokenizer: &Tokenizer) -> Result<SamplingParams, BackendError> {
    if config.max_tokens == Some(0) {
        return Err(invalid("max_tokens", "max_tokens is 0; expected at least 1"));
    }
    // Bounded before the outputs' own state is made.
    if config.n == 0 || config.n as usize > MAX_CHOICES {
        return Err(invalid("n", &format!("n is {}; expected 1 to {MAX_CHOICES}", config.n)));
    }
    Ok(SamplingParams {
        temperature: config.temperature,
        top_p: config.top_p,
        top_k: config.top_k.unwrap_or(0),
        min_p: config.min_p,
        repetition_penalty: config.repetition_penalty,
        presence_penalty: config.presence_penalty,
        frequency_penalty: config.frequency_penalty,
        logit_bias: config.logit_bias.clone(),
        bad_words: bad_words(&config.bad_words, tokenizer)?,
        stop_token_ids: config.stop_token_ids.clone(),
        ignore_eos: config.ignore_eos,
        min_tokens: config.min_tokens.min(room),
        max_tokens: config.max_tokens.unwrap_or(room).min(room),
        seed: config.seed,
        logprobs: config.logprobs,
        prompt_logprobs: config.prompt_logprobs,
        n: config.n,
        grammar: None,
    })
}

/// Token sequences of words, as they appear at the start of a text and after a space.
fn bad_words(words: &[String], tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, BackendError> {
    let mut sequences = Vec::new();
    for word in words {
        let word = word.trim_start();
        if word.is_empty() {
            return Err(invalid("bad_words", "a bad word is empty; expected text"));
        }
        for text in [word.to_string(), format!(" {word}")] {
            let tokens = tokenizer.encode(&text, false).map_err(engine_error)?;
            if !tokens.is_empty() && !sequences.contains(&tokens) {
                sequences.push(tokens);
            }
        }
    }
    Ok(sequences)
}
