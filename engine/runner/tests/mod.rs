//! Steps of tiny models on the CPU, without scheduler.

mod last_layer;
mod waiting;

use std::sync::Arc;

use super::*;
use crate::device::cpu::CpuDevice;
use crate::weights::checkpoint::Checkpoint;

const BLOCK_SIZE: usize = 16;

/// A runner for four sequences of 64 tokens.
fn runner(checkpoint: &Checkpoint, max_logit_rows: usize) -> Runner<CpuDevice> {
    let device = Arc::new(CpuDevice::new(Some(1)).unwrap());
    let decoder = Decoder::load(&*device, checkpoint, 64, &mut |_, _| {}).unwrap();
    let config = &checkpoint.config;
    let kv = KvShape {
        num_blocks: 16,
        block_size: BLOCK_SIZE,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        dtype: device.default_kv_dtype(),
    };
    let bounds = StepBounds { max_tokens: 32, max_seqs: 4, max_blocks_per_seq: 4, block_size: BLOCK_SIZE, max_logit_rows, record: false };
    Runner::new(device, decoder, kv, bounds).unwrap()
}
