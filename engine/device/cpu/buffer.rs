//! Memory of the CPU device: zeroed, aligned to a cache line, of any plain element type.

use bytemuck::{Pod, Zeroable};

use crate::error::EngineError;

/// One cache line; fixes the alignment.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A fixed number of `T`, the first on a 64-byte boundary.
pub struct Buffer<T: Pod> {
    lines: Box<[Line]>,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// `len` zeros. The pages are the system's zero pages until they are written.
    ///
    /// # Errors
    /// `OutOfMemory` naming `what`.
    pub fn zeroed(what: &str, len: usize) -> Result<Buffer<T>, EngineError> {
        let bytes = len.checked_mul(size_of::<T>());
        let lines = bytes.and_then(|bytes| bytemuck::try_zeroed_slice_box::<Line>(bytes.div_ceil(64)).ok());
        let Some(lines) = lines else {
            return Err(EngineError::OutOfMemory {
                what: what.to_owned(),
                needed_bytes: bytes.unwrap_or(usize::MAX),
                available_bytes: super::memory::available().unwrap_or(0),
                hint: "use a shorter context, a smaller batch or a smaller model".to_owned(),
            });
        };
        Ok(Buffer { lines, len, element: std::marker::PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The elements, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
