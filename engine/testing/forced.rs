//! A whole sequence through a decoder in one step, without engine or scheduler: what a device thinks of every token of a given text.

use std::path::Path;
use std::sync::Arc;

use crate::device::{Device, KvShape, StepRoom, StepTensors};
use crate::error::Result;
use crate::models::decoder::Decoder;
use crate::runner::inputs::{SequenceInput, Staging, StepInputs};
use crate::runner::workspace::Workspace;
use crate::sampling::TokenLogprobs;
use crate::weights::checkpoint::Checkpoint;

/// Tokens of a block.
const BLOCK_SIZE: usize = 16;
/// Rows of logits at a time.
const LOGIT_ROWS: usize = 64;

/// Logprobs at a time.
const LOGPROB_ROWS: usize = 8;

/// A decoder that reads given tokens.
pub struct Forced<D: Device> {
    /// What computes.
    pub device: Arc<D>,
    decoder: Decoder<D>,
    workspace: Workspace<D>,
    kv: Vec<D::KvLayer>,
    step: StepTensors<D>,
}

impl<D: Device> Forced<D> {
    /// Loads the checkpoint at `path` with room for texts of `max_tokens` tokens.
    ///
    /// # Errors
    /// A damaged checkpoint or a device that is out of memory.
    pub fn load(device: Arc<D>, path: &Path, max_tokens: usize) -> Result<Forced<D>> {
        let checkpoint = Checkpoint::open(path)?;
        let config = &checkpoint.config;
        let decoder = Decoder::load(&*device, &checkpoint, max_tokens, &mut |_, _| {})?;
        let num_blocks = max_tokens.div_ceil(BLOCK_SIZE);
        let shape = KvShape {
            num_blocks,
            block_size: BLOCK_SIZE,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            dtype: device.default_kv_dtype(),
        };
        let kv = config.layers.iter().map(|_| device.alloc_kv(shape)).collect::<Result<_>>()?;
        device.prepare_sampling(LOGPROB_ROWS, config.vocab_size)?;
        let workspace = Workspace::new(&*device, config, max_tokens, LOGIT_ROWS)?;
        let step = device.alloc_step(&StepRoom { max_tokens, max_seqs: 1, max_blocks_per_seq: num_blocks })?;
        Ok(Forced { device, decoder, workspace, kv, step })
    }

    /// For each i, the logprobs of the tokens `wanted[i]` after `tokens[..= first + i]`, each with the `top` best.
    ///
    /// # Errors
    /// A device fault.
    pub fn logprobs(&mut self, tokens: &[u32], first: usize, wanted: &[Vec<u32>], top: usize) -> Result<Vec<Vec<TokenLogprobs>>> {
        let mut inputs = StepInputs::default();
        inputs.push(SequenceInput::default(), tokens.iter().copied(), 0..tokens.len().div_ceil(BLOCK_SIZE) as u32, []);
        let rows = first..first + wanted.len();
        Staging::default().write(&*self.device, &mut self.step, &inputs, rows, (None, BLOCK_SIZE))?;
        self.decoder.forward(&*self.device, &mut self.workspace, &mut self.kv, &self.step)?;
        let mut answers = Vec::with_capacity(wanted.len());
        for (group, wanted) in wanted.chunks(LOGIT_ROWS).enumerate() {
            (self.step.first_logit_row, self.step.num_logit_rows) = (group * LOGIT_ROWS, wanted.len());
            self.decoder.logits(&*self.device, &mut self.workspace, &self.step)?;
            for (row, ids) in wanted.iter().enumerate() {
                let pairs: Vec<(usize, u32)> = ids.iter().map(|id| (row, *id)).collect();
                answers.push(self.device.row_logprobs(&self.workspace.logits, &pairs, top)?);
            }
        }
        Ok(answers)
    }
}
