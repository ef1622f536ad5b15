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

use crate::device::{Device, KvShape, RowGather, StepRoom, StepTensors};
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
    /// Its layers are queued; what it samples depends on tokens that are not on the host yet.
    Waiting(WaitingStep),
    Running(RunningStep<D>),
    Failed(EngineError),
}

/// A step whose sampling is not queued yet.
struct WaitingStep {
    inputs: StepInputs,
    /// Rows that get logits.
    rows: Vec<(usize, RowUse)>,
    /// They have them.
    has_logits: bool,
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

    /// Queues one step: copies, inputs, forward, logits; and sampling, unless it has to wait for the step before.
    fn queue(&mut self, mut inputs: StepInputs) -> Result<Launched<D>> {
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
        let has_logits = self.place_rows(&inputs, rows.len(), shape);
        self.forward(shape, has_logits)?;
        let step = WaitingStep { inputs, rows, has_logits };
        let waits = !self.launched.is_empty() && self.needs_earlier_tokens(&step.inputs);
        if waits { Ok(Launched::Waiting(step)) } else { self.sample(step).map(Launched::Running) }
    }

    /// Whether the host needs every token before this step's to queue its sampling.
    fn needs_earlier_tokens(&self, inputs: &StepInputs) -> bool {
        inputs.samples.iter().any(|&(slot, _)| {
            let state = self.slots[slot].running();
            state.mask.is_some() || self.device.needs_history(&state.params)
        })
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

    /// Decides where the step's `num_rows` rows that get logits are gathered, and sets the first group of them. True: one group holds all
    /// rows of a recorded step, and the head is recorded with the layers.
    fn place_rows(&mut self, inputs: &StepInputs, num_rows: usize, shape: Option<StepShape>) -> bool {
        let (step, most) = (&mut self.step, self.bounds.max_logit_rows);
        let has_logits = shape.is_some_and(|shape| shape.num_seqs <= most);
        let are_all = num_rows == step.num_tokens && inputs.is_decode();
        (step.first_logit_row, step.num_logit_rows) = (0, if has_logits { step.num_seqs } else { num_rows.min(most) });
        let is_one_group = num_rows <= most;
        step.gather = if has_logits || are_all && is_one_group {
            RowGather::Never
        } else if shape.is_none() && is_one_group && num_rows < step.num_tokens {
            RowGather::LastLayer
        } else {
            RowGather::Head
        };
        has_logits
    }

    /// Runs the layers, and with `has_logits` the head too.
    fn forward(&mut self, shape: Option<StepShape>, has_logits: bool) -> Result<()> {
        let Runner { device, decoder, workspace, kv, step, last_tokens, recordings, .. } = self;
        let shape = shape.map(|shape| StepShape { shares_prefixes: step.num_prefix_groups > 0, ..shape });
        let mut run = || {
            device.resolve_tokens(step, last_tokens)?;
            decoder.forward(&**device, workspace, kv, step)?;
            if has_logits { decoder.logits(&**device, workspace, step) } else { Ok(()) }
        };
        let Some(shape) = shape else { return run() };
        recordings.queue(&**device, shape, run)?;
        workspace.set_rows(step.num_tokens, step.num_logit_rows);
        Ok(())
    }

    /// Logits, unless they are there, and sampling in groups of at most `max_logit_rows` rows.
    fn sample(&mut self, step: WaitingStep) -> Result<RunningStep<D>> {
        let WaitingStep { inputs, rows, has_logits } = step;
        let samples = &inputs.samples;
        let mut outputs = StepOutputs { id: inputs.id, sampled: Vec::with_capacity(samples.len()), ..StepOutputs::default() };
        let mut pending = Vec::with_capacity(1);
        self.wait_for_masks(samples, &mut outputs);
        for (index, group) in rows.chunks(self.bounds.max_logit_rows).enumerate() {
            if !has_logits {
                self.step.first_logit_row = index * self.bounds.max_logit_rows;
                self.step.num_logit_rows = group.len();
                self.decoder.logits(&*self.device, &mut self.workspace, &self.step)?;
            }
            self.prompt_logprobs(group, &mut outputs)?;
            pending.extend(self.sample_group(group, samples)?);
        }
        let samples = samples.iter().map(|&(slot, _)| (slot, self.slots[slot].life)).collect();
        outputs.inputs = inputs;
        Ok(RunningStep { outputs, samples, pending })
    }

    /// Masks are made beside the step; what cannot be followed any longer is reported with it.
    fn wait_for_masks(&mut self, samples: &[(usize, u32)], outputs: &mut StepOutputs) {
        for (index, &(slot, _)) in samples.iter().enumerate() {
            let Some(mask) = self.slots[slot].state.as_mut().and_then(|state| state.mask.as_mut()) else { continue };
            mask.wait();
            outputs.failed.extend(mask.error().map(|why| (index, why.to_string())));
        }
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

    /// Waits for a step's tokens and adds them to what sampling depends on: histories, and grammars, whose next masks are begun.
    fn tokens_of(&mut self, step: RunningStep<D>) -> Result<StepOutputs> {
        let RunningStep { mut outputs, samples, pending } = step;
        for pending in pending {
            outputs.sampled.extend(self.device.sampled(pending)?);
        }
        for (&(slot, life), output) in samples.iter().zip(&outputs.sampled) {
            // A slot whose sequence ended may have begun another life meanwhile.
            match &mut self.slots[slot] {
                Slot { state: Some(state), life: now } if *now == life => state.push(output.token),
                _ => {}
            }
        }
        Ok(outputs)
    }
}

impl<D: Device> StepRunner for Runner<D> {
    fn launch(&mut self, inputs: StepInputs) -> Result<()> {
        // Its layers would overwrite what that step has yet to sample from.
        assert!(!matches!(self.launched.front(), Some(Launched::Waiting(_))), "the oldest step is resumed before another is launched");
        let step = self.queue(inputs)?;
        self.launched.push_back(step);
        Ok(())
    }

    fn is_ready(&self) -> bool {
        match self.launched.front() {
            Some(Launched::Running(step)) => step.pending.iter().all(|pending| self.device.is_sampled(pending)),
            Some(Launched::Waiting(_) | Launched::Failed(_)) | None => true,
        }
    }

    fn finish(&mut self) -> Result<StepOutputs> {
        match self.launched.pop_front().expect("a step was launched") {
            Launched::Waiting(step) => {
                let step = self.sample(step)?;
                self.tokens_of(step)
            }
            Launched::Running(step) => self.tokens_of(step),
            Launched::Failed(error) => Err(error),
        }
    }

    fn sleep(&mut self) -> Result<()> {
        assert!(self.launched.is_empty(), "asleep while steps run");
        self.slots.iter_mut().for_each(|slot| slot.state = None);
        self.device.sleep(&mut self.kv)
    }

    fn wake(&mut self) -> Result<()> {
        self.device.wake()
    }

    fn resume(&mut self) {
        if !matches!(self.launched.front(), Some(Launched::Waiting(_))) {
            return;
        }
        // What stands there if sampling panics.
        let lost = Launched::Failed(EngineError::Device("sampling panicked".into()));
        let Launched::Waiting(step) = std::mem::replace(&mut self.launched[0], lost) else { return };
        self.launched[0] = self.sample(step).map_or_else(Launched::Failed, Launched::Running);
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

#[cfg(test)]
mod tests;
