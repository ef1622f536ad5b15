//! `GrammarState`: one sequence in its grammar. Takes the tokens as they are sampled and says which may come next.

use std::sync::Arc;

use llguidance::Matcher;

use super::compiled::Grammar;
use super::json_guard::JsonGuard;
use super::vocabulary::{is_set, set_bits};

/// What a sequence's grammar allows next.
pub struct GrammarState {
    grammar: Grammar,
    /// Given back to the grammar at the end, which is why it is an `Option`.
    matcher: Option<Matcher>,
    /// Tokens that end the sequence.
    stop_ids: Arc<[u32]>,
    /// No stop token before this many tokens, where anything else may come.
    min_tokens: u32,
    num_tokens: u32,
    guard: JsonGuard,
    mask: Vec<u32>,
    ended: bool,
    error: Option<String>,
}

impl GrammarState {
    /// A sequence that has these tokens already. `mask` is valid.
    pub fn new(grammar: Grammar, stop_ids: Arc<[u32]>, min_tokens: u32, output: &[u32]) -> GrammarState {
        let matcher = grammar.matcher();
        let mask = grammar.first_mask().to_vec();
        let guard = JsonGuard::default();
        let mut state =
            GrammarState { grammar, matcher: Some(matcher), stop_ids, min_tokens, num_tokens: 0, guard, mask, ended: false, error: None };
        output.iter().for_each(|&token| state.consume(token));
        if output.is_empty() {
            state.restrict()
        } else {
            state.compute()
        }
        state
    }

    /// Takes the token that was sampled; `mask` is that of the next one.
    pub fn advance(&mut self, token: u32) {
        self.consume(token);
        self.compute();
    }

    /// Tokens that may come next: bit `id % 32` of word `id / 32`, one bit for every token of the model. Never empty.
    pub fn mask(&self) -> &[u32] {
        &self.mask
    }

    /// Why the grammar can follow this sequence no longer. The mask then holds what ends a sequence.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Whether the text so far is one of the grammar's.
    pub fn may_end(&mut self) -> bool {
        self.error.is_none() && (self.ended || self.matcher().is_accepting().unwrap_or(false))
    }

    fn matcher(&mut self) -> &mut Matcher {
        self.matcher.as_mut().expect("present until drop")
    }

    fn consume(&mut self, token: u32) {
        self.num_tokens += 1;
        if self.ended || self.error.is_some() {
            return;
        }
        let Some(bytes) = self.grammar.vocabulary().text(token) else {
            // An end, or a stop token of the request: nothing of the text.
            self.ended = true;
            return;
        };
        for &byte in bytes {
            self.guard.push(byte);
        }
        if let Err(error) = self.matcher().consume_token(token) {
            let is_stop = self.stop_ids.contains(&token);
            self.ended |= is_stop;
            self.error = (!is_stop).then(|| error.to_string());
        }
    }

    fn compute(&mut self) {
        let stopped = self.ended || self.error.is_some();
        let computed = if stopped { None } else { Some(self.matcher().compute_mask_or_eos()) };
        match computed {
            Some(Ok(mask)) if !mask.is_zero() => {
                self.mask.copy_from_slice(&mask.as_slice()[..self.grammar.vocabulary().num_words]);
                self.restrict();
            }
            Some(Ok(_)) => self.fail("the grammar allows no token here".into()),
            Some(Err(error)) => self.fail(error.to_string()),
            None => self.only_ends(),
        }
    }

    /// What the grammar leaves open and the request does not.
    fn restrict(&mut self) {
        let last = set_bits(&self.mask).all(|token| self.stop_ids.contains(&token) || self.grammar.vocabulary().text(token).is_none());
        if last {
            return;
        }
        if self.num_tokens < self.min_tokens {
            let ends: Vec<u32> = self.stop_ids.iter().copied().filter(|&token| is_set(&self.mask, token)).collect();
            clear(&mut self.mask, &ends);
        }
        if self.grammar.bounds_json() {
            let overlong = self.grammar.vocabulary().overlong(&self.mask, &self.guard);
            let num_set: u32 = self.mask.iter().map(|word| word.count_ones()).sum();
            if overlong.len() < num_set as usize {
                clear(&mut self.mask, &overlong);
            }
        }
    }

    fn fail(&mut self, error: String) {
        self.error = Some(error);
        self.only_ends();
    }

    fn only_ends(&mut self) {
        self.mask.copy_from_slice(self.grammar.ends());
    }
}

fn clear(mask: &mut [u32], tokens: &[u32]) {
    for &token in tokens {
        mask[token as usize / 32] &= !(1 << (token % 32));
    }
}

impl Drop for GrammarState {
    fn drop(&mut self) {
        if let Some(matcher) = self.matcher.take() {
            self.grammar.give_back(matcher);
        }
    }
}
