//! Memory of a GPU and pinned memory of the host. Each is freed once, on drop, after the work queued before has been waited for.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};

use crate::context::driver_error;
use crate::gpu::Gpu;
use crate::ops::DeviceBytes;
use crate::status::{KernelError, Result};

/// An allocation on a GPU.
pub struct DeviceMemory {
    gpu: Arc<Gpu>,
    address: u64,
    len: usize,
}

impl DeviceMemory {
    /// `len` bytes, zeroed in stream order.
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver`.
    pub fn zeroed(gpu: &Arc<Gpu>, len: usize) -> Result<DeviceMemory> {
        gpu.bind()?;
        // SAFETY: the context is current; freed in drop. At least one granule, so that every allocation has an address.
        let address = unsafe { result::malloc_sync(len.max(256)) }.map_err(|e| memory_error(gpu, len, "cuMemAlloc", e))?;
        let memory = DeviceMemory { gpu: gpu.clone(), address, len };
        gpu.zero(memory.bytes())?;
        Ok(memory)
    }

    /// The whole allocation.
    pub fn bytes(&self) -> DeviceBytes {
        // SAFETY: allocated until drop, which waits for queued work; users of a device keep its buffers while they queue work.
        unsafe { DeviceBytes::new(self.address, self.len) }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            // SAFETY: ours, freed once, and no queued work uses it any more.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

fn memory_error(gpu: &Gpu, needed: usize, call: &str, error: result::DriverError) -> KernelError {
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
    base: u64,
    state: Mutex<ArenaState>,
}

struct ArenaState {
    step: usize,
    used: usize,
    mapped: usize,
    handles: Vec<(sys::CUmemGenericAllocationHandle, usize)>,
    granularity: usize,
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
        gpu.bind()?;
        let properties = properties(gpu);
        let mut granularity = 0;
        let which = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
        // SAFETY: writes one usize to a live local.
        let answer = unsafe { sys::cuMemGetAllocationGranularity(&mut granularity, &properties, which) };
        answer.result().map_err(|e| driver_error("cuMemGetAllocationGranularity", e))?;
        let mut base = 0;
        // SAFETY: writes one address to a live local; reserves addresses only, given back in drop.
        let answer = unsafe { sys::cuMemAddressReserve(&mut base, ARENA_SPACE, 0, 0, 0) };
        answer.result().map_err(|e| driver_error("cuMemAddressReserve", e))?;
        let state = Mutex::new(ArenaState { step, used: 0, mapped: 0, handles: Vec::new(), granularity: granularity.max(1) });
        Ok(Arena { gpu: gpu.clone(), base, state })
    }

    /// The next `len` bytes, not initialised. They stay until the arena is dropped.
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver`.
    pub fn alloc(&self, len: usize) -> Result<DeviceBytes> {
        self.gpu.bind()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let end = state.used + len.next_multiple_of(ARENA_ALIGN);
        if end > state.mapped {
            self.grow(&mut state, end)?;
        }
        let address = self.base + state.used as u64;
        state.used = end;
        // SAFETY: mapped until the arena is dropped, which waits for queued work; the arena outlives its users by its place in the device.
        Ok(unsafe { DeviceBytes::new(address, len) })
    }

    /// Bytes handed out.
    pub fn used(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).used
    }

    fn grow(&self, state: &mut ArenaState, end: usize) -> Result<()> {
        let size = (end - state.mapped).max(state.step).next_multiple_of(state.granularity);
        if state.mapped + size > ARENA_SPACE {
            return Err(KernelError::OutOfMemory { needed: size, free: ARENA_SPACE - state.mapped });
        }
        let properties = properties(&self.gpu);
        let mut handle = 0;
        // SAFETY: writes one handle to a live local.
        let answer = unsafe { sys::cuMemCreate(&mut handle, size, &properties, 0) };
        answer.result().map_err(|e| memory_error(&self.gpu, size, "cuMemCreate", e))?;
        let address = self.base + state.mapped as u64;
        // SAFETY: the range is reserved and not mapped yet; the handle holds `size` bytes.
        let answer = unsafe { sys::cuMemMap(address, size, 0, handle, 0) };
        if let Err(error) = answer.result() {
            // SAFETY: made above, mapped nowhere.
            let _ = unsafe { sys::cuMemRelease(handle) };
            return Err(driver_error("cuMemMap", error));
        }
        state.handles.push((handle, size));
        state.mapped += size;
        let access =
            sys::CUmemAccessDesc { location: properties.location, flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
        // SAFETY: the range was mapped above; one descriptor.
        let answer = unsafe { sys::cuMemSetAccess(address, size, &access, 1) };
        answer.result().map_err(|e| driver_error("cuMemSetAccess", e))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_err() {
            return;
        }
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut address = self.base;
        for &(handle, size) in &state.handles {
            // SAFETY: mapped by `grow` at this address with this size.
            let _ = unsafe { sys::cuMemUnmap(address, size) };
            // SAFETY: made by `grow`, released once.
            let _ = unsafe { sys::cuMemRelease(handle) };
            address += size as u64;
        }
        // SAFETY: reserved in `new` with this size, nothing is mapped in it any more.
        let _ = unsafe { sys::cuMemAddressFree(self.base, ARENA_SPACE) };
    }
}

/// Memory of this GPU, for nobody else.
fn properties(gpu: &Gpu) -> sys::CUmemAllocationProp {
    sys::CUmemAllocationProp {
        type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: sys::CUmemAllocationHandleType_enum::CU_MEM_HANDLE_TYPE_NONE,
        location: sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: gpu.device_id() },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 { compressionType: 0, gpuDirectRDMACapable: 0, usage: 0, reserved: [0; 4] },
    }
}
