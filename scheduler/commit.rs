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
        let expected = || step.sequences.iter().flat_map(|scheduled| scheduled.samples.iter().copied());
        // Most callers give the tokens in the order of the step, all of them.
        if !expected().eq(sampled.iter().map(|sampled| sampled.id)) {
            for id in expected() {
                assert!(!self.waits_for(id, step.id), "step {} has no token for {id:?}", step.id);
            }
        }
        committed
    }

    fn commit_token(&mut self, step_id: u64, sampled: &SampledToken) -> Option<Committed> {
        let SampledToken { id, token, is_stop } = *sampled;
        let sequence = self.sequences.get_mut(&id).filter(|sequence| sequence.in_flight.front() == Some(&step_id))?;
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
        if self.config.prefix_caching && sequence.has_full_blocks_to_register(self.config.block_size) {
            sequence.register_full_blocks(&mut self.allocator);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SchedulerConfig;
    use crate::scheduler::tests::{CONFIG, commit_all, scheduler, sequence, shares};
    use crate::sequence::NewSequence;

    const ID: SequenceId = SequenceId(1);

    #[test]
    fn a_sequence_ends_for_one_of_three_reasons() {
        let check = |max_tokens: u32, stop_at: usize, expected: (usize, Finish)| {
            let mut scheduler = scheduler(SchedulerConfig { max_model_len: 16, ..CONFIG });
            scheduler.add(NewSequence { max_tokens, ..sequence(1, 0, 10) }).expect("it can run");
            for num_output in 1.. {
                let step = scheduler.schedule();
                let committed = commit_all(&mut scheduler, &step, 7, num_output == stop_at);
                assert_eq!(committed.len(), 1);
                if let Some(finish) = committed[0].finished {
                    assert_eq!((num_output, finish), expected);
                    assert!(!scheduler.has_work());
                    return;
                }
                assert_eq!(scheduler.num_output_tokens(ID), Some(num_output));
            }
        };
        check(50, 3, (3, Finish::Stop));
        check(4, 9, (4, Finish::MaxTokens));
        check(4, 4, (4, Finish::Stop));
        check(6, 9, (6, Finish::MaxTokens));
        check(7, 9, (6, Finish::ContextFull));
    }

    #[test]
    fn a_finish_found_late_costs_one_dropped_token() {
        let mut scheduler = scheduler(CONFIG);
        scheduler.add(sequence(1, 0, 6)).expect("it can run");
        let first = scheduler.schedule();
        let second = scheduler.schedule();
        assert!(!first.sequences[0].input_in_flight && second.sequences[0].input_in_flight);
        assert_eq!(shares(&second), [(1, 6, 1)]);
        assert_eq!(commit_all(&mut scheduler, &first, 7, true)[0].finished, Some(Finish::Stop));
        assert_eq!((scheduler.has_work(), scheduler.stats().num_used_blocks), (false, 0));
        assert_eq!(commit_all(&mut scheduler, &second, 8, false), []);
    }

    #[test]
    fn a_sequence_about_to_end_is_not_scheduled_further() {
        let mut scheduler = scheduler(CONFIG);
        scheduler.add(NewSequence { max_tokens: 2, ..sequence(1, 0, 6) }).expect("it can run");
        let steps = [scheduler.schedule(), scheduler.schedule(), scheduler.schedule()];
        assert!(!steps[1].is_empty() && steps[2].is_empty() && scheduler.has_work());
        commit_all(&mut scheduler, &steps[0], 7, false);
        assert!(scheduler.schedule().is_empty());
        assert_eq!(commit_all(&mut scheduler, &steps[1], 7, false)[0].finished, Some(Finish::MaxTokens));
    }

    #[test]
    fn a_token_of_an_earlier_bearer_of_the_id_is_dropped() {
        let mut scheduler = scheduler(CONFIG);
        scheduler.add(sequence(1, 0, 6)).expect("it can run");
        let old = scheduler.schedule();
        scheduler.abort(ID);
        scheduler.add(sequence(1, 100, 6)).expect("the id is free");
        let new = scheduler.schedule();
        assert_eq!(commit_all(&mut scheduler, &old, 7, false), []);
        assert_eq!(commit_all(&mut scheduler, &new, 8, false).len(), 1);
        assert_eq!(scheduler.tokens(ID), Some(&[100, 101, 102, 103, 104, 105, 8][..]));
    }

    #[test]
    fn blocks_of_the_output_are_findable_once_known() {
        let mut scheduler = scheduler(CONFIG);
        scheduler.add(sequence(1, 0, 6)).expect("it can run");
        for is_stop in [false, false, true] {
            let step = scheduler.schedule();
            commit_all(&mut scheduler, &step, 7, is_stop);
        }
        // Its tokens are 0 1 2 3 | 4 5 7 7 | 7; the last was never computed.
        let mut again = sequence(2, 0, 6);
        again.prompt.extend([7, 7, 7, 9]);
        scheduler.add(again).expect("it can run");
        assert_eq!(shares(&scheduler.schedule()), [(2, 8, 2)]);
        assert_eq!(scheduler.stats().num_prefix_hit_tokens, 8);
    }

    #[test]
    fn a_block_that_ended_in_flight_is_findable_after_the_commit() {
        let mut scheduler = scheduler(CONFIG);
        scheduler.add(sequence(1, 0, 6)).expect("it can run");
        let steps = [scheduler.schedule(), scheduler.schedule(), scheduler.schedule()];
        commit_all(&mut scheduler, &steps[0], 7, false);
        assert_eq!(commit_all(&mut scheduler, &steps[1], 7, true)[0].finished, Some(Finish::Stop));
        // Its tokens are 0 1 2 3 | 4 5 7 7; the queued third step computes the last.
        let mut again = sequence(2, 0, 6);
        again.prompt.extend([7, 7, 9]);
        scheduler.add(again).expect("it can run");
        assert_eq!(shares(&scheduler.schedule()), [(2, 8, 1)]);
        assert_eq!(commit_all(&mut scheduler, &steps[2], 7, false), []);
    }
}
