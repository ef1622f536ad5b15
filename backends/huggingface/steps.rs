//! `Steps`: the engine's steps, run by a worker. Logits come from there; tokens are chosen here, by the engine's own sampler, so that
//! every parameter and every mask of a grammar works as on the native engine.

use pagoda_engine::runner::{SequenceShare, SlotState, StepInputs, StepOutputs};
use pagoda_engine::sampling::{SampleOutput, sample_row, token_logprobs};
use pagoda_engine::{EngineError, Result};

use super::frame::Forward;
use super::worker::Worker;

/// Runs steps.
pub(super) struct Steps {
    worker: Worker,
    slots: Vec<Option<SlotState>>,
}

impl Steps {
    /// Over a worker that computes sequences of `max_seqs` slots.
    pub fn new(worker: Worker, max_seqs: usize) -> Steps {
        Steps { worker, slots: (0..max_seqs).map(|_| None).collect() }
    }

    /// Runs one step, a sequence after another.
    ///
    /// # Errors
    /// The worker ended or refused.
    pub fn execute(&mut self, mut inputs: StepInputs) -> Result<StepOutputs> {
        for (slot, state) in inputs.admitted.drain(..) {
            self.slots[slot] = Some(state);
        }
        let mut outputs = StepOutputs { id: inputs.id, ..StepOutputs::default() };
        for (idx, share) in inputs.shares().enumerate() {
            self.run(idx, share, &mut outputs)?;
        }
        outputs.inputs = inputs;
        Ok(outputs)
    }

    fn run(&mut self, idx: usize, share: SequenceShare<'_>, outputs: &mut StepOutputs) -> Result<()> {
        let SequenceShare { sequence, tokens, samples, .. } = share;
        let wanted = sequence.prompt_logprobs.as_ref();
        let mut rows: Vec<usize> = wanted.map_or_else(Vec::new, |w| (w.first..w.first + w.next_tokens.len()).collect());
        let num_prompt_rows = rows.len();
        if !samples.is_empty() {
            rows.push(tokens.len() - 1);
        }
        let copies = samples.iter().map(|sample| sample.0).filter(|slot| *slot != sequence.slot).collect();
        let forward = Forward { slot: sequence.slot, start: sequence.start, rows, copies };
        let logits = self.worker.forward(&forward, tokens).map_err(|error| EngineError::Device(error.to_string()))?;
        let vocab_size = self.worker.loaded.vocab_size;
        if let Some(wanted) = wanted {
            let rows = logits.chunks_exact(vocab_size).zip(&wanted.next_tokens);
            outputs.prompt_logprobs.push((idx, rows.map(|(row, token)| token_logprobs(row, *token, wanted.top)).collect()));
        }
        for &(slot, output_idx) in samples {
            let mut row = logits[num_prompt_rows * vocab_size..].to_vec();
            outputs.sampled.push(self.sample(&mut row, (slot, output_idx), outputs.sampled.len(), &mut outputs.failed));
        }
        Ok(())
    }

    /// `idx`: which sample of the step it is.
    fn sample(
        &mut self,
        logits: &mut [f32],
        (slot, output_idx): (usize, u32),
        idx: usize,
        failed: &mut Vec<(usize, String)>,
    ) -> SampleOutput {
        let state = self.slots[slot].as_mut().expect("slot was admitted before it samples");
        if let Some(mask) = &mut state.mask {
            mask.wait();
            failed.extend(mask.error().map(|why| (idx, why.to_owned())));
        }
        let output = sample_row(logits, &state.sample_row(0, slot, output_idx));
        state.push(output.token);
        output
    }
}
