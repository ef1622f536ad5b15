//! The way from host memory to the GPU: two pinned buffers in turn, so that copies run beside the host and none is overwritten early.

use std::sync::Arc;

use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::{Event, Gpu, PinnedMemory};

use super::engine_error;
use crate::error::Result;

/// Bytes of one buffer.
const HALF_BYTES: usize = 16 << 20;
/// Every copy begins at a multiple of this.
const ALIGN: usize = 64;

struct Half {
    memory: PinnedMemory,
    /// Behind the last copy out of `memory`.
    copied: Event,
}

/// Pinned staging. Bytes written once are not touched until the copy out of them is done.
pub struct Staging {
    gpu: Arc<Gpu>,
    halves: [Half; 2],
    current: usize,
    used: usize,
}

impl Staging {
    /// Takes the buffers.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Staging> {
        let half = || -> Result<Half> {
            let memory = PinnedMemory::zeroed(gpu, HALF_BYTES).map_err(engine_error)?;
            Ok(Half { memory, copied: Event::new(gpu).map_err(engine_error)? })
        };
        Ok(Staging { gpu: gpu.clone(), halves: [half()?, half()?], current: 0, used: 0 })
    }

    /// Queues dst = `len` bytes that `fill(start, piece)` writes piece by piece; pieces are multiples of `unit` bytes but for the last.
    ///
    /// # Errors
    /// The driver refuses, or earlier work failed.
    pub fn upload_with(&mut self, dst: DeviceBytes, len: usize, unit: usize, mut fill: impl FnMut(usize, &mut [u8])) -> Result<()> {
        assert!(unit <= HALF_BYTES, "units of {unit} bytes");
        let mut start = 0;
        while start < len {
            let wanted = len - start;
            if self.used + wanted > HALF_BYTES && self.used + unit.max(HALF_BYTES / 4) > HALF_BYTES {
                self.turn()?;
            }
            let room = HALF_BYTES - self.used;
            let size = if wanted <= room { wanted } else { room / unit * unit };
            let half = &mut self.halves[self.current];
            let piece = &mut half.memory.as_mut_slice()[self.used..self.used + size];
            fill(start, piece);
            self.gpu.copy_to_device(dst.from(start), piece).map_err(engine_error)?;
            self.used = (self.used + size).next_multiple_of(ALIGN).min(HALF_BYTES);
            start += size;
        }
        Ok(())
    }

    /// Queues dst = src.
    ///
    /// # Errors
    /// As `upload_with`.
    pub fn upload(&mut self, dst: DeviceBytes, src: &[u8]) -> Result<()> {
        self.upload_with(dst, src.len(), 1, |start, piece| piece.copy_from_slice(&src[start..start + piece.len()]))
    }

    /// Goes on with the other buffer, when all copies out of it are done.
    fn turn(&mut self) -> Result<()> {
        self.halves[self.current].copied.record().map_err(engine_error)?;
        self.current ^= 1;
        self.used = 0;
        self.halves[self.current].copied.wait().map_err(engine_error)
    }
}
