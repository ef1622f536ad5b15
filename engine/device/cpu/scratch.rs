//! Scratch memory of a thread, kept between tasks. It grows to the largest request of any op (a weight panel or an attention tile, both of
//! bounded size) and is never given back before the thread ends.

use std::cell::RefCell;

use super::buffer::Buffer;

thread_local! {
    static SCRATCH: RefCell<Option<Buffer<f32>>> = const { RefCell::new(None) };
}

/// Lends `len` floats of unspecified content to `body`. Does not nest.
pub fn with_scratch<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.as_ref().is_none_or(|buffer| buffer.len() < len) {
            *scratch = Some(Buffer::zeroed("scratch of a cpu thread", len).expect("a scratch of bounded size fits in memory"));
        }
        let buffer = scratch.as_mut().expect("filled above");
        body(&mut buffer.as_mut_slice()[..len])
    })
}
