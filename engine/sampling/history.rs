//! `TokenHistory`: what penalties and bad words need to know of a sequence, and no more.
//!
//! Kept by the runner beside a sequence's slot and rebuilt from its tokens when a preempted sequence comes back.

use std::collections::HashMap;

use super::SamplingParams;

/// Tokens of a sequence, as far as its parameters need them.
#[derive(Clone, Debug, Default)]
pub struct TokenHistory {
    /// Tokens of the prompt, deduplicated and sorted; empty when no penalty needs it.
    pub prompt: Vec<u32>,
    /// Output token -> count. Empty when no penalty needs it.
    pub output_counts: HashMap<u32, u32>,
    /// The last output tokens in order, at most the longest bad word but its last token; empty when there are no bad words.
    pub recent: Vec<u32>,
    counts_output: bool,
    max_recent: usize,
}

impl TokenHistory {
    /// History of a sequence that has these tokens already.
    pub fn new(params: &SamplingParams, prompt: &[u32], output: &[u32]) -> TokenHistory {
        let repetition = params.repetition_penalty != 1.0;
        let mut history = TokenHistory {
            counts_output: repetition || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0,
            max_recent: params.bad_words.iter().map(|word| word.len().saturating_sub(1)).max().unwrap_or(0),
            ..TokenHistory::default()
        };
        if repetition {
            history.prompt = prompt.to_vec();
            history.prompt.sort_unstable();
            history.prompt.dedup();
        }
        for &token in output {
            history.push(token);
        }
        history
    }

    /// Whether sampling with these parameters depends on earlier tokens.
    pub fn is_kept_for(params: &SamplingParams) -> bool {
        let penalties = params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        penalties || params.bad_words.iter().any(|word| word.len() > 1)
    }

    /// Takes the next output token.
    pub fn push(&mut self, token: u32) {
        if self.counts_output {
            *self.output_counts.entry(token).or_insert(0) += 1;
        }
        if self.max_recent > 0 {
            if self.recent.len() == self.max_recent {
                self.recent.remove(0);
            }
            self.recent.push(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_only_what_is_needed() {
        let plain = TokenHistory::new(&SamplingParams::default(), &[1, 2], &[3]);
        assert!(plain.prompt.is_empty() && plain.output_counts.is_empty() && plain.recent.is_empty());
        assert!(!TokenHistory::is_kept_for(&SamplingParams::default()));

        let presence = SamplingParams { presence_penalty: 0.5, ..SamplingParams::default() };
        let history = TokenHistory::new(&presence, &[1, 2], &[3, 4, 3]);
        assert!(history.prompt.is_empty());
        assert_eq!(history.output_counts, HashMap::from([(3, 2), (4, 1)]));

        let repetition = SamplingParams { repetition_penalty: 1.5, ..SamplingParams::default() };
        let history = TokenHistory::new(&repetition, &[9, 2, 9], &[3]);
        assert_eq!((history.prompt, history.output_counts), (vec![2, 9], HashMap::from([(3, 1)])));

        let bad_words = SamplingParams { bad_words: vec![vec![5], vec![6, 7, 8]], ..SamplingParams::default() };
        let mut history = TokenHistory::new(&bad_words, &[1], &[2, 3, 4]);
        history.push(5);
        assert_eq!(history.recent, [4, 5]);
        assert!([presence, repetition, bad_words].iter().all(TokenHistory::is_kept_for));
    }
}
