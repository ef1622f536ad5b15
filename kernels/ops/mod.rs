//! Launchers: check shape, type and alignment, then one unsafe call. One file a group of kernels.

pub mod elementwise;
pub mod gemm;

use crate::sys;

/// Element type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
}

impl DType {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// The value of pagoda.h.
    pub const fn code(self) -> sys::pagoda_dtype {
        match self {
            DType::F32 => sys::PAGODA_F32,
            DType::F16 => sys::PAGODA_F16,
            DType::BF16 => sys::PAGODA_BF16,
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
