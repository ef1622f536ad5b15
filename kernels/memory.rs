//! Memory of a GPU and pinned memory of the host. Each is freed once, on drop, after the work queued before has been waited for.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::context::driver_error;
use crate::gpu::Gpu;
use crate::mapping::{Content, Mapping, SharedMapping, locked};
use crate::ops::DeviceBytes;
use crate::status::{KernelError, Result};

/// Allocations of at least so many bytes can be put aside (`Gpu::unmap_all`): one granule of mappings.
const MAPPED_BYTES: usize = 2 << 20;

/// An allocation on a GPU.
pub struct DeviceMemory {
    gpu: Arc<Gpu>,
    address: u64,
    len: usize,
    /// What is behind the addresses of a large one; a small one is the driver's.
    mapping: Option<SharedMapping>,
}

impl DeviceMemory {
    /// `len` bytes, zeroed in stream order.
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver`.
    pub fn zeroed(gpu: &Arc<Gpu>, len: usize) -> Result<DeviceMemory> {
        gpu.bind()?;
        let memory = if len >= MAPPED_BYTES { Self::mapped(gpu, len)? } else { Self::small(gpu, len)? };
        gpu.zero(memory.bytes())?;
        Ok(memory)
    }

    fn small(gpu: &Arc<Gpu>, len: usize) -> Result<DeviceMemory> {
        // SAFETY: the context is current; freed in drop. At least one granule, so that every allocation has an address.
        let address = unsafe { result::malloc_sync(len.max(256)) }.map_err(|e| memory_error(gpu, len, "cuMemAlloc", e))?;
        Ok(DeviceMemory { gpu: gpu.clone(), address, len, mapping: None })
    }

    fn mapped(gpu: &Arc<Gpu>, len: usize) -> Result<DeviceMemory> {
        let mapping = Mapping::reserve(gpu, len, Content::Zeros)?;
        let address = {
            let mut mapping = locked(&mapping);
            if let Err(error) = mapping.grow(gpu, len) {
                mapping.release();
                return Err(error);
            }
            mapping.base()
        };
        Ok(DeviceMemory { gpu: gpu.clone(), address, len, mapping: Some(mapping) })
    }

    /// The whole allocation.
    pub fn bytes(&self) -> DeviceBytes {
        // SAFETY: allocated until drop, which waits for queued work; users of a device keep its buffers while they queue work.
        unsafe { DeviceBytes::new(self.address, self.len) }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_err() {
            return;
        }
        match &self.mapping {
            Some(mapping) => locked(mapping).release(),
            None => {
                // SAFETY: ours, freed once, and no queued work uses it any more.
                let _ = unsafe { result::free_sync(self.address) };
            }
        }
    }
}

pub(crate) fn memory_error(gpu: &Gpu, needed: usize, call: &str, error: result::DriverError) -> KernelError {
    if error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return driver_error(call, error);
    }
    KernelError::OutOfMemory { needed, free: gpu.memory().map_or(0, |m| m.0) }
}

/// Pinned host memory: copies from and to it run beside the host.
pub struct PinnedMemory {
    gpu: Arc<Gpu>,
    pointer: *mut u8,
    len: usize,
}

// SAFETY: plain memory, reached only through `&self` and `&mut self`.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// `len` bytes, zeroed.
    ///
    /// # Errors
    /// `Driver`.
    pub fn zeroed(gpu: &Arc<Gpu>, len: usize) -> Result<PinnedMemory> {
        gpu.bind()?;
        // SAFETY: the context is current; freed in drop.
        let pointer = unsafe { result::malloc_host(len.max(1), 0) }.map_err(|e| driver_error("cuMemHostAlloc", e))?.cast::<u8>();
        // SAFETY: the allocation has at least `len` bytes.
        unsafe { std::ptr::write_bytes(pointer, 0, len.max(1)) };
        Ok(PinnedMemory { gpu: gpu.clone(), pointer, len })
    }

    /// The bytes as the GPU sees them. Work that writes them is waited for before `as_slice` is read.
    pub fn device_bytes(&self) -> DeviceBytes {
        // SAFETY: pinned memory has one address for host and GPU (unified addressing), and stays until drop, which waits for queued work.
        unsafe { DeviceBytes::new(self.pointer as u64, self.len) }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: allocated and initialised for `len` bytes, borrowed from self.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, exclusively borrowed from self.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            // SAFETY: ours, freed once, and no queued copy uses it any more.
            let _ = unsafe { result::free_host(self.pointer.cast()) };
        }
    }
}
