//! One row's token: masks and penalties on the logits, then the choice. Order and meaning follow vLLM and transformers (Apache-2.0).
//!
//! Logprobs of the raw logits come first; then the allowed tokens (a grammar's mask), logit_bias, bad words, stop tokens before `min_tokens`, repetition penalty, presence and
//! frequency penalties; then greedy, or temperature, top-k, top-p, min-p and a draw. The draw depends on seed, choice and output index
//! only, so a request gives the same tokens alone, in a batch and after preemption.

use super::choose::{self, Filter};
use super::logprobs::token_logprobs;
use super::{SampleOutput, SampleRow, SamplingParams, TokenHistory, vector};

/// Temperatures below this are greedy.
pub(crate) const MIN_TEMPERATURE: f32 = 1e-5;

/// Samples one token; logits: `[vocab]` f32, overwritten. A row without any usable logit gives the lowest token that is not masked.
pub fn sample_row(logits: &mut [f32], row: &SampleRow<'_>) -> SampleOutput {
    let params = row.params;
    let raw = params.logprobs.map(|top| (logits.to_vec(), top));
    let masked = masked_tokens(row, logits.len());
    if let Some(allowed) = row.allowed {
        mask_others(logits, allowed);
    }
    add_bias(logits, &params.logit_bias);
    for &token in &masked {
        logits[token as usize] = f32::NEG_INFINITY;
    }
    penalize(logits, params, row.history);
    let token = choose_token(logits, row).unwrap_or_else(|| lowest_allowed(logits.len(), row.allowed, &masked));
    SampleOutput { token, logprobs: raw.map(|(raw, top)| token_logprobs(&raw, token, top as usize)) }
}

fn choose_token(logits: &mut [f32], row: &SampleRow<'_>) -> Option<u32> {
    let params = row.params;
    let (best, max) = vector::argmax(logits)?;
    if params.temperature < MIN_TEMPERATURE || params.top_k == 1 || max == f32::INFINITY {
        return Some(best as u32);
    }
    vector::exp_in_place(logits, max, 1.0 / params.temperature);
    choose::filter(logits, Filter { top_k: params.top_k as usize, top_p: params.top_p, min_p: params.min_p });
    Some(choose::draw(logits, uniform(row.seed, row.choice, row.output_index)))
}

fn add_bias(logits: &mut [f32], bias: &[(u32, f32)]) {
    for &(token, value) in bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += value;
        }
    }
}

/// Tokens that must not be sampled now: last tokens of bad words whose other tokens were just generated, and stop tokens too early.
fn masked_tokens(row: &SampleRow<'_>, vocab: usize) -> Vec<u32> {
    let mut masked = Vec::new();
    for word in &row.params.bad_words {
        if let Some((&last, prefix)) = word.split_last()
            && row.history.recent.ends_with(prefix)
        {
            masked.push(last);
        }
    }
    if row.output_index < row.params.min_tokens {
        masked.extend_from_slice(row.stop_ids);
    }
    masked.retain(|&token| (token as usize) < vocab);
    masked
}

fn penalize(logits: &mut [f32], params: &SamplingParams, history: &TokenHistory) {
    let repetition = params.repetition_penalty;
    if repetition != 1.0 {
        let in_prompt = |token: &u32| history.prompt.binary_search(token).is_ok();
        let output_only = history.output_counts.keys().filter(|token| !in_prompt(token));
        for &token in history.prompt.iter().chain(output_only) {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
        }
    }
    if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
        for (&token, &count) in &history.output_counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= params.presence_penalty + params.frequency_penalty * count as f32;
            }
        }
    }
}

fn lowest_allowed(vocab: usize, allowed: Option<&[u32]>, masked: &[u32]) -> u32 {
    (0..vocab as u32).find(|&token| allowed.is_none_or(|allowed| is_allowed(allowed, token)) && !masked.contains(&token)).unwrap_or(0)
}

fn is_allowed(allowed: &[u32], token: u32) -> bool {
    allowed[token as usize / 32] >> (token % 32) & 1 == 1
}

fn mask_others(logits: &mut [f32], allowed: &[u32]) {
    for (token, logit) in (0..).zip(logits) {
        if !is_allowed(allowed, token) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// A number in [0, 1) from a counter: SplitMix64's finaliser (Steele, Lea, Flood 2014; public domain) keyed by the seed.
pub(crate) fn uniform(seed: u64, choice: u32, output_index: u32) -> f64 {
    let counter = (u64::from(choice) << 32) | u64::from(output_index);
    let bits = mix(mix(seed).wrapping_add(mix(counter ^ 0x6a09_e667_f3bc_c908)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
