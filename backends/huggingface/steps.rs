//! `Steps`: the engine's steps, run by a worker. Logits come from there; tokens are chosen here, by the engine's own sampler, so that
//! every parameter and every mask of a grammar works as on the native engine.

use std::collections::HashMap;

use pagoda_engine::core::OutsideModel;
use pagoda_engine::runner::{SequenceShare, SlotState, StepInputs, StepOutputs};
use pagoda_engine::sampling::{SampleOutput, sample_row, token_logprobs};
use pagoda_engine::{EngineError, Result};

use super::frame::Forward;
use super::lanes::{Beginning, Lanes};
use super::worker::{Worker, WorkerError};

/// Sequences that the worker keeps beside the running ones.
const IDLE_LANES: usize = 3;

/// Runs steps.
pub(super) struct Steps {
    worker: Worker,
    slots: Vec<Slot>,
    lanes: Lanes,
    /// Tokens of the blocks of the engine's books, which say what a sequence begins with that is found in the prefix cache.
    blocks: HashMap<u32, Vec<u32>>,
    /// Tokens of one question at most.
    max_tokens: usize,
}

#[derive(Default)]
struct Slot {
    state: Option<SlotState>,
    /// Its sequence has a lane.
    has_begun: bool,
}

impl Steps {
    /// Over a worker that computes sequences of `max_seqs` slots, `max_tokens` tokens at a time.
    pub fn new(worker: Worker, max_seqs: usize, max_tokens: usize) -> Steps {
        let slots = (0..max_seqs).map(|_| Slot::default()).collect();
        Steps { worker, slots, lanes: Lanes::new(max_seqs + IDLE_LANES), blocks: HashMap::new(), max_tokens }
    }

    /// Runs one step, a sequence after another.
    ///
    /// # Errors
    /// The worker ended or refused.
    pub fn execute(&mut self, mut inputs: StepInputs) -> Result<StepOutputs> {
        for (slot, state) in inputs.admitted.drain(..) {
            self.slots[slot] = Slot { state: Some(state), has_begun: false };
        }
        for (from, to) in &inputs.block_copies {
            let tokens = self.blocks.get(from).cloned().unwrap_or_default();
            self.blocks.insert(*to, tokens);
        }
        let mut outputs = StepOutputs { id: inputs.id, ..StepOutputs::default() };
        for (idx, share) in inputs.shares().enumerate() {
            self.note_blocks(share);
            self.run(idx, share, &mut outputs).map_err(|error| EngineError::Device(error.to_string()))?;
        }
        outputs.inputs = inputs;
        Ok(outputs)
    }

    fn note_blocks(&mut self, share: SequenceShare<'_>) {
        for (position, token) in (share.sequence.start..).zip(share.tokens) {
            let (block, offset) = (position / OutsideModel::BLOCK_SIZE, position % OutsideModel::BLOCK_SIZE);
            let tokens = self.blocks.entry(share.block_table[block]).or_default();
            tokens.truncate(offset);
            tokens.push(*token);
        }
    }

    fn run(&mut self, idx: usize, share: SequenceShare<'_>, outputs: &mut StepOutputs) -> std::result::Result<(), WorkerError> {
        let SequenceShare { sequence, tokens, samples, .. } = share;
        let wanted = sequence.prompt_logprobs.as_ref();
        let mut rows: Vec<usize> = wanted.map_or_else(Vec::new, |w| (w.first..w.first + w.next_tokens.len()).collect());
        let num_prompt_rows = rows.len();
        if !samples.is_empty() {
            rows.push(tokens.len() - 1);
        }
        let is_new = !std::mem::replace(&mut self.slots[sequence.slot].has_begun, true);
        let logits = match self.compute(share, is_new, &rows) {
            // A sequence that only begins is not lost with a worker that has ended.
            Err(WorkerError::Ended(_)) if is_new => {
                self.lanes.forget();
                self.worker.start_again()?;
                self.compute(share, true, &rows)
            }
            outcome => outcome,
        }?;
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

    /// Logits of `rows` of the step's tokens. A sequence that begins also gets what the books hold of it and the worker does not.
    fn compute(&mut self, share: SequenceShare<'_>, is_new: bool, rows: &[usize]) -> std::result::Result<Vec<f32>, WorkerError> {
        let SequenceShare { sequence, tokens, samples, .. } = share;
        let (beginning, missing) = if is_new {
            let prefix: Vec<u32> = share.block_table.iter().filter_map(|block| self.blocks.get(block)).flatten().copied().collect();
            let prefix = &prefix[..sequence.start];
            let beginning = self.lanes.begin(sequence.slot, prefix);
            (beginning, prefix[beginning.len..].to_vec())
        } else {
            let lane = self.lanes.of(sequence.slot);
            (Beginning { lane, from: lane, len: sequence.start }, Vec::new())
        };
        let Beginning { lane, mut from, len: mut start } = beginning;
        for chunk in missing.chunks(self.max_tokens) {
            self.worker.forward(&Forward { lane, from, start, rows: Vec::new(), copies: Vec::new() }, chunk)?;
            (from, start) = (lane, start + chunk.len());
            self.lanes.push(lane, chunk);
        }
        self.lanes.push(lane, tokens);
        let mut copies = Vec::new();
        for (slot, _) in samples.iter().filter(|sample| sample.0 != sequence.slot) {
            copies.push(self.lanes.fork(lane, *slot));
            self.slots[*slot].has_begun = true;
        }
        self.worker.forward(&Forward { lane, from, start, rows: rows.to_vec(), copies }, tokens)
    }

    /// `idx`: which sample of the step it is.
    fn sample(
        &mut self,
        logits: &mut [f32],
        (slot, output_idx): (usize, u32),
        idx: usize,
        failed: &mut Vec<(usize, String)>,
    ) -> SampleOutput {
        let state = self.slots[slot].state.as_mut().expect("slot was admitted before it samples");
        if let Some(mask) = &mut state.mask {
            mask.wait();
            failed.extend(mask.error().map(|why| (idx, why.to_owned())));
        }
        let output = sample_row(logits, &state.sample_row(0, slot, output_idx));
        state.push(output.token);
        output
    }
}
