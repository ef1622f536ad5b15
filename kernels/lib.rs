//! CUDA kernels and the only FFI of the project.
//!
//! Layers, each using the ones before it: `sys` (declarations made from include/pagoda.h) -> `status` (codes to errors) ->
//! `heuristics` (shape to launch configuration, pure) -> `ops` (launchers that check their arguments). `context` asks the driver,
//! loaded at run time, which GPUs there are. Called by `engine/device/cuda`; knows nothing of models, requests or files.
//!
//! Built without nvcc, everything is still here, `available()` is false and every launcher answers `KernelError::NotBuilt`.
#![allow(unsafe_code)]

pub mod context;
pub mod heuristics;
pub mod ops;
pub mod status;
pub mod sys;

pub use context::{GpuInfo, probe, runtime_info};
pub use status::{KernelError, Result};

/// Whether this binary holds compiled kernels (it was built with nvcc).
pub const fn available() -> bool {
    cfg!(have_cuda_kernels)
}
