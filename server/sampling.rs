//! Fields of both families that say how tokens are chosen and when an answer ends, read onto the model's `GenerationConfig`.

use std::hash::{DefaultHasher, Hash, Hasher};

use pagoda_backends::GenerationConfig;

use crate::error::ApiError;
use crate::fields::{Fields, Range};
use crate::structured;

/// Stop strings, bad words, stop tokens and biases a request may bring.
const MAX_STOP_SEQUENCES: usize = 128;
const MAX_LIST: usize = 1024;
/// Alternatives a request may ask for beside a token.
pub(crate) const MAX_TOP_LOGPROBS: i64 = 20;
const MAX_CHOICES: i64 = 128;
const ANY_POSITIVE: Range = Range::above(0.0, f32::MAX as f64);

/// Fields with the same name and meaning in both families (vLLM's extras among them).
pub(crate) fn read_shared(fields: &Fields, config: &mut GenerationConfig) -> Result<(), ApiError> {
    set(&mut config.temperature, fields.number("temperature", Range::closed(0.0, 2.0))?);
    set(&mut config.top_p, fields.number("top_p", Range::above(0.0, 1.0))?);
    if let Some(top_k) = fields.integer("top_k", -1, i64::MAX)? {
        config.top_k = u32::try_from(top_k).ok().filter(|top_k| *top_k > 0);
    }
    set(&mut config.min_p, fields.number("min_p", Range::closed(0.0, 1.0))?);
    set(&mut config.repetition_penalty, fields.number("repetition_penalty", ANY_POSITIVE)?);
    set(&mut config.presence_penalty, fields.number("presence_penalty", Range::closed(-2.0, 2.0))?);
    set(&mut config.frequency_penalty, fields.number("frequency_penalty", Range::closed(-2.0, 2.0))?);
    if let Some(seed) = fields.integer("seed", i64::MIN, i64::MAX)? {
        config.seed = Some(seed as u64);
    }
    set(&mut config.ignore_eos, fields.boolean("ignore_eos")?);
    set(&mut config.min_tokens, fields.integer("min_tokens", 0, i64::MAX)?.map(clamped));
    set(&mut config.stop_token_ids, fields.token_ids("stop_token_ids", MAX_LIST)?);
    set(&mut config.include_stop_str, fields.boolean("include_stop_str_in_output")?);
    set(&mut config.skip_special_tokens, fields.boolean("skip_special_tokens")?);
    set(&mut config.bad_words, fields.strings("bad_words", MAX_LIST)?);
    set(&mut config.priority, fields.integer("priority", i64::from(i32::MIN), i64::from(i32::MAX))?.map(|value| value as i32));
    if let Some(salt) = fields.string("cache_salt")? {
        if salt.is_empty() {
            return Err(fields.wrong("cache_salt", "a non-empty string"));
        }
        config.cache_salt = salt_of(salt);
    }
    fields.refuse(&["allowed_token_ids", "truncate_prompt_tokens", "logits_processors"])?;
    fields.refuse_true(&["use_beam_search"])?;
    config.constraint = structured::read_raw(fields)?;
    Ok(())
}

/// Fields of OpenAI's two generating routes.
pub(crate) fn read_openai(fields: &Fields, config: &mut GenerationConfig) -> Result<(), ApiError> {
    read_shared(fields, config)?;
    set(&mut config.n, fields.integer("n", 1, MAX_CHOICES)?.map(|n| n as u32));
    match fields.get("stop") {
        Some(stop) if stop.is_string() => config.stop_sequences = vec![fields.required_string("stop")?.to_owned()],
        _ => set(&mut config.stop_sequences, fields.strings("stop", MAX_STOP_SEQUENCES)?),
    }
    set(&mut config.logit_bias, logit_bias(fields)?);
    if let Some(top) = fields.integer("prompt_logprobs", 0, MAX_TOP_LOGPROBS)? {
        if fields.boolean("stream")? == Some(true) {
            return Err(fields.error("prompt_logprobs", "not available with stream: true"));
        }
        config.prompt_logprobs = Some(top as u32);
    }
    config.user = fields.string("user")?.map(str::to_owned);
    config.constraint = structured::only_one(structured::read_response_format(fields)?, config.constraint.take())?;
    Ok(())
}

/// Fields of `/v1/messages`.
pub(crate) fn read_anthropic(fields: &Fields, config: &mut GenerationConfig) -> Result<(), ApiError> {
    read_shared(fields, config)?;
    set(&mut config.stop_sequences, fields.strings("stop_sequences", MAX_STOP_SEQUENCES)?);
    config.constraint = structured::only_one(structured::read_output_format(fields)?, config.constraint.take())?;
    fields.refuse(&["logit_bias"])
}

/// Bound of the answer, once `max_tokens` is known.
pub(crate) fn check_min_tokens(fields: &Fields, config: &GenerationConfig) -> Result<(), ApiError> {
    match config.max_tokens {
        Some(max_tokens) if config.min_tokens > max_tokens => {
            Err(fields.error("min_tokens", format!("must be at most max_tokens ({max_tokens}), got {}", config.min_tokens)))
        }
        _ => Ok(()),
    }
}

/// A count that clients may send larger than any window.
pub(crate) fn clamped(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// `{"token id": bias}`.
fn logit_bias(fields: &Fields) -> Result<Option<Vec<(u32, f32)>>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else { return Ok(None) };
    let mut biases = Vec::new();
    for (key, _) in map.entries() {
        let token: u32 = key.parse().map_err(|_| fields.error("logit_bias", format!("keys must be token ids, got {key:?}")))?;
        let bias = map.number(key, Range::closed(-100.0, 100.0))?.ok_or_else(|| map.wrong(key, "a number between -100 and 100"))?;
        biases.push((token, bias));
    }
    if biases.len() > MAX_LIST {
        return Err(fields.error("logit_bias", format!("at most {MAX_LIST} entries, got {}", biases.len())));
    }
    Ok(Some(biases))
}

/// Stable within a process; never 0, which is the shared cache.
fn salt_of(salt: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    salt.hash(&mut hasher);
    hasher.finish() | 1
}
