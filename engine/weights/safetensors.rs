//! safetensors files: the header parser, single files and sharded indexes.
//!
//! Format: 8 bytes little-endian header length, a JSON object `name -> {dtype, shape, data_offsets}`, then the data, which the
//! tensors cover without hole or overlap (huggingface/safetensors, Apache-2.0; types of its crate are used).

use std::collections::BTreeMap;
use std::path::{Component, Path};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value};

use super::format::WeightFormat;
use super::json::{Fields, checkpoint_error, io_error, read_object};
use super::mapped::MappedBytes;
use super::store::{StoredTensor, TensorStore};
use crate::error::Result;

/// Longest header, as in the reference implementation.
pub const MAX_HEADER_BYTES: usize = 100_000_000;
const MAX_DIMS: usize = 8;
const MAX_SHARDS: usize = 4096;
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A tensor of a header: type, shape and its range in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderEntry {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Rows first.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

/// Parses the header of a whole file. Pure; accepts any bytes.
///
/// # Errors
/// What is wrong with the header, naming the tensor. Ranges of an accepted header lie within `bytes` and do not overlap.
pub fn parse_header(bytes: &[u8]) -> std::result::Result<Vec<HeaderEntry>, String> {
    let (prefix, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| format!("has {} bytes, too short for a header", bytes.len()))?;
    let header_len = usize::try_from(u64::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
    if header_len > MAX_HEADER_BYTES {
        return Err(format!("header of {header_len} bytes, at most {MAX_HEADER_BYTES} are read"));
    }
    let (header, data) =
        rest.split_at_checked(header_len).ok_or_else(|| format!("header of {header_len} bytes in a file of {}", bytes.len()))?;
    let map: Map<String, Value> = serde_json::from_slice(header).map_err(|error| format!("header is not a JSON object: {error}"))?;
    let mut entries = Vec::with_capacity(map.len());
    for (name, value) in map {
        if name != "__metadata__" {
            entries.push(parse_entry(name, value, data.len())?);
        }
    }
    check_cover(&mut entries, data.len())?;
    for entry in &mut entries {
        entry.start += 8 + header_len;
    }
    Ok(entries)
}

fn parse_entry(name: String, value: Value, data_len: usize) -> std::result::Result<HeaderEntry, String> {
    let info: TensorInfo = serde_json::from_value(value).map_err(|error| format!("tensor `{name}`: bad header entry: {error}"))?;
    let (start, end) = info.data_offsets;
    if start > end || end > data_len {
        return Err(format!("tensor `{name}`: offsets {start}..{end} do not lie in the {data_len} bytes of data (truncated file?)"));
    }
    if info.shape.len() > MAX_DIMS {
        return Err(format!("tensor `{name}`: {} dimensions, at most {MAX_DIMS}", info.shape.len()));
    }
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, dim| bits.checked_mul(*dim));
    let bytes = bits.filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
    if bytes != Some(end - start) {
        return Err(format!("tensor `{name}`: {} bytes do not hold {:?} of shape {:?}", end - start, info.dtype, info.shape));
    }
    Ok(HeaderEntry { name, dtype: info.dtype, shape: info.shape, start, len: end - start })
}

/// The tensors, in order of offset, follow one another and fill the data.
fn check_cover(entries: &mut [HeaderEntry], data_len: usize) -> std::result::Result<(), String> {
    entries.sort_by_key(|entry| (entry.start, entry.len));
    let (mut end, mut before) = (0, "the header");
    for entry in entries.iter() {
        if entry.start < end {
            return Err(format!("tensor `{}`: starts at {} inside `{before}`, which ends at {end}", entry.name, entry.start));
        }
        if entry.start > end {
            return Err(format!("tensor `{}`: starts at {}, expected {end} (a hole)", entry.name, entry.start));
        }
        (end, before) = (entry.start + entry.len, &entry.name);
    }
    if end != data_len {
        return Err(format!("{} bytes after the last tensor", data_len - end));
    }
    Ok(())
}

/// Opens the weights of a Hugging Face folder.
///
/// # Errors
/// No weights are there, or a file is damaged; the error names it.
pub fn open_folder(folder: &Path) -> Result<TensorStore> {
    let mut store = TensorStore::default();
    let single = folder.join(SINGLE);
    let index = folder.join(INDEX);
    if single.exists() {
        for (name, tensor) in open_file(&mut store, &single)? {
            store.tensors.insert(name.into(), tensor);
        }
    } else if index.exists() {
        open_shards(&mut store, folder, &index)?;
    } else {
        let pickle = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| folder.join(name).exists());
        let hint = if pickle { "; pytorch_model.bin is not read, convert it to safetensors" } else { "" };
        return Err(checkpoint_error(folder, format!("holds neither {SINGLE} nor {INDEX}{hint}")));
    }
    Ok(store)
}

fn open_shards(store: &mut TensorStore, folder: &Path, index: &Path) -> Result<()> {
    let fields = Fields::new(index, read_object(index)?);
    let map = fields.get("weight_map").and_then(Value::as_object).ok_or_else(|| fields.error("weight_map", "is missing or no object"))?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| checkpoint_error(index, format!("tensor `{tensor}` has no file name")))?;
        if !is_plain_name(file) {
            return Err(checkpoint_error(index, format!("tensor `{tensor}`: `{file}` is not the name of a file in the folder")));
        }
        shards.entry(file).or_default().push(tensor);
    }
    if shards.len() > MAX_SHARDS {
        return Err(checkpoint_error(index, format!("{} files, at most {MAX_SHARDS}", shards.len())));
    }
    for (file, names) in shards {
        let path = folder.join(file);
        let mut tensors: BTreeMap<String, StoredTensor> = open_file(store, &path)?.into_iter().collect();
        for name in names {
            let missing = || checkpoint_error(&path, format!("tensor `{name}` is missing, {INDEX} says it is here"));
            store.tensors.insert(name.into(), tensors.remove(name).ok_or_else(missing)?);
        }
    }
    Ok(())
}

/// One path component that is neither `.` nor `..` and has no separator of any system.
fn is_plain_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) && !file.contains(['/', '\\', ':', '\0'])
}

/// Maps one file, adds it to the store's files, and returns its tensors.
pub(super) fn open_file(store: &mut TensorStore, path: &Path) -> Result<Vec<(String, StoredTensor)>> {
    let bytes = MappedBytes::open(path).map_err(|error| io_error(path, error))?;
    tensors_of(store, path, &bytes).map_err(|reason| checkpoint_error(path, reason))
}

/// The tensors of a file's bytes; `path` is for messages.
pub(super) fn tensors_of(
    store: &mut TensorStore,
    path: &Path,
    bytes: &MappedBytes,
) -> std::result::Result<Vec<(String, StoredTensor)>, String> {
    let entries = parse_header(bytes.as_slice())?;
    let file = store.files.len();
    store.files.push(path.to_owned());
    let tensor = |entry: HeaderEntry| StoredTensor {
        file,
        format: weight_format(entry.dtype),
        type_name: format!("{:?}", entry.dtype),
        shape: entry.shape,
        bytes: bytes.slice(entry.start, entry.len),
    };
    Ok(entries.into_iter().map(|entry| (entry.name.clone(), tensor(entry))).collect())
}

fn weight_format(dtype: Dtype) -> Option<WeightFormat> {
    match dtype {
        Dtype::F32 => Some(WeightFormat::F32),
        Dtype::F16 => Some(WeightFormat::F16),
        Dtype::BF16 => Some(WeightFormat::BF16),
        _ => None,
    }
}
