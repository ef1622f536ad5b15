//! What one step needs, as plain host data, and its way into the device's step tensors.
//!
//! `StepInputs` is made by `core/` from a scheduler `Step`; `Staging::write` fills positions, slots and block tables from it.

use std::sync::Arc;

use crate::device::{Device, StepTensors};
use crate::error::Result;
use crate::sampling::{SampleOutput, SamplingParams, TokenHistory, TokenLogprobs};

/// One step for the runner.
#[derive(Default)]
pub struct StepInputs {
    /// Number of the step.
    pub id: u64,
    /// Whole-block copies to do first (src, dst).
    pub block_copies: Vec<(u32, u32)>,
    /// Sampler slots that start a new life with this step.
    pub admitted: Vec<(usize, SlotState)>,
    /// Sequences in batch order.
    pub sequences: Vec<SequenceInput>,
}

/// What the sampler keeps of a running sequence.
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
}

/// One sequence's share of a step.
pub struct SequenceInput {
    /// Sampler slot of the sequence.
    pub slot: usize,
    /// Position of the first token.
    pub start: usize,
    /// Tokens to compute. When `input_in_flight`, the last is a placeholder.
    pub tokens: Vec<u32>,
    /// The last token's value is in `last_tokens[slot]` on the device.
    pub input_in_flight: bool,
    /// Physical block of each logical block up to the end of this step's tokens.
    pub block_table: Vec<u32>,
    /// Slots that get a token from the last row, with the index of that token in their output.
    pub samples: Vec<(usize, u32)>,
    /// Rows whose next prompt token gets a logprob.
    pub prompt_logprobs: Option<PromptRows>,
}

/// Prompt logprobs wanted of a chunk.
pub struct PromptRows {
    /// Alternatives beside the token itself.
    pub top: usize,
    /// First row of the chunk that is wanted.
    pub first: usize,
    /// The prompt token that follows each wanted row.
    pub next_tokens: Vec<u32>,
}

/// What one step produced.
#[derive(Debug)]
pub struct StepOutputs {
    /// Number of the step.
    pub id: u64,
    /// One entry per sample, in order of `sequences` and their `samples`.
    pub sampled: Vec<SampleOutput>,
    /// (index into `sequences`, logprobs of the prompt tokens after this chunk's rows).
    pub prompt_logprobs: Vec<(usize, Vec<TokenLogprobs>)>,
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
}

/// Host staging of the step tensors, reused from step to step.
#[derive(Default)]
pub struct Staging {
    token_ids: Vec<i32>,
    token_source: Vec<i32>,
    positions: Vec<i32>,
    slot_mapping: Vec<i32>,
    cu_seqlens_q: Vec<i32>,
    context_lens: Vec<i32>,
    block_tables: Vec<i32>,
}

/// Takes step tensors of the largest size.
///
/// # Errors
/// A device that is out of memory.
pub fn alloc_step<D: Device>(device: &D, bounds: &StepBounds) -> Result<StepTensors<D>> {
    let per_token = || device.alloc_ints(bounds.max_tokens);
    Ok(StepTensors {
        num_tokens: 0,
        num_seqs: 0,
        max_query_len: 0,
        max_context_len: 0,
        token_ids: per_token()?,
        token_source: per_token()?,
        positions: per_token()?,
        slot_mapping: per_token()?,
        cu_seqlens_q: device.alloc_ints(bounds.max_seqs + 1)?,
        context_lens: device.alloc_ints(bounds.max_seqs)?,
        block_tables: device.alloc_ints(bounds.max_seqs * bounds.max_blocks_per_seq)?,
        max_blocks_per_seq: bounds.max_blocks_per_seq,
        logit_rows: device.alloc_ints(bounds.max_logit_rows)?,
        num_logit_rows: 0,
    })
}

impl Staging {
    /// Lays out `inputs` and copies it into `step`.
    ///
    /// # Errors
    /// A device fault.
    pub fn write<D: Device>(&mut self, device: &D, step: &mut StepTensors<D>, inputs: &StepInputs, block_size: usize) -> Result<()> {
        self.clear();
        step.max_query_len = 0;
        step.max_context_len = 0;
        // The row stride of this step's block tables: short contexts keep them small.
        step.max_blocks_per_seq = inputs.sequences.iter().map(|s| s.block_table.len()).max().unwrap_or(0);
        for sequence in &inputs.sequences {
            self.push(sequence, block_size, step.max_blocks_per_seq);
            step.max_query_len = step.max_query_len.max(sequence.tokens.len());
            step.max_context_len = step.max_context_len.max(sequence.start + sequence.tokens.len());
        }
        step.num_tokens = self.token_ids.len();
        step.num_seqs = inputs.sequences.len();
        device.write_ints(&mut step.token_ids, &self.token_ids)?;
        device.write_ints(&mut step.token_source, &self.token_source)?;
        device.write_ints(&mut step.positions, &self.positions)?;
        device.write_ints(&mut step.slot_mapping, &self.slot_mapping)?;
        device.write_ints(&mut step.cu_seqlens_q, &self.cu_seqlens_q)?;
        device.write_ints(&mut step.context_lens, &self.context_lens)?;
        device.write_ints(&mut step.block_tables, &self.block_tables)
    }

    fn clear(&mut self) {
        self.token_ids.clear();
        self.token_source.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.cu_seqlens_q.clear();
        self.cu_seqlens_q.push(0);
        self.context_lens.clear();
        self.block_tables.clear();
    }

    fn push(&mut self, sequence: &SequenceInput, block_size: usize, stride: usize) {
        for (i, &token) in sequence.tokens.iter().enumerate() {
            let position = sequence.start + i;
            let in_flight = sequence.input_in_flight && i + 1 == sequence.tokens.len();
            let block = sequence.block_table[position / block_size] as usize;
            self.token_ids.push(token as i32);
            self.token_source.push(if in_flight { sequence.slot as i32 } else { -1 });
            self.positions.push(position as i32);
            self.slot_mapping.push((block * block_size + position % block_size) as i32);
        }
        self.cu_seqlens_q.push(self.token_ids.len() as i32);
        self.context_lens.push((sequence.start + sequence.tokens.len()) as i32);
        self.block_tables.extend(sequence.block_table.iter().map(|&b| b as i32));
        self.block_tables.resize(self.context_lens.len() * stride, 0);
    }
}
