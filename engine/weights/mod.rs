//! From checkpoint files to `HostWeight`s: safetensors and GGUF readers, formats, name tables.
//!
//! Knows files and names; knows no device and no model arithmetic.

pub mod format;
pub mod mapped;
