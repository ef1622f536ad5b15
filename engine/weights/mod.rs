//! From checkpoint files to `HostWeight`s: safetensors and GGUF readers, formats, name tables.
//!
//! Knows files and names; knows no device and no model arithmetic.

pub mod checkpoint;
pub mod dequant;
pub mod encoder_checkpoint;
pub(crate) mod encoder_names;
pub mod format;
pub mod gguf;
mod gguf_keys;
mod gguf_model;
mod gguf_text;
pub mod json;
mod kv_scales;
pub mod mapped;
pub(crate) mod names;
pub mod quant;
pub mod safetensors;
pub mod safetensors_file;
pub mod size;
mod store;
pub(crate) mod text_files;

pub use checkpoint::Checkpoint;
pub use names::Names;

#[cfg(test)]
mod tests;
