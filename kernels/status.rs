//! From `pagoda_status` to `KernelError`.

use crate::sys;

/// Why a launch did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The binary was built without nvcc.
    #[error("built without CUDA kernels; build with nvcc (see scripts/setup-cuda.sh) to use a GPU")]
    NotBuilt,
    /// An argument contradicts the op's description: our mistake.
    #[error("{op}: invalid argument: {reason}")]
    InvalidArgument {
        /// The op.
        op: &'static str,
        /// Value and what was expected.
        reason: String,
    },
    /// No kernel for this shape or type.
    #[error("{op}: unsupported: {reason}")]
    Unsupported {
        /// The op.
        op: &'static str,
        /// Shape or type.
        reason: String,
    },
    /// The CUDA runtime refused.
    #[error("{op}: CUDA error {code}: {text}")]
    Cuda {
        /// The op.
        op: &'static str,
        /// cudaError_t.
        code: u32,
        /// The runtime's name for it.
        text: String,
    },
    /// The context is broken, by this call or one before it, and every further call will fail.
    #[error("{call}: CUDA error {code}: {text}; the GPU context is lost")]
    Lost {
        /// The op or driver call that said so.
        call: String,
        /// cudaError_t, which is CUresult here.
        code: u32,
        /// The name of the error.
        text: String,
    },
    /// The GPU has not got that much memory.
    #[error("out of memory: {needed} bytes needed, {free} free")]
    OutOfMemory {
        /// Bytes asked for.
        needed: usize,
        /// Bytes that were free.
        free: usize,
    },
    /// The driver refused.
    #[error("CUDA driver: {0}")]
    Driver(String),
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, KernelError>;

/// Turns what launcher `op` returned into a result; `shape` describes the call for the message.
///
/// # Errors
/// One variant for each kind of status but `PAGODA_OK`.
pub fn check(op: &'static str, status: sys::pagoda_status, shape: impl FnOnce() -> String) -> Result<()> {
    match status {
        sys::PAGODA_OK => Ok(()),
        sys::PAGODA_INVALID_ARGUMENT => Err(KernelError::InvalidArgument { op, reason: shape() }),
        sys::PAGODA_UNSUPPORTED => Err(KernelError::Unsupported { op, reason: shape() }),
        code => {
            let (number, text) = (code.saturating_sub(sys::PAGODA_CUDA_ERROR), status_text(code));
            match is_sticky(number) {
                true => Err(KernelError::Lost { call: op.into(), code: number, text }),
                false => Err(KernelError::Cuda { op, code: number, text }),
            }
        }
    }
}

/// Whether an error of the runtime or the driver (the numbers are the same) leaves the context unusable: NVIDIA's descriptions of these say
/// that the process must be ended and started again to use CUDA.
pub(crate) fn is_sticky(code: u32) -> bool {
    /// Uncorrectable memory, contained and uncontained; NVLink.
    const HARDWARE: [u32; 2] = [214, 220];
    /// Illegal address, time-out; destroyed context, assert; stack, instruction, alignment, address space, counter, launch failure; tensor
    /// memory leak.
    const CONTEXT: [u32; 11] = [700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721];
    const UNKNOWN: u32 = 999;
    HARDWARE.contains(&code) || CONTEXT.contains(&code) || code == UNKNOWN
}

/// The name of a status.
#[cfg(have_cuda_kernels)]
fn status_text(status: sys::pagoda_status) -> String {
    // SAFETY: takes any value and answers a pointer to static storage, never null.
    let text = unsafe { sys::pagoda_status_string(status) };
    // SAFETY: static and terminated by zero, see pagoda.h.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The name of a status; without kernels there is nobody to ask.
#[cfg(not(have_cuda_kernels))]
fn status_text(status: sys::pagoda_status) -> String {
    format!("status {status}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_error() {
        let shape = || "hidden 7".to_string();
        assert_eq!(check("op", sys::PAGODA_OK, shape), Ok(()));
        let cases = [
            (sys::PAGODA_INVALID_ARGUMENT, "op: invalid argument: hidden 7"),
            (sys::PAGODA_UNSUPPORTED, "op: unsupported: hidden 7"),
            (sys::PAGODA_CUDA_ERROR + 35, "op: CUDA error 35"),
            (sys::PAGODA_CUDA_ERROR + 700, "op: CUDA error 700"),
        ];
        for (status, expected) in cases {
            let message = check("op", status, shape).expect_err("not ok").to_string();
            assert!(message.starts_with(expected), "{message}");
            assert_eq!(message.ends_with("the GPU context is lost"), status == sys::PAGODA_CUDA_ERROR + 700, "{message}");
        }
    }
}
