//! `TensorStore`: the tensors of a checkpoint by name, each a view into a mapped file. Filled by `safetensors.rs` or `gguf.rs`.
//!
//! Every complaint names file, tensor and the shape that was expected. Knows no model.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};

use super::format::WeightFormat;
use super::json::checkpoint_error;
use super::mapped::MappedBytes;
use crate::device::HostWeight;
use crate::error::{EngineError, Result};

/// One tensor of a file.
#[derive(Clone)]
pub struct StoredTensor {
    /// Index into `TensorStore::files`.
    pub file: usize,
    /// How its rows are stored; None where no model weight may be stored so.
    pub format: Option<WeightFormat>,
    /// Name of the type, for errors.
    pub type_name: String,
    /// Rows first, columns last.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: MappedBytes,
}

/// Tensors by name.
#[derive(Default)]
pub struct TensorStore {
    /// The mapped files.
    pub files: Vec<PathBuf>,
    /// All tensors of all files.
    pub tensors: HashMap<Arc<str>, StoredTensor>,
}

impl TensorStore {
    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Gives tensors that were saved without the outer `prefix` their full names; `embedding` tells by its stem. False: they have them.
    pub fn name_as_part_of(&mut self, prefix: &str, embedding: &str) -> bool {
        let full = format!("{embedding}.weight");
        let is_bare = full.strip_prefix(prefix).is_some_and(|bare| self.contains(bare) && !self.contains(&full));
        if is_bare {
            let rename = |(name, tensor): (Arc<str>, StoredTensor)| (format!("{prefix}{name}").into(), tensor);
            self.tensors = std::mem::take(&mut self.tensors).into_iter().map(rename).collect();
        }
        is_bare
    }

    /// The file that errors about a missing tensor name: the only one, or the folder of the shards.
    fn origin(&self) -> &Path {
        match self.files.as_slice() {
            [only] => only,
            many => many.first().and_then(|file| file.parent()).unwrap_or(Path::new("")),
        }
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<(&StoredTensor, WeightFormat)> {
        let missing = || checkpoint_error(self.origin(), format!("tensor `{name}` is missing, expected shape {shape:?}"));
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        if tensor.shape != shape {
            return Err(self.tensor_error(tensor, name, format!("has shape {:?}, expected {shape:?}", tensor.shape)));
        }
        let format = tensor.format.ok_or_else(|| {
            self.tensor_error(tensor, name, format!("is of type {}, expected a float or a supported block format", tensor.type_name))
        })?;
        Ok((tensor, format))
    }

    fn tensor_error(&self, tensor: &StoredTensor, name: &str, reason: String) -> EngineError {
        checkpoint_error(&self.files[tensor.file], format!("tensor `{name}` {reason}"))
    }

    /// An error about a tensor, be it there or not.
    pub fn error(&self, name: &str, reason: impl std::fmt::Display) -> EngineError {
        let path = self.tensors.get(name).map_or(self.origin(), |tensor| &self.files[tensor.file]);
        checkpoint_error(path, format!("tensor `{name}` {reason}"))
    }

    /// The matrix `name` of shape `[n, k]`.
    ///
    /// # Errors
    /// It is missing, or its shape or type is not what the model needs.
    pub fn matrix(&self, name: &str, n: usize, k: usize) -> Result<HostWeight> {
        let (tensor, format) = self.get(name, &[n, k])?;
        Ok(HostWeight { name: name.into(), format, n, k, bytes: tensor.bytes.clone() })
    }

    /// Matrix `expert` of the stack `name` of shape `[num_experts, n, k]`.
    ///
    /// # Errors
    /// As `matrix`.
    pub fn expert(&self, name: &str, expert: usize, num_experts: usize, n: usize, k: usize) -> Result<HostWeight> {
        let (tensor, format) = self.get(name, &[num_experts, n, k])?;
        let len = n * format.row_bytes(k);
        let bytes = tensor.bytes.slice(expert * len, len);
        Ok(HostWeight { name: format!("{name}[{expert}]").into(), format, n, k, bytes })
    }

    /// Checks that the vector `name` of `len` elements is there.
    ///
    /// # Errors
    /// It is missing, or its shape or type is wrong.
    pub fn check_vector(&self, name: &str, len: usize) -> Result<usize> {
        self.check_floats(name, &[len])
    }

    fn check_floats(&self, name: &str, shape: &[usize]) -> Result<usize> {
        let (tensor, format) = self.get(name, shape)?;
        match format {
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => Ok(tensor.bytes.len()),
            other => Err(self.tensor_error(tensor, name, format!("is of type {other:?}, expected F32, F16 or BF16"))),
        }
    }

    /// The tensor `name` of one value, or of `len`, in f32.
    ///
    /// # Errors
    /// As `check_vector`.
    pub fn scales(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        match self.tensors.get(name).map(|tensor| tensor.shape.as_slice()) {
            Some([]) => self.floats(name, &[]),
            Some([1]) => self.floats(name, &[1]),
            _ => self.floats(name, &[len]),
        }
    }

    /// The vector `name` of `len` elements in f32.
    ///
    /// # Errors
    /// As `check_vector`.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.floats(name, &[len])
    }

    /// The tensor `name` of this shape in f32, row after row.
    ///
    /// # Errors
    /// As `check_vector`.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.floats(name, shape)
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.check_floats(name, shape)?;
        let (tensor, format) = self.get(name, shape)?;
        let bytes = tensor.bytes.as_slice();
        let pairs = || bytes.as_chunks::<2>().0.iter();
        Ok(match format {
            WeightFormat::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            WeightFormat::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        })
    }
}

/// The weight with its bytes aligned for its elements: as it is in nearly all files, else an owned copy.
pub fn aligned(mut weight: HostWeight) -> HostWeight {
    let align = if weight.format == WeightFormat::F32 { 4 } else { 2 };
    if weight.bytes.as_slice().as_ptr().align_offset(align) != 0 {
        weight.bytes = MappedBytes::from_slice(weight.bytes.as_slice());
    }
    weight
}
