//! The way from host memory to the GPU: pinned buffers in turn, so that copies run beside the host and none is overwritten early.
//!
//! `Staging` takes weights and anything else in pieces; `StepRing` takes the arrays of a step, all in one copy.

use std::sync::Arc;

use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::{Event, Gpu, PinnedMemory};

use super::engine_error;
use crate::error::Result;

/// Bytes of one buffer.
pub(super) const HALF_BYTES: usize = 16 << 20;
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
    /// The driver refuses, earlier work failed, or what `fill` answers.
    pub fn upload_with(
        &mut self,
        dst: DeviceBytes,
        len: usize,
        unit: usize,
        fill: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.pieces(len, unit, fill, |gpu, start, piece| gpu.copy_to_device(dst.from(start), piece).map_err(engine_error))
    }

    /// As `upload_with`, but every piece goes to the start of `room`, which holds `HALF_BYTES`; `then(start, len)` queues what is made of it
    /// before the next one comes.
    ///
    /// # Errors
    /// As `upload_with`, and those of `then`.
    pub fn pass_through(
        &mut self,
        room: DeviceBytes,
        len: usize,
        unit: usize,
        fill: impl FnMut(usize, &mut [u8]) -> Result<()>,
        mut then: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        self.pieces(len, unit, fill, |gpu, start, piece| {
            gpu.copy_to_device(room, piece).map_err(engine_error)?;
            then(start, piece.len())
        })
    }

    fn pieces(
        &mut self,
        len: usize,
        unit: usize,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<()>,
        mut copy: impl FnMut(&Gpu, usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
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
            fill(start, piece)?;
            copy(&self.gpu, start, piece)?;
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
        self.upload_with(dst, src.len(), 1, |start, piece| {
            piece.copy_from_slice(&src[start..start + piece.len()]);
            Ok(())
        })
    }

    /// Goes on with the other buffer, when all copies out of it are done.
    fn turn(&mut self) -> Result<()> {
        self.halves[self.current].copied.record().map_err(engine_error)?;
        self.current ^= 1;
        self.used = 0;
        self.halves[self.current].copied.wait().map_err(engine_error)
    }
}

/// Steps whose arrays may be on their way at once: two that are launched, one that is written, one to spare.
const RING_SLOTS: usize = 4;

struct Slot {
    memory: PinnedMemory,
    /// Behind the last copy out of `memory`.
    copied: Event,
}

/// Pinned memory for the arrays of a few steps.
pub struct StepRing {
    gpu: Arc<Gpu>,
    slots: Vec<Slot>,
    next: usize,
}

impl StepRing {
    /// A ring without room yet.
    pub fn new(gpu: &Arc<Gpu>) -> StepRing {
        StepRing { gpu: gpu.clone(), slots: Vec::new(), next: 0 }
    }

    /// Takes room for steps of `len` bytes: pinned memory is not to be had quickly, so not while steps run.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn reserve(&mut self, len: usize) -> Result<()> {
        if self.slots.iter().any(|slot| slot.memory.as_slice().len() < len) || self.slots.is_empty() {
            let slot = |_| -> Result<Slot> {
                let memory = PinnedMemory::zeroed(&self.gpu, len).map_err(engine_error)?;
                Ok(Slot { memory, copied: Event::untimed(&self.gpu).map_err(engine_error)? })
            };
            self.gpu.synchronize().map_err(engine_error)?;
            self.slots = (0..RING_SLOTS).map(slot).collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// Queues dst = the `len` bytes that `fill` writes; at most as many as were reserved.
    ///
    /// # Errors
    /// The driver refuses, or earlier work failed.
    pub fn upload(&mut self, dst: DeviceBytes, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        let slot = &mut self.slots[self.next];
        self.next = (self.next + 1) % RING_SLOTS;
        slot.copied.wait().map_err(engine_error)?;
        let bytes = &mut slot.memory.as_mut_slice()[..len];
        fill(bytes);
        self.gpu.copy_to_device(dst, bytes).map_err(engine_error)?;
        slot.copied.record().map_err(engine_error)
    }
}
