//! Memory of the CPU device: zeroed, aligned to a page, of any plain element type.

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::error::EngineError;

/// A fixed number of `T`, the first on a page boundary.
///
/// An anonymous mapping and not the heap: an over-aligned zeroed allocation is written through by the standard library, which would touch
/// a KV pool of gigabytes at start.
pub struct Buffer<T: Pod> {
    pages: MmapMut,
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
        let pages = bytes.and_then(|bytes| MmapMut::map_anon(bytes.max(1)).ok());
        let Some(pages) = pages else {
            return Err(EngineError::OutOfMemory {
                what: what.to_owned(),
                needed_bytes: bytes.unwrap_or(usize::MAX),
                available_bytes: super::memory::available().unwrap_or(0),
                hint: "use a shorter context, a smaller batch or a smaller model".to_owned(),
            });
        };
        Ok(Buffer { pages, len, element: std::marker::PhantomData })
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
        bytemuck::cast_slice(&self.pages[..self.len * size_of::<T>()])
    }

    /// The elements, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.pages[..self.len * size_of::<T>()])
    }
}
