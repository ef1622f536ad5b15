//! `Arena`: memory for weights. It can be put aside: its bytes are kept in pinned host memory, once, and come back to the same addresses.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::gpu::Gpu;
use crate::host_copy::HostCopy;
use crate::mapping::{Content, Mapping, SharedMapping, locked};
use crate::ops::DeviceBytes;
use crate::status::{KernelError, Result};

/// Address space that an arena reserves: more than any GPU has memory. Costs nothing until it is mapped.
const ARENA_SPACE: usize = 1 << 40;
/// Physical memory taken at a time.
const ARENA_STEP: usize = 64 << 20;
/// Every allocation of an arena begins at a multiple of this.
const ARENA_ALIGN: usize = 16;

/// Memory for weights: allocations lie one after another in one range of addresses that grows by mapping memory behind it, so that
/// matrices loaded one after another can be used as one. Nothing is freed before the arena.
pub struct Arena {
    gpu: Arc<Gpu>,
    step: usize,
    mapping: SharedMapping,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: usize,
    /// The bytes on the host.
    copy: Option<HostCopy>,
}

impl Arena {
    /// An empty arena for matrices.
    ///
    /// # Errors
    /// `Driver`.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Arena> {
        Arena::with_step(gpu, ARENA_STEP)
    }

    /// An empty arena that takes about `step` bytes of physical memory at a time.
    ///
    /// # Errors
    /// `Driver`.
    pub fn with_step(gpu: &Arc<Gpu>, step: usize) -> Result<Arena> {
        let mapping = Mapping::reserve(gpu, ARENA_SPACE, Content::Anything)?;
        Ok(Arena { gpu: gpu.clone(), step, mapping, state: Mutex::default() })
    }

    /// The next `len` bytes, not initialised. They stay until the arena is dropped.
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver`.
    pub fn alloc(&self, len: usize) -> Result<DeviceBytes> {
        let mut state = self.state();
        let mut mapping = locked(&self.mapping);
        let end = state.used + len.next_multiple_of(ARENA_ALIGN);
        if end > mapping.len() {
            let more = (end - mapping.len()).max(self.step);
            mapping.grow(&self.gpu, more)?;
        }
        let address = mapping.base() + state.used as u64;
        *state = State { used: end, copy: None };
        // SAFETY: mapped until the arena is dropped, which waits for queued work; the arena outlives its users by its place in the device.
        Ok(unsafe { DeviceBytes::new(address, len) })
    }

    /// Bytes handed out.
    pub fn used(&self) -> usize {
        self.state().used
    }

    /// Keeps what the arena holds in pinned host memory, and waits for it. Does nothing when it is there already: whoever writes to an
    /// allocation afterwards makes a new one first.
    ///
    /// # Errors
    /// `Driver`: the host has not so much memory to pin, or earlier work failed.
    pub fn keep(&self) -> Result<()> {
        let mut state = self.state();
        if state.copy.is_none() && state.used > 0 {
            state.copy = Some(HostCopy::of(&self.gpu, self.bytes(state.used))?);
        }
        Ok(())
    }

    /// Queues the way back of what was kept, to the same addresses. The arena is mapped (`Gpu::map_all`).
    ///
    /// # Errors
    /// `Driver`.
    pub fn restore(&self) -> Result<()> {
        let state = self.state();
        let Some(copy) = &state.copy else {
            let reason = format!("{} bytes were not kept", state.used);
            return if state.used == 0 { Ok(()) } else { Err(KernelError::InvalidArgument { op: "restore", reason }) };
        };
        copy.restore(&self.gpu, self.bytes(state.used))
    }

    fn bytes(&self, len: usize) -> DeviceBytes {
        // SAFETY: as in `alloc`.
        unsafe { DeviceBytes::new(locked(&self.mapping).base(), len) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            locked(&self.mapping).release();
        }
    }
}
