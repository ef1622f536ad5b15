//! What one step needs, as plain host data, and its way into the device's step tensors.
//!
//! `StepInputs` is made by `core/` from a scheduler `Step`; `Staging::write` fills positions, slots and block tables from it.

use std::sync::Arc;

use super::prefix_groups;
use super::shapes::StepShape;
use crate::device::{Device, StepInts, StepTensors};
use crate::error::Result;
use crate::grammar::SlotMask;
use crate::sampling::{SampleOutput, SampleRow, SamplingParams, TokenHistory, TokenLogprobs};

/// One step for the runner.
#[derive(Debug, Default)]
pub struct StepInputs {
    /// Number of the step.
    pub id: u64,
    /// Whole-block copies to do first (src, dst).
    pub block_copies: Vec<(u32, u32)>,
    /// Sampler slots that start a new life with this step.
    pub admitted: Vec<(usize, SlotState)>,
    /// Sequences in batch order; what they have several of lies in the arrays below, one sequence after another.
    pub sequences: Vec<SequenceInput>,
    /// Tokens to compute. Where a sequence's `input_in_flight`, its last one is a placeholder.
    pub tokens: Vec<u32>,
    /// Physical block of each logical block of a sequence, up to the end of this step's tokens.
    pub block_tables: Vec<u32>,
    /// Slots that get a token from a sequence's last row, with the index of that token in their output.
    pub samples: Vec<(usize, u32)>,
}

impl StepInputs {
    /// Appends a sequence; its counts are set here.
    pub fn push(
        &mut self,
        sequence: SequenceInput,
        tokens: impl IntoIterator<Item = u32>,
        block_table: impl IntoIterator<Item = u32>,
        samples: impl IntoIterator<Item = (usize, u32)>,
    ) {
        let before = (self.tokens.len(), self.block_tables.len(), self.samples.len());
        self.tokens.extend(tokens);
        self.block_tables.extend(block_table);
        self.samples.extend(samples);
        let num_tokens = self.tokens.len() - before.0;
        let (num_blocks, num_samples) = (self.block_tables.len() - before.1, self.samples.len() - before.2);
        self.sequences.push(SequenceInput { num_tokens, num_blocks, num_samples, ..sequence });
    }

    /// Empties it and keeps its memory.
    pub fn reset(&mut self, id: u64) {
        self.id = id;
        self.block_copies.clear();
        self.admitted.clear();
        self.sequences.clear();
        self.tokens.clear();
        self.block_tables.clear();
        self.samples.clear();
    }

    /// Every sequence with its parts of the arrays.
    pub fn shares(&self) -> impl Iterator<Item = SequenceShare<'_>> {
        let mut next = (0, 0, 0);
        self.sequences.iter().map(move |sequence| {
            let first = next;
            next = (first.0 + sequence.num_tokens, first.1 + sequence.num_blocks, first.2 + sequence.num_samples);
            SequenceShare {
                sequence,
                tokens: &self.tokens[first.0..next.0],
                block_table: &self.block_tables[first.1..next.1],
                samples: &self.samples[first.2..next.2],
            }
        })
    }

    /// Whether every sequence has one token and samples from it, and wants nothing else.
    pub fn is_decode(&self) -> bool {
        self.sequences.iter().all(|s| s.num_tokens == 1 && s.num_samples > 0 && s.prompt_logprobs.is_none())
    }
}

/// A sequence of a step and its parts of the step's arrays.
#[derive(Clone, Copy)]
pub struct SequenceShare<'a> {
    /// The sequence.
    pub sequence: &'a SequenceInput,
    /// Of `StepInputs::tokens`.
    pub tokens: &'a [u32],
    /// Of `StepInputs::block_tables`.
    pub block_table: &'a [u32],
    /// Of `StepInputs::samples`.
    pub samples: &'a [(usize, u32)],
}

/// What the sampler keeps of a running sequence.
#[derive(Debug)]
pub struct SlotState {
    /// Parameters of the request.
    pub params: Arc<SamplingParams>,
    /// Seed of the request, drawn if the caller gave none.
    pub seed: u64,
    /// Which of the request's outputs.
    pub choice: u32,
    /// EOS (unless ignored) and stop tokens; masked before `min_tokens`.
    pub stop_ids: Arc<[u32]>,
    /// Tokens so far, as far as penalties need them.
    pub history: TokenHistory,
    /// Tokens that the sequence's grammar allows next.
    pub mask: Option<SlotMask>,
}

impl SlotState {
    /// Takes the token that was sampled.
    pub fn push(&mut self, token: u32) {
        self.history.push(token);
        if let Some(mask) = &mut self.mask {
            mask.advance(token);
        }
    }

    /// A row that samples the token `output_index` of this sequence; a mask must be ready (`SlotMask::wait`).
    pub fn sample_row(&self, logits_row: usize, slot: usize, output_index: u32) -> SampleRow<'_> {
        SampleRow {
            logits_row,
            slot,
            params: &self.params,
            seed: self.seed,
            stop_ids: &self.stop_ids,
            output_index,
            choice: self.choice,
            history: &self.history,
            allowed: self.mask.as_ref().map(SlotMask::allowed),
        }
    }
}

/// One sequence of a step.
#[derive(Debug, Default)]
pub struct SequenceInput {
    /// Sampler slot of the sequence.
    pub slot: usize,
    /// Position of the first token.
    pub start: usize,
    /// Its tokens.
    pub num_tokens: usize,
    /// Its blocks.
    pub num_blocks: usize,
    /// Its samples.
    pub num_samples: usize,
    /// The last token's value is in `last_tokens[slot]` on the device.
    pub input_in_flight: bool,
    /// Rows whose next prompt token gets a logprob.
    pub prompt_logprobs: Option<PromptRows>,
}

/// Prompt logprobs wanted of a chunk.
#[derive(Debug)]
pub struct PromptRows {
    /// Alternatives beside the token itself.
    pub top: usize,
    /// First row of the chunk that is wanted.
    pub first: usize,
    /// The prompt token that follows each wanted row.
    pub next_tokens: Vec<u32>,
}

/// What one step produced.
#[derive(Debug, Default)]
pub struct StepOutputs {
    /// Number of the step.
    pub id: u64,
    /// One entry per sample, in order of `sequences` and their `samples`.
    pub sampled: Vec<SampleOutput>,
    /// (index into `sequences`, logprobs of the prompt tokens after this chunk's rows).
    pub prompt_logprobs: Vec<(usize, Vec<TokenLogprobs>)>,
    /// Samples whose sequences' grammars cannot be followed any longer (index into `sampled`, why): their tokens mean nothing.
    pub failed: Vec<(usize, String)>,
    /// What the step was made of: its memory serves a later step.
    pub inputs: StepInputs,
}

/// Bounds of a step, for sizing the tensors.
#[derive(Clone, Copy, Debug)]
pub struct StepBounds {
    /// Tokens of a step.
    pub max_tokens: usize,
    /// Sequences of a step.
    pub max_seqs: usize,
    /// Blocks of a sequence.
    pub max_blocks_per_seq: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Logits rows computed at once.
    pub max_logit_rows: usize,
    /// Whether decode steps are recorded and replayed, on a device that can.
    pub record: bool,
}

/// Host staging of the step tensors, reused from step to step.
#[derive(Default)]
pub struct Staging {
    ints: StepInts,
}

impl Staging {
    /// Lays out `inputs`, fills it up to `shape` where there is one, and takes it to `step`. `logit_rows`: rows that get logits.
    ///
    /// # Errors
    /// A device fault.
    pub fn write<D: Device>(
        &mut self,
        device: &D,
        step: &mut StepTensors<D>,
        inputs: &StepInputs,
        logit_rows: impl Iterator<Item = usize>,
        (shape, block_size): (Option<StepShape>, usize),
    ) -> Result<()> {
        self.ints.clear();
        self.ints.cu_seqlens_q.push(0);
        let sequences = &inputs.sequences;
        // The row stride of this step's block tables: short contexts keep them small.
        let longest = sequences.iter().map(|s| s.num_blocks).max().unwrap_or(0);
        step.max_blocks_per_seq = shape.map_or(longest, |shape| shape.max_context_len.div_ceil(block_size));
        step.max_query_len = sequences.iter().map(|s| s.num_tokens).max().unwrap_or(0);
        let context_len = sequences.iter().map(|s| s.start + s.num_tokens).max().unwrap_or(0);
        step.max_context_len = shape.map_or(context_len, |shape| shape.max_context_len);
        for share in inputs.shares() {
            self.push(share, block_size, step.max_blocks_per_seq);
        }
        self.ints.logit_rows.extend(logit_rows.map(|row| row as i32));
        if let Some(shape) = shape {
            self.fill_up(shape.num_seqs, step.max_blocks_per_seq);
        }
        step.num_tokens = self.ints.token_ids.len();
        step.num_seqs = self.ints.context_lens.len();
        let shares = device.shares_prefixes();
        step.num_prefix_groups = if shares { prefix_groups::write(&mut self.ints, step.max_blocks_per_seq, block_size) } else { 0 };
        device.write_step(step, &self.ints)
    }

    fn push(&mut self, share: SequenceShare<'_>, block_size: usize, stride: usize) {
        let ints = &mut self.ints;
        let SequenceShare { sequence, tokens, block_table, .. } = share;
        for (i, &token) in tokens.iter().enumerate() {
            let position = sequence.start + i;
            let in_flight = sequence.input_in_flight && i + 1 == tokens.len();
            let block = block_table[position / block_size] as usize;
            ints.token_ids.push(token as i32);
            ints.token_source.push(if in_flight { sequence.slot as i32 } else { -1 });
            ints.positions.push(position as i32);
            ints.slot_mapping.push((block * block_size + position % block_size) as i32);
        }
        ints.cu_seqlens_q.push(ints.token_ids.len() as i32);
        ints.context_lens.push((sequence.start + tokens.len()) as i32);
        ints.block_tables.extend(block_table.iter().map(|&b| b as i32));
        ints.block_tables.resize(ints.context_lens.len() * stride, 0);
    }

    /// Appends sequences of one token that are nobody's: see `StepTensors`.
    fn fill_up(&mut self, num_seqs: usize, stride: usize) {
        let ints = &mut self.ints;
        for row in ints.context_lens.len()..num_seqs {
            ints.token_ids.push(0);
            ints.token_source.push(-1);
            ints.positions.push(0);
            ints.slot_mapping.push(-1);
            ints.cu_seqlens_q.push(row as i32 + 1);
            ints.context_lens.push(0);
            ints.logit_rows.push(row as i32);
        }
        ints.block_tables.resize(num_seqs * stride, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::StepRoom;
    use crate::device::cpu::CpuDevice;

    /// (slot, start, tokens, block table)
    type Sequence<'a> = (usize, usize, &'a [u32], &'a [u32]);

    fn written(sequences: &[Sequence<'_>], shape: Option<StepShape>) -> StepTensors<CpuDevice> {
        let device = CpuDevice::new(Some(1)).unwrap();
        let mut step = device.alloc_step(&StepRoom { max_tokens: 8, max_seqs: 8, max_blocks_per_seq: 4 }).unwrap();
        let mut inputs = StepInputs::default();
        for &(slot, start, tokens, block_table) in sequences {
            let sequence = SequenceInput { slot, start, input_in_flight: slot == 3, ..SequenceInput::default() };
            inputs.push(sequence, tokens.iter().copied(), block_table.iter().copied(), [(slot, 0)]);
        }
        Staging::default().write(&device, &mut step, &inputs, 0..sequences.len(), (shape, 4)).unwrap();
        step
    }

    #[test]
    fn sequences_are_packed_one_after_another() {
        let step = written(&[(2, 3, &[10, 11], &[7, 5]), (3, 0, &[12], &[6])], None);
        assert_eq!((step.num_tokens, step.num_seqs, step.max_query_len, step.max_context_len, step.max_blocks_per_seq), (3, 2, 2, 5, 2));
        assert_eq!((&step.token_ids[..3], &step.token_source[..3]), (&[10, 11, 12][..], &[-1, -1, 3][..]));
        assert_eq!((&step.positions[..3], &step.slot_mapping[..3]), (&[3, 4, 0][..], &[31, 20, 24][..]));
        assert_eq!((&step.cu_seqlens_q[..3], &step.context_lens[..2]), (&[0, 2, 3][..], &[5, 1][..]));
        assert_eq!((&step.block_tables[..4], &step.logit_rows[..2]), (&[7, 5, 6, 0][..], &[0, 1][..]));
    }

    #[test]
    fn rows_that_fill_up_a_shape_are_nobodys() {
        let shape = StepShape { num_seqs: 4, max_context_len: 12, shares_prefixes: false };
        let step = written(&[(2, 4, &[10], &[7, 5]), (3, 0, &[12], &[6])], Some(shape));
        assert_eq!((step.num_tokens, step.num_seqs, step.max_query_len, step.max_context_len, step.max_blocks_per_seq), (4, 4, 1, 12, 3));
        assert_eq!((&step.token_ids[..4], &step.token_source[..4]), (&[10, 12, 0, 0][..], &[-1, 3, -1, -1][..]));
        assert_eq!((&step.positions[..4], &step.slot_mapping[..4]), (&[4, 0, 0, 0][..], &[20, 24, -1, -1][..]));
        assert_eq!((&step.cu_seqlens_q[..5], &step.context_lens[..4]), (&[0, 1, 2, 3, 4][..], &[5, 1, 0, 0][..]));
        assert_eq!((&step.block_tables[..12], &step.logit_rows[..4]), (&[7, 5, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0, 1, 2, 3][..]));
    }
}
