//! `Scheduler::commit`: what a step has sampled becomes known; sequences go on or end.

use crate::scheduler::Scheduler;
use crate::sequence::SequenceId;
use crate::step::{Committed, Finish, SampledToken, Step};

impl Scheduler {
    /// Takes the tokens that a step has sampled. Steps come in the order in which they were made; empty ones may be left out.
    /// Tokens of sequences that are gone (aborted, or ended by an earlier step) are dropped.
    ///
    /// # Panics
    /// When steps come out of order, or the token of a sequence that still lives is missing: abort a sequence whose sampling failed first.
    pub fn commit(&mut self, step: &Step, sampled: &[SampledToken]) -> Vec<Committed> {
        assert!(step.id >= self.next_commit, "step {} is committed after step {}", step.id, self.next_commit.saturating_sub(1));
        self.next_commit = step.id + 1;
        let committed = sampled.iter().filter_map(|sampled| self.commit_token(step.id, sampled)).collect();
        for id in step.sequences.iter().flat_map(|scheduled| &scheduled.samples) {
            assert!(!self.waits_for(*id, step.id), "step {} has no token for {id:?}", step.id);
        }
        committed
    }

    fn commit_token(&mut self, step_id: u64, sampled: &SampledToken) -> Option<Committed> {
        let SampledToken { id, token, is_stop } = *sampled;
        if !self.waits_for(id, step_id) {
            return None;
        }
        let sequence = self.sequences.get_mut(&id)?;
        sequence.in_flight.pop_front();
        sequence.tokens.push(token);
        let finished = if is_stop {
            Some(Finish::Stop)
        } else if sequence.tokens.len() - sequence.prompt_len >= sequence.max_tokens {
            Some(Finish::MaxTokens)
        } else if sequence.tokens.len() >= self.config.max_model_len {
            Some(Finish::ContextFull)
        } else {
            None
        };
        self.register_full_blocks(id);
        if finished.is_some() {
            self.remove(id);
        }
        Some(Committed { id, token, finished })
    }

    /// Whether the oldest token in flight of a sequence is this step's. (A sequence of the same id, added later, waits for none of them.)
    fn waits_for(&self, id: SequenceId, step_id: u64) -> bool {
        self.sequences.get(&id).is_some_and(|sequence| sequence.in_flight.front() == Some(&step_id))
    }
}
