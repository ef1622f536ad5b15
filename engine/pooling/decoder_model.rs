//! A decoder as a `SequenceModel`: the batch is prefilled in steps over a small paged cache, and the last hidden state of each sequence is
//! its vector (or is scored).

use std::sync::Arc;

use super::head::Scores;
use super::{BatchLimits, Sequence, SequenceModel};
use crate::device::encoder::EncoderDevice;
use crate::device::{DType, KvShape, RowGather, StepRoom, StepTensors};
use crate::error::Result;
use crate::models::decoder::Decoder;
use crate::runner::inputs::Staging;
use crate::runner::workspace::Workspace;
use crate::runner::{SequenceInput, StepInputs};

/// Tokens of a block of the cache.
const BLOCK: usize = 16;

/// A loaded decoder with its buffers.
pub struct DecoderModel<D: EncoderDevice> {
    device: Arc<D>,
    decoder: Decoder<D>,
    workspace: Workspace<D>,
    kv: Vec<D::KvLayer>,
    step: StepTensors<D>,
    staging: Staging,
    inputs: StepInputs,
    max_step_tokens: usize,
    scores: Option<Scores>,
}

/// How large a decoder's batch and steps are.
#[derive(Clone, Copy, Debug)]
pub struct DecoderLimits {
    /// Of a batch: what the cache holds.
    pub batch: BatchLimits,
    /// Tokens of a step.
    pub max_step_tokens: usize,
    /// Tokens of a sequence.
    pub max_seq_len: usize,
    /// Element type of the cache.
    pub kv_dtype: DType,
}

impl DecoderLimits {
    /// Blocks of the cache: every sequence of a batch begins a block of its own.
    pub fn num_blocks(&self) -> usize {
        self.batch.max_tokens.div_ceil(BLOCK) + self.batch.max_seqs
    }

    /// Tokens that the cache has room for.
    pub fn cache_tokens(&self) -> usize {
        self.num_blocks() * BLOCK
    }
}

/// A part of a sequence that one step computes.
#[derive(Debug, PartialEq)]
struct Chunk {
    sequence: usize,
    start: usize,
    len: usize,
}

/// Cuts sequences of these lengths into steps of at most `max_tokens` tokens, in order.
fn steps(lens: &[usize], max_tokens: usize) -> Vec<Vec<Chunk>> {
    let (mut steps, mut step, mut room) = (Vec::new(), Vec::new(), max_tokens);
    for (sequence, &total) in lens.iter().enumerate() {
        let mut start = 0;
        while start < total {
            let len = room.min(total - start);
            step.push(Chunk { sequence, start, len });
            (start, room) = (start + len, room - len);
            if room == 0 {
                steps.push(std::mem::take(&mut step));
                room = max_tokens;
            }
        }
    }
    if !step.is_empty() {
        steps.push(step);
    }
    steps
}

impl<D: EncoderDevice> DecoderModel<D> {
    /// Takes the buffers and the cache.
    ///
    /// # Errors
    /// A device that is out of memory.
    pub fn new(device: Arc<D>, decoder: Decoder<D>, scores: Option<Scores>, limits: DecoderLimits) -> Result<DecoderModel<D>> {
        let config = &decoder.config;
        let workspace = Workspace::new(&*device, config, limits.max_step_tokens, limits.batch.max_seqs)?;
        let shape = KvShape {
            num_blocks: limits.num_blocks(),
            block_size: BLOCK,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            dtype: limits.kv_dtype,
        };
        let kv = config.layers.iter().map(|_| device.alloc_kv(shape)).collect::<Result<_>>()?;
        let step = device.alloc_step(&StepRoom {
            max_tokens: limits.max_step_tokens,
            max_seqs: limits.batch.max_seqs,
            max_blocks_per_seq: limits.max_seq_len.div_ceil(BLOCK),
        })?;
        let (staging, inputs) = (Staging::default(), StepInputs::default());
        let max_step_tokens = limits.max_step_tokens;
        Ok(DecoderModel { device, decoder, workspace, kv, step, staging, inputs, max_step_tokens, scores })
    }

    /// Runs one step; returns the last hidden states of the sequences that end with it.
    fn run_step(&mut self, sequences: &[Sequence], first_blocks: &[u32], chunks: &[Chunk]) -> Result<Vec<f32>> {
        self.inputs.reset(0);
        let (mut last_rows, mut row) = (Vec::new(), 0);
        for chunk in chunks {
            let ids = &sequences[chunk.sequence].ids;
            let end = chunk.start + chunk.len;
            let first = first_blocks[chunk.sequence];
            let input = SequenceInput { start: chunk.start, ..SequenceInput::default() };
            let blocks = first..first + end.div_ceil(BLOCK) as u32;
            self.inputs.push(input, ids[chunk.start..end].iter().copied(), blocks, []);
            row += chunk.len;
            if end == ids.len() {
                last_rows.push(row - 1);
            }
        }
        let num_rows = last_rows.len();
        self.staging.write(&*self.device, &mut self.step, &self.inputs, last_rows.into_iter(), (None, BLOCK))?;
        (self.step.first_logit_row, self.step.num_logit_rows, self.step.gather) = (0, num_rows, RowGather::LastLayer);
        self.decoder.forward(&*self.device, &mut self.workspace, &mut self.kv, &self.step)?;
        if num_rows == 0 {
            return Ok(Vec::new());
        }
        self.decoder.last_hidden(&*self.device, &mut self.workspace, &self.step)?;
        self.device.read_rows(&self.workspace.normed)
    }
}

impl<D: EncoderDevice> SequenceModel for DecoderModel<D> {
    fn run(&mut self, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
        let lens: Vec<usize> = sequences.iter().map(|sequence| sequence.ids.len()).collect();
        let mut next_block = 0;
        let mut place = |len: &usize| {
            let first = next_block;
            next_block += len.div_ceil(BLOCK) as u32;
            first
        };
        let first_blocks: Vec<u32> = lens.iter().map(&mut place).collect();
        let mut outputs = Vec::with_capacity(sequences.len());
        for chunks in steps(&lens, self.max_step_tokens) {
            let hidden = self.run_step(sequences, &first_blocks, &chunks)?;
            outputs.extend(hidden.chunks_exact(self.decoder.config.hidden_size).map(|row| match &self.scores {
                Some(scores) => scores.of(row),
                None => row.to_vec(),
            }));
        }
        Ok(outputs)
    }

    fn sleep(&mut self) -> Result<()> {
        self.device.sleep(&mut self.kv)
    }

    fn wake(&mut self) -> Result<()> {
        self.device.wake()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_cut_into_steps_in_order() {
        let chunk = |sequence, start, len| Chunk { sequence, start, len };
        let expected = vec![vec![chunk(0, 0, 3), chunk(1, 0, 1)], vec![chunk(1, 1, 4)], vec![chunk(1, 5, 1), chunk(2, 0, 2)]];
        assert_eq!(steps(&[3, 6, 2], 4), expected);
        assert_eq!(steps(&[4], 4), vec![vec![chunk(0, 0, 4)]]);
        assert!(steps(&[], 4).is_empty());
    }
}
