//! Quantised safetensors checkpoints: bitsandbytes, AWQ, GPTQ, Marlin, compressed-tensors, FP8, NVFP4, MXFP4.
//!
//! Every format becomes one form, `CodedMatrix`: codes along k, scales per group, perhaps zero points, perhaps an order of the columns.
//! What a tensor is follows from the tensors that are there (so mixed precision and modules left alone need no rule of their own);
//! `config.rs` adds what they do not say. Knows no device and no model.

mod awq;
mod bitsandbytes;
pub mod blocks;
pub mod books;
pub mod coded;
mod compressed;
pub mod config;
mod floats;
mod gptq;
mod marlin;
mod order;
#[cfg(any(test, feature = "testing"))]
pub mod probe;
pub mod quantize;
mod repack;
pub mod scales;
mod source;
mod wanted;

pub use coded::{Code, CodedMatrix, Zeros};
pub use config::QuantConfig;
pub use quantize::at_load::{AtLoad, LoadFormat};
pub use scales::{ScaleValues, Scales};
pub(crate) use source::{Source, find};
pub use wanted::Quantization;

#[cfg(test)]
mod tests;
