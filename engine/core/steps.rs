//! The two conversions of a step: scheduler `Step` -> `StepInputs` before it runs, `StepOutputs` -> events after it ran.

use std::collections::HashMap;
use std::time::Instant;

use pagoda_scheduler::{Finish, SampledToken, ScheduledSequence, SequenceId, Step};

use super::engine::{Engine, sampling_order};
use crate::request::FinishReason;
use crate::runner::{SequenceInput, StepInputs, StepOutputs};

impl Engine {
    /// What the runner needs for a step. Gives sampler slots to sequences that start with it.
    pub(super) fn inputs_of(&mut self, step: &Step) -> StepInputs {
        let mut inputs = StepInputs {
            id: step.id,
            block_copies: step.block_copies.iter().map(|c| (c.src.0, c.dst.0)).collect(),
            ..StepInputs::default()
        };
        for scheduled in &step.sequences {
            if let Some(admission) = scheduled.admitted {
                self.admit(scheduled.id, &mut inputs);
                self.requests.start(scheduled.id, admission.cached_tokens);
            }
            for &child in scheduled.samples.iter().filter(|&&id| id != scheduled.id) {
                self.admit(child, &mut inputs);
            }
            let input = self.sequence_input(scheduled);
            inputs.sequences.push(input);
        }
        inputs
    }

    fn admit(&mut self, id: SequenceId, inputs: &mut StepInputs) {
        let tokens = self.scheduler.tokens(id).expect("scheduled sequences are known");
        inputs.admitted.push(self.requests.admit(id, tokens));
    }

    fn sequence_input(&mut self, scheduled: &ScheduledSequence) -> SequenceInput {
        let id = scheduled.id;
        let end = scheduled.start + scheduled.num_tokens;
        let known = self.scheduler.tokens(id).expect("scheduled sequences are known");
        let mut tokens = known[scheduled.start..end.min(known.len())].to_vec();
        tokens.resize(scheduled.num_tokens, 0); // at most the one token in flight
        let num_blocks = end.div_ceil(self.config.scheduler.block_size);
        let table = self.scheduler.block_table(id).expect("scheduled sequences have blocks");
        let block_table = table[..num_blocks].iter().map(|b| b.0).collect();
        let prompt_logprobs = self.requests.take_prompt_rows(id, known, scheduled.start, end);
        let prompt_len = self.requests.of(id).map_or(0, |a| a.prompt_len);
        let slot_of = |id: SequenceId| self.requests.member(id).and_then(|m| m.slot).expect("running sequences have slots");
        SequenceInput {
            slot: slot_of(id),
            start: scheduled.start,
            tokens,
            input_in_flight: scheduled.input_in_flight,
            block_table,
            samples: scheduled.samples.iter().map(|&s| (slot_of(s), (end - prompt_len) as u32)).collect(),
            prompt_logprobs,
        }
    }

    /// Gives a step's results to the scheduler and to the clients.
    pub(super) fn commit(&mut self, step: &Step, outputs: StepOutputs) {
        let started = Instant::now();
        for (idx, entries) in outputs.prompt_logprobs {
            self.requests.prompt_logprobs(step.sequences[idx].id, entries);
        }
        let mut logprobs = HashMap::new();
        let mut sampled = Vec::with_capacity(outputs.sampled.len());
        for (id, output) in sampling_order(step).zip(outputs.sampled) {
            let is_stop = self.requests.of(id).is_some_and(|a| a.stop_ids.contains(&output.token));
            sampled.push(SampledToken { id, token: output.token, is_stop });
            if let Some(entry) = output.logprobs {
                logprobs.insert(id, entry);
            }
        }
        for committed in self.scheduler.commit(step, &sampled) {
            let id = committed.id;
            self.requests.token(id, committed.token, logprobs.remove(&id));
            if let Some(finish) = committed.finished {
                let reason = self.reason(id, committed.token, finish);
                self.requests.finish(id, reason);
            }
        }
        self.add_host_time(started.elapsed());
    }

    fn reason(&self, id: SequenceId, token: u32, finish: Finish) -> FinishReason {
        let explicit = self.requests.of(id).is_some_and(|a| a.params.stop_token_ids.contains(&token));
        match finish {
            Finish::Stop if explicit => FinishReason::StopToken(token),
            Finish::Stop => FinishReason::Eos,
            Finish::MaxTokens => FinishReason::MaxTokens,
            Finish::ContextFull => FinishReason::ContextFull,
        }
    }
}
