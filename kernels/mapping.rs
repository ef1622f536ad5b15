//! Addresses with memory behind them that can be taken away and given back. Recorded graphs and matrices keep addresses, so a model that is
//! put aside gives its memory to others and keeps where it was (CUDA's virtual memory management).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;

use crate::context::driver_error;
use crate::gpu::Gpu;
use crate::memory::memory_error;
use crate::ops::DeviceBytes;
use crate::status::{KernelError, Result};

/// What memory holds when it is given back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Zeros,
    Anything,
}

/// Memory of the GPU.
struct Piece {
    handle: sys::CUmemGenericAllocationHandle,
    len: usize,
}

/// A range of addresses; memory lies behind its first `len` bytes, unless it is taken away.
pub struct Mapping {
    base: u64,
    reserved: usize,
    granularity: usize,
    content: Content,
    /// Bytes that have memory behind them, or get it back.
    len: usize,
    /// Bytes of `pieces`.
    mapped: usize,
    /// Memory in the order of addresses.
    pieces: Vec<Piece>,
}

/// A mapping that its owner shares with the `Gpu` that takes its memory away.
pub type SharedMapping = Arc<Mutex<Mapping>>;

/// The mapping: nothing that could panic half-way happens under its lock.
pub fn locked(mapping: &SharedMapping) -> MutexGuard<'_, Mapping> {
    mapping.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mapping {
    /// Addresses for at least `len` bytes, without memory yet. Costs nothing but addresses; whoever owns them calls `release` in the end.
    ///
    /// # Errors
    /// `Driver`.
    pub fn reserve(gpu: &Gpu, len: usize, content: Content) -> Result<SharedMapping> {
        gpu.bind()?;
        let properties = properties(gpu);
        let mut granularity = 0;
        let which = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
        // SAFETY: writes one usize to a live local.
        let answer = unsafe { sys::cuMemGetAllocationGranularity(&mut granularity, &properties, which) };
        answer.result().map_err(|e| driver_error("cuMemGetAllocationGranularity", e))?;
        let granularity = granularity.max(1);
        let reserved = len.next_multiple_of(granularity);
        let mut base = 0;
        // SAFETY: writes one address to a live local; reserves addresses only, given back in `release`.
        let answer = unsafe { sys::cuMemAddressReserve(&mut base, reserved, 0, 0, 0) };
        answer.result().map_err(|e| driver_error("cuMemAddressReserve", e))?;
        let mapping = Mapping { base, reserved, granularity, content, len: 0, mapped: 0, pieces: Vec::new() };
        let mapping = Arc::new(Mutex::new(mapping));
        gpu.register(&mapping);
        Ok(mapping)
    }

    /// The first address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Bytes with memory behind them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Puts memory behind at least `more` further bytes.
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver`.
    pub fn grow(&mut self, gpu: &Gpu, more: usize) -> Result<()> {
        let more = more.next_multiple_of(self.granularity);
        if self.len + more > self.reserved {
            return Err(KernelError::OutOfMemory { needed: more, free: self.reserved - self.len });
        }
        self.map_piece(gpu, more)?;
        self.len = self.mapped;
        Ok(())
    }

    /// Takes the memory away. Nobody uses it: the caller has waited.
    pub fn unmap(&mut self) {
        let mut address = self.base;
        for Piece { handle, len } in self.pieces.drain(..) {
            // SAFETY: mapped by `map_piece` at this address with this size, and no queued work uses it.
            let _ = unsafe { sys::cuMemUnmap(address, len) };
            // SAFETY: made by `map_piece`, released once.
            let _ = unsafe { sys::cuMemRelease(handle) };
            address += len as u64;
        }
        self.mapped = 0;
    }

    /// Puts memory behind all that lacks it, as one piece.
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver`.
    pub fn map(&mut self, gpu: &Gpu) -> Result<()> {
        let missing = self.len - self.mapped;
        if missing == 0 {
            return Ok(());
        }
        self.map_piece(gpu, missing)?;
        if self.content == Content::Zeros {
            // SAFETY: mapped just now; stays so until it is taken away by someone who waits first.
            gpu.zero(unsafe { DeviceBytes::new(self.base + (self.mapped - missing) as u64, missing) })?;
        }
        Ok(())
    }

    /// Gives memory and addresses back, at the end.
    pub fn release(&mut self) {
        self.unmap();
        self.len = 0;
        // SAFETY: reserved in `reserve` with this size, nothing is mapped in it any more; the owner calls this once, in its drop.
        let _ = unsafe { sys::cuMemAddressFree(self.base, self.reserved) };
    }

    fn map_piece(&mut self, gpu: &Gpu, len: usize) -> Result<()> {
        gpu.bind()?;
        let properties = properties(gpu);
        let mut handle = 0;
        // SAFETY: writes one handle to a live local.
        let answer = unsafe { sys::cuMemCreate(&mut handle, len, &properties, 0) };
        answer.result().map_err(|e| memory_error(gpu, len, "cuMemCreate", e))?;
        let address = self.base + self.mapped as u64;
        // SAFETY: the range is reserved and not mapped yet; the handle holds `len` bytes.
        let answer = unsafe { sys::cuMemMap(address, len, 0, handle, 0) };
        if let Err(error) = answer.result() {
            // SAFETY: made above, mapped nowhere.
            let _ = unsafe { sys::cuMemRelease(handle) };
            return Err(driver_error("cuMemMap", error));
        }
        self.pieces.push(Piece { handle, len });
        self.mapped += len;
        let access =
            sys::CUmemAccessDesc { location: properties.location, flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
        // SAFETY: the range was mapped above; one descriptor.
        let answer = unsafe { sys::cuMemSetAccess(address, len, &access, 1) };
        answer.result().map_err(|e| driver_error("cuMemSetAccess", e))
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
