//! The runner: turns `StepInputs` into `StepOutputs` on a device. Owns model, KV cache, workspace and sampler slots.
//!
//! `launch` queues a step on the device, `finish` waits for its tokens; `executor.rs` calls both on a thread of its own so that
//! scheduling can be one step ahead.

pub mod executor;
pub mod inputs;
mod prefix_groups;
mod recordings;
mod shapes;
pub mod workspace;

use std::collections::VecDeque;
use std::sync::Arc;

pub use inputs::{PromptRows, SequenceInput, SequenceShare, SlotState, StepBounds, StepInputs, StepOutputs};

use crate::device::{Device, KvShape, StepRoom, StepTensors};
use crate::error::{EngineError, Result};
use crate::models::decoder::Decoder;
use crate::sampling::SampleRow;
use executor::StepRunner;
use inputs::Staging;
use recordings::Recordings;
use shapes::StepShape;
use workspace::Workspace;

/// A model on a device, ready to run steps.
pub struct Runner<D: Device> {
    /// First, so that they go before the memory that they use.
    recordings: Recordings<D>,
    device: Arc<D>,
    decoder: Decoder<D>,
    workspace: Workspace<D>,
    kv: Vec<D::KvLayer>,
    step: StepTensors<D>,
    staging: Staging,
    bounds: StepBounds,
    slots: Vec<Slot>,
    last_tokens: D::Ints,
    /// Launched steps that were not finished yet, oldest first.
    launched: VecDeque<Launched<D>>,
}

/// A sampler slot. Its life begins anew with every sequence that takes it.
#[derive(Default)]
struct Slot {
    state: Option<SlotState>,
    life: u64,
}

impl Slot {
    fn running(&self) -> &SlotState {
        self.state.as_ref().expect("slot was admitted before it samples")
    }
}

/// A step between `launch` and `finish`.
enum Launched<D: Device> {
    Running(RunningStep<D>),
    Done(Result<StepOutputs>),
}

/// A step whose tokens are not on the host yet.
struct RunningStep<D: Device> {
    /// What is known already: all but the tokens.
    outputs: StepOutputs,
    /// Slot and its life of every sample.
    samples: Vec<(usize, u64)>,
    /// The samples in groups, in order.
    pending: Vec<D::Pending>,
}

/// What a row of hidden states needs logits for.
enum RowUse {
    /// A run of the flat list of samples.
    Sample { first: usize, count: usize },
    /// Prompt logprobs of the token that follows.
    Prompt { sequence: usize, top: usize, token: u32 },
}

impl<D: Device> Runner<D> {
    /// Takes workspace and KV pool. `kv` is the shape of one layer's pool.
    ///
    /// # Errors
    /// A device that is out of memory.
    pub fn new(device: Arc<D>, decoder: Decoder<D>, kv: KvShape, bounds: StepBounds) -> Result<Runner<D>> {
        let workspace = Workspace::new(&*device, &decoder.config, bounds.max_tokens, bounds.max_logit_rows)?;
        let mut layers = decoder.config.layers.iter().map(|_| device.alloc_kv(kv)).collect::<Result<Vec<_>>>()?;
        for (layer, scales) in layers.iter_mut().zip(&decoder.kv_scales) {
            scales.as_ref().map_or(Ok(()), |scales| device.set_kv_scales(layer, scales))?;
        }
        let StepBounds { max_tokens, max_seqs, max_blocks_per_seq, .. } = bounds;
        let step = device.alloc_step(&StepRoom { max_tokens, max_seqs, max_blocks_per_seq })?;
        let last_tokens = device.alloc_ints(bounds.max_seqs)?;
        device.prepare_sampling(bounds.max_seqs, decoder.config.vocab_size)?;
        let slots = (0..bounds.max_seqs).map(|_| Slot::default()).collect();
        let recordings = Recordings::new(bounds.record && device.can_record());
        let (staging, launched) = (Staging::default(), VecDeque::new());
        Ok(Runner { recordings, device, decoder, workspace, kv: layers, step, staging, bounds, slots, last_tokens, launched })
    }

    /// Queues one step: copies, inputs, forward, logits, sampling.
    fn queue(&mut self, mut inputs: StepInputs) -> Result<RunningStep<D>> {
        self.admit(inputs.admitted.drain(..))?;
        if !inputs.block_copies.is_empty() {
            for layer in &mut self.kv {
                self.device.copy_blocks(layer, &inputs.block_copies)?;
            }
        }
        let rows = logit_rows(&inputs);
        let shape = self.shape_of(&inputs);
        let indices = rows.iter().map(|(row, _)| *row);
        self.staging.write(&*self.device, &mut self.step, &inputs, indices, (shape, self.bounds.block_size))?;
        let has_logits = self.forward(shape)?;
        let mut step = self.sample(&inputs, &rows, has_logits)?;
        step.outputs.inputs = inputs;
        Ok(step)
    }

    /// Begins new lives of sampler slots.
    fn admit(&mut self, admitted: impl Iterator<Item = (usize, SlotState)>) -> Result<()> {
        let mut slots = Vec::new();
        for (slot, state) in admitted {
            self.slots[slot] = Slot { state: Some(state), life: self.slots[slot].life + 1 };
            slots.push(slot);
        }
        let rows: Vec<SampleRow<'_>> = slots.iter().map(|&slot| self.slots[slot].running().sample_row(0, slot, 0)).collect();
        if rows.is_empty() { Ok(()) } else { self.device.admit(&rows) }
    }

    /// The shape that a step is filled up to, if it is one that is recorded.
    fn shape_of(&self, inputs: &StepInputs) -> Option<StepShape> {
        if !self.recordings.are_enabled() || !inputs.is_decode() {
            return None;
        }
        let bounds = &self.bounds;
        let num_seqs = bounds.max_seqs.min(bounds.max_tokens);
        let most = StepShape { num_seqs, max_context_len: bounds.max_blocks_per_seq * bounds.block_size, shares_prefixes: false };
        let context_len = inputs.sequences.iter().map(|s| s.start + 1).max()?;
        StepShape::around(inputs.sequences.len(), context_len, most)
    }

    /// Runs the layers, and where one group holds all rows of a recorded step, the head too: then true.
    fn forward(&mut self, shape: Option<StepShape>) -> Result<bool> {
        let Runner { device, decoder, workspace, kv, step, last_tokens, recordings, bounds, .. } = self;
        let has_logits = shape.is_some_and(|shape| shape.num_seqs <= bounds.max_logit_rows);
        (step.first_logit_row, step.num_logit_rows, step.logits_of_all_rows) = (0, if has_logits { step.num_seqs } else { 0 }, has_logits);
        let shape = shape.map(|shape| StepShape { shares_prefixes: step.num_prefix_groups > 0, ..shape });
        let mut run = || {
            device.resolve_tokens(step, last_tokens)?;
            decoder.forward(&**device, workspace, kv, step)?;
            if has_logits { decoder.logits(&**device, workspace, step) } else { Ok(()) }
        };
        let Some(shape) = shape else {
            run()?;
            return Ok(false);
        };
        recordings.queue(&**device, shape, run)?;
        workspace.set_rows(step.num_tokens, step.num_logit_rows);
        Ok(has_logits)
    }

    /// Logits, unless they are there, and sampling in groups of at most `max_logit_rows` rows.
    fn sample(&mut self, inputs: &StepInputs, rows: &[(usize, RowUse)], has_logits: bool) -> Result<RunningStep<D>> {
        let samples = &inputs.samples;
        let mut outputs = StepOutputs { id: inputs.id, sampled: Vec::with_capacity(samples.len()), ..StepOutputs::default() };
        let mut pending = Vec::with_capacity(1);
        if samples.iter().any(|&(slot, _)| self.device.needs_history(&self.slots[slot].running().params)) {
            self.settle();
        }
        let all_rows = rows.len() == self.step.num_tokens && inputs.is_decode();
        for (index, group) in rows.chunks(self.bounds.max_logit_rows).enumerate() {
            if !has_logits {
                self.step.first_logit_row = index * self.bounds.max_logit_rows;
                self.step.num_logit_rows = group.len();
                self.step.logits_of_all_rows = all_rows && group.len() == rows.len();
                self.decoder.logits(&*self.device, &mut self.workspace, &self.step)?;
            }
            self.prompt_logprobs(group, &mut outputs)?;
            pending.extend(self.sample_group(group, samples)?);
        }
        let samples = samples.iter().map(|&(slot, _)| (slot, self.slots[slot].life)).collect();
        Ok(RunningStep { outputs, samples, pending })
    }

    fn prompt_logprobs(&self, group: &[(usize, RowUse)], outputs: &mut StepOutputs) -> Result<()> {
        let wanted: Vec<_> = group
            .iter()
            .enumerate()
            .filter_map(|(i, (_, row_use))| match *row_use {
                RowUse::Prompt { sequence, top, token } => Some((sequence, top, (i, token))),
                RowUse::Sample { .. } => None,
            })
            .collect();
        // Rows of one sequence stand together and ask for the same number of alternatives: one call for all of them.
        for run in wanted.chunk_by(|a, b| a.0 == b.0) {
            let (sequence, top, _) = run[0];
            let rows: Vec<(usize, u32)> = run.iter().map(|entry| entry.2).collect();
            outputs.prompt_logprobs.push((sequence, self.device.row_logprobs(&self.workspace.logits, &rows, top)?));
        }
        Ok(())
    }

    fn sample_group(&mut self, group: &[(usize, RowUse)], samples: &[(usize, u32)]) -> Result<Option<D::Pending>> {
        let mut rows = Vec::new();
        for (logits_row, (_, row_use)) in group.iter().enumerate() {
            let RowUse::Sample { first, count } = *row_use else { continue };
            for &(slot, output_index) in &samples[first..first + count] {
                rows.push(self.slots[slot].running().sample_row(logits_row, slot, output_index));
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        self.device.sample(&mut self.workspace.logits, &rows, &mut self.last_tokens).map(Some)
    }

    /// Waits for all launched steps, so that the histories are complete.
    fn settle(&mut self) {
        for i in 0..self.launched.len() {
            let nothing = Launched::Done(Err(EngineError::Device("the step was taken away".into())));
            let done = match std::mem::replace(&mut self.launched[i], nothing) {
                Launched::Running(step) => self.tokens_of(step),
                Launched::Done(done) => done,
            };
            self.launched[i] = Launched::Done(done);
        }
    }

    /// Waits for a step's tokens and adds them to the histories that penalties read.
    fn tokens_of(&mut self, step: RunningStep<D>) -> Result<StepOutputs> {
        let RunningStep { mut outputs, samples, pending } = step;
        for pending in pending {
            outputs.sampled.extend(self.device.sampled(pending)?);
        }
        for (&(slot, life), output) in samples.iter().zip(&outputs.sampled) {
            // A slot whose sequence ended may have begun another life meanwhile.
            match &mut self.slots[slot] {
                Slot { state: Some(state), life: now } if *now == life => state.history.push(output.token),
                _ => {}
            }
        }
        Ok(outputs)
    }
}

impl<D: Device> StepRunner for Runner<D> {
    fn launch(&mut self, inputs: StepInputs) -> Result<()> {
        let step = self.queue(inputs)?;
        self.launched.push_back(Launched::Running(step));
        Ok(())
    }

    fn is_ready(&self) -> bool {
        match self.launched.front() {
            Some(Launched::Running(step)) => step.pending.iter().all(|pending| self.device.is_sampled(pending)),
            Some(Launched::Done(_)) | None => true,
        }
    }

    fn finish(&mut self) -> Result<StepOutputs> {
        match self.launched.pop_front().expect("a step was launched") {
            Launched::Running(step) => self.tokens_of(step),
            Launched::Done(outputs) => outputs,
        }
    }
}

/// Rows that need logits, in batch order.
fn logit_rows(inputs: &StepInputs) -> Vec<(usize, RowUse)> {
    let mut rows = Vec::new();
    let (mut row, mut first) = (0, 0);
    for (sequence, input) in inputs.sequences.iter().enumerate() {
        if let Some(wanted) = &input.prompt_logprobs {
            let row_of = |(i, &token): (usize, &u32)| (row + wanted.first + i, RowUse::Prompt { sequence, top: wanted.top, token });
            rows.extend(wanted.next_tokens.iter().enumerate().map(row_of));
        }
        row += input.num_tokens;
        if input.num_samples > 0 {
            rows.push((row - 1, RowUse::Sample { first, count: input.num_samples }));
            first += input.num_samples;
        }
    }
    rows
}
