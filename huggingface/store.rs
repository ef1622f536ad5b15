//! `Store`: the safetensors files of a folder. Reads headers first and each tensor when it is asked for, so that nothing is in memory twice.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::serve::{Fault, fault};

/// Longest header of a file.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Where a tensor lies.
struct Place {
    file: usize,
    dtype: DType,
    shape: Vec<usize>,
    offset: u64,
}

/// The tensors of a checkpoint.
pub struct Store {
    folder: PathBuf,
    files: Vec<File>,
    places: HashMap<String, Place>,
}

impl Store {
    /// Opens model.safetensors, or the files that model.safetensors.index.json names.
    ///
    /// # Errors
    /// No such files, or a damaged header.
    pub fn open(folder: &Path) -> Result<Store, Fault> {
        let mut store = Store { folder: folder.to_owned(), files: Vec::new(), places: HashMap::new() };
        for name in file_names(folder)? {
            let path = folder.join(&name);
            store.add(&path).map_err(|error| Fault::from(std::io::Error::other(format!("{}: {error}", path.display()))))?;
        }
        Ok(store)
    }

    fn add(&mut self, path: &Path) -> Result<(), Fault> {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES {
            return fault(format!("a header of {length} bytes is too long"));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header)?;
        let Ok(Value::Object(header)) = serde_json::from_slice(&header) else { return fault("the header is no JSON object") };
        let (index, len) = (self.files.len(), file.metadata()?.len());
        for (name, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let place = place(entry, index, 8 + length, len);
            let Some(place) = place else { return fault(format!("tensor `{name}`: damaged, or a type that is not f32, f16 or bf16")) };
            self.places.insert(name.clone(), place);
        }
        self.files.push(file);
        Ok(())
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// A tensor in host memory, as it is stored.
    ///
    /// # Errors
    /// It is missing, has another shape, or cannot be read.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, Fault> {
        let Some(place) = self.places.get(name) else { return fault(format!("{}: holds no tensor `{name}`", self.folder.display())) };
        if place.shape != shape {
            return fault(format!("{}: tensor `{name}` is {:?}, expected {shape:?}", self.folder.display(), place.shape));
        }
        let mut bytes = vec![0; shape.iter().product::<usize>() * place.dtype.size_in_bytes()];
        self.files[place.file].read_exact_at(&mut bytes, place.offset)?;
        Ok(Tensor::from_raw_buffer(&bytes, place.dtype, shape, &Device::Cpu)?)
    }
}

/// One tensor of a header; None: it is not what it should be.
fn place(entry: &Value, file: usize, data_start: u64, file_len: u64) -> Option<Place> {
    let dtype = match entry["dtype"].as_str()? {
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        // Buffers that models do not read, as masks of attention.
        "BOOL" | "U8" => DType::U8,
        "I64" => DType::I64,
        _ => return None,
    };
    let shape: Vec<usize> = entry["shape"].as_array()?.iter().map(|size| size.as_u64().map(|size| size as usize)).collect::<Option<_>>()?;
    let (begin, end) = (entry["data_offsets"][0].as_u64()?, entry["data_offsets"][1].as_u64()?);
    let num_bytes = shape.iter().try_fold(dtype.size_in_bytes(), |product, size| product.checked_mul(*size))?;
    let fits = end.checked_sub(begin) == Some(num_bytes as u64) && data_start.checked_add(end)? <= file_len;
    fits.then_some(Place { file, dtype, shape, offset: data_start + begin })
}

fn file_names(folder: &Path) -> Result<Vec<String>, Fault> {
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec!["model.safetensors".into()]);
    }
    let index: Value = serde_json::from_slice(&std::fs::read(&index)?).map_err(std::io::Error::from)?;
    let Some(map) = index["weight_map"].as_object() else { return fault("model.safetensors.index.json: holds no `weight_map`") };
    let mut names: Vec<String> = map.values().filter_map(Value::as_str).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    // A name is one in this folder.
    match names.iter().find(|name| name.contains('/')) {
        Some(name) => fault(format!("model.safetensors.index.json: `{name}` is no file of the folder")),
        None => Ok(names),
    }
}
