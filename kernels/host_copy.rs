//! A copy of GPU memory in pinned host memory, at the full speed of the bus both ways.
//!
//! Pinning is slow where the system has yet to find and clear the pages: threads touch them first, large ones where there are such, and a
//! piece is pinned while the one before it is copied.

use std::sync::Arc;

use cudarc::driver::sys;
use memmap2::MmapMut;

use crate::context::driver_error;
use crate::gpu::Gpu;
use crate::ops::DeviceBytes;
use crate::status::{KernelError, Result};

/// Bytes pinned at a time.
const PIECE_BYTES: usize = 512 << 20;
/// Threads that touch pages.
const MAX_THREADS: usize = 16;
/// Smallest page that any system has.
const PAGE_BYTES: usize = 4096;

/// Pinned memory, reached by copies alone.
struct Piece {
    memory: MmapMut,
    len: usize,
}

impl Piece {
    fn pinned(len: usize) -> Result<Piece> {
        let refused = |error: std::io::Error| KernelError::Driver(format!("{len} bytes of host memory: {error}"));
        let mut memory = MmapMut::map_anon(len).map_err(refused)?;
        #[cfg(target_os = "linux")]
        // Without large pages it only takes longer.
        let _ = memory.advise(memmap2::Advice::HugePage);
        touch(&mut memory);
        // SAFETY: the pages are ours until drop, which unpins them first.
        let answer = unsafe { sys::cuMemHostRegister_v2(memory.as_mut_ptr().cast(), len, 0) };
        answer.result().map_err(|e| driver_error("cuMemHostRegister", e))?;
        Ok(Piece { memory, len })
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: registered in `pinned`, unpinned once; `HostCopy` has waited for the copies.
        let _ = unsafe { sys::cuMemHostUnregister(self.memory.as_mut_ptr().cast()) };
    }
}

/// Makes the system find every page, with several threads.
fn touch(memory: &mut [u8]) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let share = memory.len().div_ceil(threads).next_multiple_of(PAGE_BYTES);
    std::thread::scope(|scope| {
        for part in memory.chunks_mut(share) {
            scope.spawn(|| part.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 0));
        }
    });
}

/// The copy.
pub struct HostCopy {
    gpu: Arc<Gpu>,
    pieces: Vec<Piece>,
}

impl HostCopy {
    /// Copies `src`, and waits for it.
    ///
    /// # Errors
    /// `Driver`: the host has not so much memory to pin, or earlier work failed.
    pub fn of(gpu: &Arc<Gpu>, src: DeviceBytes) -> Result<HostCopy> {
        gpu.bind()?;
        let mut copy = HostCopy { gpu: gpu.clone(), pieces: Vec::new() };
        for start in (0..src.len()).step_by(PIECE_BYTES) {
            let mut piece = Piece::pinned(PIECE_BYTES.min(src.len() - start))?;
            let (to, from, len) = (piece.memory.as_mut_ptr(), src.from(start).address(), piece.len);
            // Before the copy is queued: a piece that is not kept would be unpinned while it is written.
            copy.pieces.push(piece);
            // SAFETY: the piece holds `len` pinned bytes and stays until drop, which waits; `src` is allocated.
            let answer = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, len, gpu.raw_stream()) };
            answer.result().map_err(|e| driver_error("cuMemcpyDtoHAsync", e))?;
        }
        gpu.synchronize()?;
        Ok(copy)
    }

    /// Queues dst = the copy; as long as what it was made of.
    ///
    /// # Errors
    /// `InvalidArgument` when the lengths differ, `Driver`.
    pub fn restore(&self, gpu: &Gpu, dst: DeviceBytes) -> Result<()> {
        gpu.bind()?;
        let len: usize = self.pieces.iter().map(|piece| piece.len).sum();
        if len != dst.len() {
            return Err(KernelError::InvalidArgument { op: "restore", reason: format!("a copy of {len} bytes for {}", dst.len()) });
        }
        for (idx, piece) in self.pieces.iter().enumerate() {
            let to = dst.from(idx * PIECE_BYTES).address();
            // SAFETY: pinned and unchanged until drop, which waits; `dst` is mapped and long enough.
            let answer = unsafe { sys::cuMemcpyHtoDAsync_v2(to, piece.memory.as_ptr().cast(), piece.len, gpu.raw_stream()) };
            answer.result().map_err(|e| driver_error("cuMemcpyHtoDAsync", e))?;
        }
        Ok(())
    }
}

impl Drop for HostCopy {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_err() {
            // What may still be written is left alone.
            std::mem::forget(std::mem::take(&mut self.pieces));
        }
    }
}
