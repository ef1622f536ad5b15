//! The two conversions of a step: scheduler `Step` -> `StepInputs` before it runs, `StepOutputs` -> events after it ran.

use std::time::Instant;

use pagoda_scheduler::{Finish, SampledToken, ScheduledSequence, SequenceId, Step};

use super::engine::{Engine, sampling_order};
use crate::request::FinishReason;
use crate::runner::{SequenceInput, StepInputs, StepOutputs};

impl Engine {
    /// What the runner needs for a step. Gives sampler slots to sequences that start with it.
    pub(super) fn inputs_of(&mut self, step: &Step) -> StepInputs {
        let mut inputs = self.spare_inputs.pop().unwrap_or_default();
        inputs.reset(step.id);
        inputs.block_copies.extend(step.block_copies.iter().map(|c| (c.src.0, c.dst.0)));
        for scheduled in &step.sequences {
            if let Some(admission) = scheduled.admitted {
                self.admit(scheduled.id, &mut inputs);
                self.requests.start(scheduled.id, admission.cached_tokens);
            }
            for &child in scheduled.samples.iter().filter(|&&id| id != scheduled.id) {
                self.admit(child, &mut inputs);
            }
            self.push_sequence(scheduled, &mut inputs);
        }
        inputs
    }

    fn admit(&mut self, id: SequenceId, inputs: &mut StepInputs) {
        let tokens = self.scheduler.tokens(id).expect("scheduled sequences are known");
        inputs.admitted.push(self.requests.admit(id, tokens));
    }

    fn push_sequence(&mut self, scheduled: &ScheduledSequence, inputs: &mut StepInputs) {
        let (id, start) = (scheduled.id, scheduled.start);
        let end = start + scheduled.num_tokens;
        let (known, table) = self.scheduler.tokens_and_blocks(id).expect("scheduled sequences are known");
        let num_blocks = end.div_ceil(self.config.scheduler.block_size);
        let (slot, prompt_len) = self.requests.running(id);
        let in_prompt = start + 1 < prompt_len;
        let prompt_logprobs = if in_prompt { self.requests.take_prompt_rows(id, known, start, end) } else { None };
        // At most the one token in flight is not known.
        let tokens = known[start..end.min(known.len())].iter().copied().chain((known.len()..end).map(|_| 0));
        let requests = &self.requests;
        let slot_of = |&sample: &SequenceId| if sample == id { slot } else { requests.slot_of(sample) };
        let samples = scheduled.samples.iter().map(|sample| (slot_of(sample), (end - prompt_len) as u32));
        let sequence =
            SequenceInput { slot, start, input_in_flight: scheduled.input_in_flight, prompt_logprobs, ..SequenceInput::default() };
        inputs.push(sequence, tokens, table[..num_blocks].iter().map(|b| b.0), samples);
    }

    /// Gives a step's results to the scheduler and to the clients.
    pub(super) fn commit(&mut self, step: &Step, outputs: StepOutputs) {
        let started = Instant::now();
        for (idx, entries) in outputs.prompt_logprobs {
            self.requests.prompt_logprobs(step.sequences[idx].id, entries);
        }
        self.spare_inputs.push(outputs.inputs);
        for (index, why) in outputs.failed {
            let id = sampling_order(step).nth(index).expect("a failed sample is one of the step");
            for sequence in self.requests.fail(id, format!("structured output: {why}")) {
                self.scheduler.abort(sequence);
            }
        }
        let mut outputs = outputs.sampled;
        let sampled: Vec<SampledToken> = sampling_order(step)
            .zip(&outputs)
            .map(|(id, output)| SampledToken { id, token: output.token, is_stop: self.requests.is_stop(id, output.token) })
            .collect();
        let mut next = 0;
        for committed in self.scheduler.commit(step, &sampled) {
            // In the order of `sampled`, without the tokens that nobody waits for any more.
            next += sampled[next..].iter().position(|s| s.id == committed.id).expect("what is committed was sampled");
            self.requests.token(committed.id, committed.token, outputs[next].logprobs.take());
            next += 1;
            if let Some(finish) = committed.finished {
                let reason = self.reason(committed.id, committed.token, finish);
                self.requests.finish(committed.id, reason);
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
