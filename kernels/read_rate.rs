//! How fast a GPU reads its memory: what kernels that are bound by memory are held against.

use std::sync::Arc;

use crate::gpu::{Event, Gpu};
use crate::memory::DeviceMemory;
use crate::ops::step::xor_words;
use crate::status::Result;

/// Many times what an L2 holds.
const READ_BYTES: usize = 2 << 30;
const MIN_BYTES: usize = 64 << 20;
const RUNS: usize = 10;
/// CTAs of 256 threads that a multiprocessor holds.
const CTAS_PER_SM: usize = 8;

/// Bytes a second of plain reads, the best of a few runs. Takes up to 2 GiB for a moment.
///
/// # Errors
/// `OutOfMemory`, `NotBuilt`, `Driver`.
pub fn read_rate(gpu: &Arc<Gpu>) -> Result<f64> {
    let (free, _) = gpu.memory()?;
    let len = READ_BYTES.min(free / 2).max(MIN_BYTES) / 16 * 16;
    let (data, out) = (DeviceMemory::zeroed(gpu, len)?, DeviceMemory::zeroed(gpu, 16)?);
    let (begin, end) = (Event::new(gpu)?, Event::new(gpu)?);
    let mut best_ms = f32::INFINITY;
    for _ in 0..RUNS {
        begin.record()?;
        xor_words(out.bytes(), data.bytes(), gpu.info().num_sms as usize * CTAS_PER_SM, gpu.stream()?)?;
        end.record()?;
        end.wait()?;
        best_ms = best_ms.min(end.ms_since(&begin)?);
    }
    Ok(len as f64 / f64::from(best_ms) * 1e3)
}
