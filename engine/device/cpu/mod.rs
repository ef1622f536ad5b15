//! The CPU device: `trait Device` over threads and SIMD, the oracle of every other device.
//!
//! Activations are f32 and products are exact in the weights: blocks are dequantised in registers and multiplied with unrounded inputs. A
//! token's results do not depend on the batch it is in, on the chunking of its prompt or on the number of threads: every op sums in an
//! order that is fixed by the token alone (see `matmul.rs` and `attention.rs`).

mod activation;
mod attention;
mod attention_keys;
mod attention_tile;
mod blocks;
mod buffer;
mod coded;
mod encoder;
mod encoder_attention;
mod kv;
mod layer_norm;
mod linear;
mod math;
mod matmul;
mod matvec;
pub(crate) mod memory;
mod moe;
mod norm;
mod ops;
mod rope_kv;
mod scratch;
pub mod simd;
mod threads;

#[cfg(test)]
mod tests;

use parking_lot::Mutex;

use self::buffer::Buffer;
pub use self::kv::CpuKv;
use self::simd::{Dispatch, SimdLevel};
use self::threads::{Pool, SharedMut};
use super::tensor::HostMatrix;
use crate::error::EngineError;

/// Most threads of a device.
pub const MAX_THREADS: usize = 1024;

/// Activations of the CPU: f32.
pub struct CpuBuffer {
    pub(self) values: Buffer<f32>,
}

/// A matrix as the checkpoint holds it; nothing is copied.
pub struct CpuWeight {
    pub(self) host: HostMatrix,
}

/// A vector of f32.
pub struct CpuVector {
    pub(self) values: Buffer<f32>,
}

/// The CPU as a device.
pub struct CpuDevice {
    pool: Pool,
    dispatch: Dispatch,
    level: SimdLevel,
    moe_scratch: Mutex<moe::MoeScratch>,
    /// Inputs in the order of the columns of a weight that has one; grows to the largest step.
    ordered_inputs: Mutex<Vec<f32>>,
    /// States of split attention: less than four tasks a thread, each with the partitions of its context.
    attention_states: Mutex<Vec<f32>>,
}

impl CpuDevice {
    /// A device of `threads` threads (none: one a logical processor) at the processor's best SIMD level.
    ///
    /// # Errors
    /// `Option` for a number of threads outside 1..=1024; `Device` when the system gives no thread.
    pub fn new(threads: Option<usize>) -> Result<CpuDevice, EngineError> {
        CpuDevice::with_level(threads, SimdLevel::best())
    }

    /// As `new`, at a given level.
    ///
    /// # Errors
    /// Also `Unsupported` when the processor has not got the level.
    pub fn with_level(threads: Option<usize>, level: SimdLevel) -> Result<CpuDevice, EngineError> {
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS));
        if threads == 0 || threads > MAX_THREADS {
            return Err(EngineError::Option { option: "threads", reason: format!("{threads} is not in 1..={MAX_THREADS}") });
        }
        let dispatch = Dispatch::new(level).ok_or_else(|| EngineError::Unsupported(format!("this processor has no {}", level.name())))?;
        let pool = Pool::new(threads).map_err(|error| EngineError::Device(format!("{threads} threads: {error}")))?;
        Ok(CpuDevice {
            pool,
            dispatch,
            level,
            moe_scratch: Mutex::default(),
            ordered_inputs: Mutex::default(),
            attention_states: Mutex::default(),
        })
    }

    /// Threads that work on a step.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Calls `body(row, out row)` for every row, split over the threads when the work (`row_bytes` read and written a row) is worth it.
    #[allow(unsafe_code)]
    fn for_rows(&self, rows: usize, row_bytes: usize, out: &mut [f32], cols: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
        /// Bytes below which a task costs more to hand out than to do.
        const TASK_BYTES: usize = 32 << 10;
        let out = SharedMut::new(out);
        let per_task = (TASK_BYTES / row_bytes.max(1)).max(1);
        self.pool.run(rows.div_ceil(per_task), |task| {
            for row in task * per_task..rows.min((task + 1) * per_task) {
                // SAFETY: every row is of one task.
                body(row, unsafe { out.slice(row * cols, cols) });
            }
        });
    }
}
