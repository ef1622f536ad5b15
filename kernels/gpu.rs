//! One GPU in use: its primary context, one stream, memory, copies, events. Called by `engine/device/cuda`.
//!
//! The runtime linked into this binary launches into whatever context is current on the calling thread, so everything here first
//! makes the GPU's primary context current. One stream orders all work; nothing uses the default stream.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use cudarc::driver::{result, sys};

use crate::context::{GpuInfo, driver_error};
use crate::mapping::{Mapping, SharedMapping, locked};
use crate::ops::{DeviceBytes, Stream};
use crate::status::{KernelError, Result};

thread_local! {
    /// The context that this module made current on this thread.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// What a context has of streams, those inside of graphs too: one thread waits for all of them, or any change them.
///
/// The driver does not see to that: a thread in `cuCtxSynchronize` follows what is gone while another instantiates a graph in the same context
/// (driver 580.159, one of four runs of 34 engines in 16 threads). `cublasLtDestroy` waits that way.
static STREAMS: RwLock<()> = RwLock::new(());

/// Held while streams or graphs are made or destroyed.
pub(crate) fn changes_streams() -> RwLockReadGuard<'static, ()> {
    STREAMS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held while something waits for a whole context.
pub(crate) fn waits_for_streams() -> RwLockWriteGuard<'static, ()> {
    STREAMS.write().unwrap_or_else(PoisonError::into_inner)
}

/// A GPU with its stream. Shared by everything that lives on it.
pub struct Gpu {
    info: GpuInfo,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// What can be put aside.
    mappings: Mutex<Vec<Weak<Mutex<Mapping>>>>,
}

// SAFETY: contexts and streams of the driver may be used from any thread in which the context is current; `bind` sees to that.
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver locks its own state.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens GPU `ordinal` of the driver.
    ///
    /// # Errors
    /// `NotBuilt` without kernels, `Driver` without that GPU or when the driver refuses.
    pub fn open(ordinal: usize) -> Result<Arc<Gpu>> {
        if !crate::available() {
            return Err(KernelError::NotBuilt);
        }
        let gpus = crate::context::probe()?;
        let Some(info) = gpus.get(ordinal).cloned() else {
            return Err(KernelError::Driver(match gpus.len() {
                0 => "no NVIDIA GPU or no driver (nvidia-smi shows what is there); use device cpu to run without one".into(),
                num => format!("no GPU {ordinal}, the driver shows {num}"),
            }));
        };
        crate::context::check_driver(&info, crate::context::runtime_info()?.runtime_version)?;
        let device = result::device::get(ordinal as i32).map_err(|e| driver_error("cuDeviceGet", e))?;
        // SAFETY: `device` came from the driver; released in drop.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(|e| driver_error("cuDevicePrimaryCtxRetain", e))?;
        let mut gpu = Gpu { info, device, context, stream: std::ptr::null_mut(), mappings: Mutex::default() };
        // A context that was destroyed meanwhile may have had the same address.
        CURRENT.set(0);
        gpu.bind()?;
        let _changes = changes_streams();
        gpu.stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(|e| driver_error("cuStreamCreate", e))?;
        Ok(Arc::new(gpu))
    }

    /// What the driver says of the GPU.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// Ordinal of the device for allocations.
    pub(crate) fn device_id(&self) -> i32 {
        self.device
    }

    /// Makes the GPU's context current on this thread.
    ///
    /// # Errors
    /// `Driver`.
    pub fn bind(&self) -> Result<()> {
        let wanted = self.context as usize;
        if CURRENT.get() == wanted {
            return Ok(());
        }
        // SAFETY: the context is retained until drop.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| driver_error("cuCtxSetCurrent", e))?;
        CURRENT.set(wanted);
        Ok(())
    }

    /// The stream, for launches by this thread.
    ///
    /// # Errors
    /// `Driver`.
    pub fn stream(&self) -> Result<Stream> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`, and its context is current on this thread now.
        Ok(unsafe { Stream::from_raw(self.stream.cast()) })
    }

    /// The stream as the driver's libraries take it.
    pub(crate) fn raw_stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Free and total bytes of the GPU's memory.
    ///
    /// # Errors
    /// `Driver`.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        result::mem_get_info().map_err(|e| driver_error("cuMemGetInfo", e))
    }

    pub(crate) fn register(&self, mapping: &SharedMapping) {
        let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.retain(|mapping| mapping.strong_count() > 0);
        mappings.push(Arc::downgrade(mapping));
    }

    fn mappings(&self) -> Vec<SharedMapping> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    /// Takes the memory from behind arenas and large allocations of this handle; their addresses stay theirs. What they held is lost, and
    /// nothing may use them until `map_all`.
    ///
    /// # Errors
    /// `Driver`; faults of earlier work show here too, and then nothing is taken.
    pub fn unmap_all(&self) -> Result<()> {
        self.synchronize()?;
        self.mappings().iter().for_each(|mapping| locked(mapping).unmap());
        Ok(())
    }

    /// Gives memory back to what `unmap_all` took it from: zeros, but for arenas, which hold anything. Goes on where an earlier call failed.
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver`.
    pub fn map_all(&self) -> Result<()> {
        self.bind()?;
        self.mappings().iter().try_for_each(|mapping| locked(mapping).map(self))
    }

    /// Waits until everything queued so far is done; reports what went wrong in it.
    ///
    /// # Errors
    /// `Driver`.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| driver_error("cuStreamSynchronize", e))
    }

    /// Queues `range = 0`.
    ///
    /// # Errors
    /// `Driver`.
    pub fn zero(&self, range: DeviceBytes) -> Result<()> {
        self.bind()?;
        if range.is_empty() {
            return Ok(());
        }
        // SAFETY: whoever made `range` promises that it is allocated memory of this GPU.
        let answer = unsafe { result::memset_d8_async(range.address(), 0, range.len(), self.stream) };
        answer.map_err(|e| driver_error("cuMemsetD8Async", e))
    }

    /// Queues a copy of `src` to the start of `dst`. The source must not change until the copy is done: use a pinned buffer and an event.
    /// From memory that is not pinned the driver stages the bytes first, and `src` is free when this returns.
    ///
    /// # Errors
    /// `InvalidArgument` when `dst` is too short, `Driver`.
    pub fn copy_to_device(&self, dst: DeviceBytes, src: &[u8]) -> Result<()> {
        self.bind()?;
        check_len("copy_to_device", dst.len(), src.len())?;
        if src.is_empty() {
            return Ok(());
        }
        // SAFETY: `dst` is allocated and long enough; `src` is kept unchanged by the caller, see above.
        let answer = unsafe { result::memcpy_htod_async(dst.address(), src, self.stream) };
        answer.map_err(|e| driver_error("cuMemcpyHtoDAsync", e))
    }

    /// Queues a copy of the start of `src` into `dst`, and waits for it.
    ///
    /// # Errors
    /// `InvalidArgument` when `src` is too short, `Driver`; faults of earlier work show here too.
    pub fn copy_to_host(&self, dst: &mut [u8], src: DeviceBytes) -> Result<()> {
        self.bind()?;
        check_len("copy_to_host", src.len(), dst.len())?;
        if !dst.is_empty() {
            // SAFETY: `src` is allocated and long enough; `dst` is borrowed until the copy is done, below.
            let answer = unsafe { result::memcpy_dtoh_async(dst, src.address(), self.stream) };
            answer.map_err(|e| driver_error("cuMemcpyDtoHAsync", e))?;
        }
        self.synchronize()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        let _changes = changes_streams();
        // SAFETY: the stream is ours, and nobody can reach it any more.
        let _ = unsafe { result::stream::destroy(self.stream) };
        CURRENT.set(0);
        // SAFETY: retained in `open`, released once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

fn check_len(op: &'static str, has: usize, needs: usize) -> Result<()> {
    if has < needs {
        return Err(KernelError::InvalidArgument { op, reason: format!("the device range holds {has} bytes, needs {needs}") });
    }
    Ok(())
}

/// A mark in the stream that the host can wait for.
pub struct Event {
    gpu: Arc<Gpu>,
    event: sys::CUevent,
}

// SAFETY: an event of the driver may be used from any thread in which its context is current.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that keeps times.
    ///
    /// # Errors
    /// `Driver`.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Event> {
        gpu.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(|e| driver_error("cuEventCreate", e))?;
        Ok(Event { gpu: gpu.clone(), event })
    }

    /// An event that keeps no times: cheaper to record.
    ///
    /// # Errors
    /// `Driver`.
    pub fn untimed(gpu: &Arc<Gpu>) -> Result<Event> {
        gpu.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(|e| driver_error("cuEventCreate", e))?;
        Ok(Event { gpu: gpu.clone(), event })
    }

    /// Whether the mark has passed, or was never recorded. Faults of the work before it count as passed: `wait` reports them.
    pub fn has_passed(&self) -> bool {
        if self.gpu.bind().is_err() {
            return true;
        }
        // SAFETY: the event is alive.
        let answer = unsafe { result::event::query(self.event) };
        !answer.is_err_and(|error| error.0 == sys::CUresult::CUDA_ERROR_NOT_READY)
    }

    /// Marks the end of what is queued now.
    ///
    /// # Errors
    /// `Driver`.
    pub fn record(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: event and stream are alive.
        unsafe { result::event::record(self.event, self.gpu.stream) }.map_err(|e| driver_error("cuEventRecord", e))
    }

    /// Waits for the mark; at once when it was never recorded.
    ///
    /// # Errors
    /// `Driver`.
    pub fn wait(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.event) }.map_err(|e| driver_error("cuEventSynchronize", e))
    }

    /// Milliseconds from `earlier` to this mark; both have passed.
    ///
    /// # Errors
    /// `Driver`.
    pub fn ms_since(&self, earlier: &Event) -> Result<f32> {
        self.gpu.bind()?;
        // SAFETY: both events are alive and keep times.
        unsafe { result::event::elapsed(earlier.event, self.event) }.map_err(|e| driver_error("cuEventElapsedTime", e))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: ours, destroyed once.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
