//! CUDA kernels and the only FFI of the project.
//!
//! Layers, each using the ones before it: `sys` (declarations made from include/pagoda.h) -> `status` (codes to errors) ->
//! `heuristics` (shape to launch configuration, pure) -> `ops` (launchers that check their arguments). Beside them the driver, loaded at
//! run time: `context` asks which GPUs there are, `gpu` uses one (stream, copies, events), `memory` and `arena` own memory,
//! `mapping` lends it to others meanwhile, `graph` keeps launches to repeat them, `cublaslt` calls the library of products, `read_rate`
//! measures the memory. Called by `engine/device/cuda`; knows nothing of models, requests or files.
//!
//! Built without nvcc, everything is still here, `available()` is false and every launcher answers `KernelError::NotBuilt`.
#![allow(unsafe_code)]

pub mod arena;
pub mod context;
pub mod cublaslt;
pub mod gpu;
pub mod graph;
pub mod heuristics;
mod host_copy;
mod mapping;
pub mod memory;
pub mod ops;
pub mod read_rate;
pub mod status;
pub mod sys;

pub use arena::Arena;
pub use context::{GpuInfo, probe, runtime_info};
pub use cublaslt::CublasLt;
pub use gpu::{Event, Gpu};
pub use graph::{Capture, Graph};
pub use memory::{DeviceMemory, PinnedMemory};
pub use read_rate::read_rate;
pub use status::{KernelError, Result};

/// Whether this binary holds compiled kernels (it was built with nvcc).
pub const fn available() -> bool {
    cfg!(have_cuda_kernels)
}
