//! Sampling on the device (cuda/sampling.cu). Asynchronous on `stream`.

use super::{DeviceBytes, Stream, check_range, int, launch};
use crate::status::Result;
use crate::sys;

/// Operands of `argmax`.
#[derive(Clone, Copy, Debug)]
pub struct Argmax {
    /// `[num_rows]` i32, written.
    pub tokens: DeviceBytes,
    /// i32, one a sampler slot, written at `slots`.
    pub last_tokens: DeviceBytes,
    /// `[any, vocab]` f32.
    pub logits: DeviceBytes,
    /// `[num_rows]` i32: row of logits.
    pub rows: DeviceBytes,
    /// `[num_rows]` i32: slot of last_tokens.
    pub slots: DeviceBytes,
    /// Rows to sample.
    pub num_rows: usize,
    /// Elements of a row of logits.
    pub vocab: usize,
}

/// tokens[i] = last_tokens[slots[i]] = index of the largest of logits[rows[i], :]; the lowest among equals, NaN never, 0 for nothing.
///
/// # Errors
/// `InvalidArgument` for a range too short, `NotBuilt`, `Cuda`.
pub fn argmax(p: &Argmax, stream: Stream) -> Result<()> {
    const OP: &str = "argmax";
    for (name, range) in [("tokens", p.tokens), ("rows", p.rows), ("slots", p.slots)] {
        check_range(OP, name, range, p.num_rows * 4, 4)?;
    }
    check_range(OP, "last_tokens", p.last_tokens, 0, 4)?;
    check_range(OP, "logits", p.logits, if p.num_rows == 0 { 0 } else { p.vocab * 4 }, 4)?;
    let raw = sys::pagoda_argmax_params {
        tokens: p.tokens.as_ptr(),
        last_tokens: p.last_tokens.as_ptr(),
        logits: p.logits.as_ptr::<f32>(),
        rows: p.rows.as_ptr::<i32>(),
        slots: p.slots.as_ptr::<i32>(),
        num_rows: int(OP, "num_rows", p.num_rows)?,
        vocab: int(OP, "vocab", p.vocab)?,
    };
    launch!(pagoda_argmax, raw, stream)
}
