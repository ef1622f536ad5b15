//! Launchers: check shape, type and alignment, then one unsafe call. One file a group of kernels.

pub mod attention;
pub mod attention_decode;
pub mod blocks;
pub mod elementwise;
pub mod encoder;
pub mod fp4;
pub mod gemm;
pub mod grouped;
pub mod moe;
pub mod sampling;
pub mod step;
pub mod w4;
pub mod w4_gemm;
pub mod w4_quantize;
pub mod w8;
pub mod wide;

use crate::status::{KernelError, Result};
use crate::sys;

/// What pagoda.h asks of every pointer to a matrix.
const ALIGNMENT: u64 = 16;

/// Calls `pagoda_$name(&raw, stream)` of sys.rs and turns its status into a result; without kernels: `NotBuilt`.
macro_rules! launch {
    ($name:ident, $raw:expr, $stream:expr) => {{
        #[cfg(have_cuda_kernels)]
        {
            let raw = $raw;
            // SAFETY: the caller checked shapes, lengths and alignment; that ranges and stream are alive is the promise of their
            // constructors.
            let status = unsafe { crate::sys::$name(&raw, $stream.raw()) };
            crate::status::check(stringify!($name), status, || format!("{raw:?}"))
        }
        #[cfg(not(have_cuda_kernels))]
        {
            let _ = ($raw, $stream);
            Err(crate::status::KernelError::NotBuilt)
        }
    }};
}
pub(crate) use launch;

/// `range` holds `needed` bytes at an aligned address. Integers and floats read one by one only need `alignment` 4.
fn check_range(op: &'static str, name: &str, range: DeviceBytes, needed: usize, alignment: u64) -> Result<()> {
    if range.len() < needed {
        return Err(invalid(op, format!("{name} holds {} bytes, needs {needed}", range.len())));
    }
    if !range.address().is_multiple_of(alignment) || range.address() == 0 {
        return Err(invalid(op, format!("{name} is at {:#x}, expected a multiple of {alignment}", range.address())));
    }
    Ok(())
}

fn invalid(op: &'static str, reason: String) -> KernelError {
    KernelError::InvalidArgument { op, reason }
}

/// A count as C takes it.
fn int(op: &'static str, name: &str, value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| KernelError::Unsupported { op, reason: format!("{name} {value}, at most {}", i32::MAX) })
}

/// Element type of activations, KV caches and vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// e4m3fn, of KV caches alone: their scales lie beside them.
    E4M3,
}

impl DType {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::E4M3 => 1,
        }
    }

    /// The value of pagoda.h.
    pub const fn code(self) -> sys::pagoda_dtype {
        match self {
            DType::F32 => sys::PAGODA_F32,
            DType::F16 => sys::PAGODA_F16,
            DType::BF16 => sys::PAGODA_BF16,
            DType::E4M3 => sys::PAGODA_E4M3,
        }
    }
}

/// A range of device memory, by address. Copying it copies the address, never the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceBytes {
    address: u64,
    len: usize,
}

impl DeviceBytes {
    /// Names `len` bytes of device memory at `address`.
    ///
    /// # Safety
    /// The range is device memory of the context in which launches are made, and stays allocated until the work queued with it is
    /// done. Ranges that a launch writes are not touched by anybody else until then.
    pub const unsafe fn new(address: u64, len: usize) -> DeviceBytes {
        DeviceBytes { address, len }
    }

    /// Bytes of the range.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Start of the range.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// The range from byte `start` on.
    pub fn from(&self, start: usize) -> DeviceBytes {
        assert!(start <= self.len, "byte {start} of {}", self.len);
        DeviceBytes { address: self.address + start as u64, len: self.len - start }
    }

    /// The first `len` bytes of the range.
    pub fn first(&self, len: usize) -> DeviceBytes {
        assert!(len <= self.len, "{len} bytes of {}", self.len);
        DeviceBytes { address: self.address, len }
    }

    /// Both ranges as one, where `next` begins at the end of this one.
    pub fn join(&self, next: DeviceBytes) -> Option<DeviceBytes> {
        (self.address + self.len as u64 == next.address).then_some(DeviceBytes { address: self.address, len: self.len + next.len })
    }

    /// The address as C sees it.
    pub(crate) fn as_ptr<T>(&self) -> *mut T {
        self.address as usize as *mut T
    }
}

/// The queue that a launch goes to.
#[derive(Clone, Copy, Debug)]
pub struct Stream(sys::pagoda_stream);

impl Stream {
    /// Wraps a `CUstream` (the same type as `cudaStream_t`).
    ///
    /// # Safety
    /// `stream` is null (the default stream) or alive, and its context is current on the threads that launch to it.
    pub const unsafe fn from_raw(stream: sys::pagoda_stream) -> Stream {
        Stream(stream)
    }

    /// The raw stream.
    pub const fn raw(self) -> sys::pagoda_stream {
        self.0
    }
}
