//! A dense Hugging Face folder -> the same model in a quantised checkpoint format, one matrix in memory at a time.
//!
//! NF4 as bitsandbytes (MIT) serialises it, so that transformers and vLLM load it as prequantised; AWQ in GEMM packing; GPTQ symmetric,
//! first version. All rounded to nearest. Embedding, head, router, norms and biases stay as they are.

use std::collections::HashMap;
use std::path::Path;

use half::f16;
use serde_json::{Map, Value, json};

use super::at_load::dense_values;
use super::four_bit::{BLOCK, dynamic_map, nested, nf4};
use super::integers::{Integers, through_f16};
use super::packing::{pack_awq, pack_gptq, pack_rows, transposed};
use crate::device::{HostMatrix, HostWeight};
use crate::error::{EngineError, Result};
use crate::weights::checkpoint::Checkpoint;
use crate::weights::json::{checkpoint_error, io_error, read_object};
use crate::weights::quant::books::NF4;
use crate::weights::quant::{Source, find};
use crate::weights::safetensors_file::{Outline, Writer};

/// Scales of a block of double quantisation.
const NESTED_BLOCK: usize = 256;
/// Bytes of a quant_state, which is filled up with spaces.
const STATE_BYTES: usize = 256;
/// Endings of files that hold weights, or what is said of them, and are not copied.
const LEFT_BEHIND: [&str; 6] = [".safetensors", ".safetensors.index.json", ".bin", ".gguf", ".pt", ".pth"];

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// bitsandbytes NF4, blocks of 64.
    Nf4 {
        /// Quantises the factors of the blocks as well.
        double: bool,
    },
    /// AWQ: 4 bits with zero points.
    Awq {
        /// Columns of a group.
        group: usize,
    },
    /// GPTQ: 4 bits, symmetric.
    Gptq {
        /// Columns of a group.
        group: usize,
    },
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of the dense weights.
    pub before_bytes: usize,
    /// Bytes of the file's tensors.
    pub after_bytes: usize,
    /// Matrices that were quantised.
    pub num_quantised: usize,
}

/// Reads the folder `source`, writes the folder `target`; `progress` gets (bytes done, bytes in all) of the source.
///
/// # Errors
/// The source is no dense safetensors checkpoint, a matrix does not fit the format, the target is there and not empty.
pub fn export(source: &Path, target: &Path, format: ExportFormat, progress: &mut dyn FnMut(usize, usize)) -> Result<Exported> {
    let checkpoint = Checkpoint::open(source)?;
    if !source.is_dir() || checkpoint.quantization().is_some() {
        let what = if source.is_dir() { "are quantised already" } else { "are in a .gguf file" };
        return Err(EngineError::Unsupported(format!("{}: the weights {what}; a dense safetensors folder is needed", source.display())));
    }
    prepare(target)?;
    let items = items(&checkpoint, format)?;
    let outlines: Vec<Outline> = items.iter().flat_map(|item| item.outlines.iter().cloned()).collect();
    let (part, file) = (target.join("model.safetensors.part"), target.join("model.safetensors"));
    let mut writer = Writer::create(&part, &outlines).map_err(|error| io_error(&part, error))?;
    let total = items.iter().map(|item| item.bytes).sum();
    let out = Exported {
        before_bytes: total,
        after_bytes: outlines.iter().map(|outline| outline.len).sum(),
        num_quantised: items.iter().filter(|item| item.matrix.is_some()).count(),
    };
    let mut done = 0;
    for item in items {
        done += item.bytes;
        for data in item.data(&checkpoint, format)? {
            writer.push(&data).map_err(|error| io_error(&part, error))?;
        }
        progress(done, total);
    }
    writer.finish().and_then(|()| std::fs::rename(&part, &file)).map_err(|error| io_error(&part, error))?;
    copy_side_files(source, target)?;
    write_config(source, target, format)?;
    Ok(out)
}

fn prepare(target: &Path) -> Result<()> {
    std::fs::create_dir_all(target).map_err(|error| io_error(target, error))?;
    let mut entries = std::fs::read_dir(target).map_err(|error| io_error(target, error))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(checkpoint_error(target, "is not empty; name a new folder")),
    }
}

/// A tensor of the source and what becomes of it.
struct Item {
    name: String,
    /// Rows, columns and stem of a matrix that is quantised.
    matrix: Option<(usize, usize, String)>,
    bytes: usize,
    outlines: Vec<Outline>,
}

fn items(checkpoint: &Checkpoint, format: ExportFormat) -> Result<Vec<Item>> {
    let store = &checkpoint.store;
    let stems: HashMap<String, (usize, usize)> = checkpoint.projections().into_iter().map(|(stem, n, k)| (stem, (n, k))).collect();
    let mut names: Vec<_> = store.tensors.iter().collect();
    names.sort_by_key(|(name, tensor)| (tensor.file, tensor.bytes.as_slice().as_ptr(), (*name).clone()));
    let item = |(name, tensor): (&std::sync::Arc<str>, &crate::weights::store::StoredTensor)| {
        let bytes = tensor.bytes.len();
        let stem = name.strip_suffix(".weight").and_then(|stem| stems.get_key_value(stem));
        let Some((stem, (n, k))) = stem else {
            let outlines = vec![Outline::new(name.to_string(), &tensor.type_name, &tensor.shape, bytes)];
            return Ok(Item { name: name.to_string(), matrix: None, bytes, outlines });
        };
        let outlines = format.outlines(stem, *n, *k).map_err(|reason| store.error(name, reason))?;
        Ok(Item { name: name.to_string(), matrix: Some((*n, *k, stem.clone())), bytes, outlines })
    };
    names.into_iter().map(item).collect()
}

impl Item {
    fn data(&self, checkpoint: &Checkpoint, format: ExportFormat) -> Result<Vec<Vec<u8>>> {
        let Some((n, k, stem)) = &self.matrix else {
            return Ok(vec![checkpoint.store.tensors[self.name.as_str()].bytes.as_slice().to_vec()]);
        };
        let source: Source = find(&checkpoint.store, None, stem, *n, *k)?;
        match source.read()? {
            HostMatrix::Rows(weight) => Ok(format.encode(&weight)),
            HostMatrix::Coded(_) => Err(checkpoint.store.error(&self.name, "is quantised already")),
        }
    }
}

fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
}

/// The JSON of bitsandbytes' quant_state; `offset` is that of double quantisation.
fn nf4_state(n: usize, k: usize, stored: &str, offset: Option<f32>) -> String {
    let dtype = match stored {
        "F16" => "float16",
        "F32" => "float32",
        _ => "bfloat16",
    };
    let nested = offset.map_or(String::new(), |offset| {
        // A fixed width: the outlines are made before the offset is known.
        format!(r#", "nested_blocksize": {NESTED_BLOCK}, "nested_dtype": "float32", "nested_offset": {:.17e}"#, f64::from(offset))
    });
    let state = format!(r#"{{"quant_type": "nf4", "blocksize": {BLOCK}, "dtype": "{dtype}", "shape": [{n}, {k}]{nested}}}"#);
    format!("{state:<STATE_BYTES$}")
}

fn encode_nf4(values: &[f32], weight: &HostWeight, double: bool) -> Vec<Vec<u8>> {
    let bytes = |floats: &[f32]| bytemuck::cast_slice::<f32, u8>(floats).to_vec();
    let blocks = nf4(values, BLOCK);
    let state = |offset| nf4_state(weight.n, weight.k, &format!("{:?}", weight.format), offset).into_bytes();
    if !double {
        return vec![blocks.codes, bytes(&blocks.absmax), bytes(&NF4), state(None)];
    }
    let map = dynamic_map();
    let nested = nested(&blocks.absmax, &map, NESTED_BLOCK);
    vec![blocks.codes, nested.codes, bytes(&nested.absmax), bytes(&map), bytes(&NF4), state(Some(nested.offset))]
}

impl ExportFormat {
    /// The tensors that a matrix becomes.
    fn outlines(self, stem: &str, n: usize, k: usize) -> std::result::Result<Vec<Outline>, String> {
        let of = |suffix: &str, dtype: &str, shape: &[usize], size: usize| {
            Outline::new(format!("{stem}.{suffix}"), dtype, shape, shape.iter().product::<usize>() * size)
        };
        match self {
            ExportFormat::Nf4 { double } => {
                let (packed, blocks) = ((n * k).div_ceil(2), (n * k).div_ceil(BLOCK));
                let mut outlines = vec![of("weight", "U8", &[packed, 1], 1)];
                if double {
                    outlines.push(of("weight.absmax", "U8", &[blocks], 1));
                    outlines.push(of("weight.nested_absmax", "F32", &[blocks.div_ceil(NESTED_BLOCK)], 4));
                    outlines.push(of("weight.nested_quant_map", "F32", &[256], 4));
                } else {
                    outlines.push(of("weight.absmax", "F32", &[blocks], 4));
                }
                outlines.push(of("weight.quant_map", "F32", &[16], 4));
                outlines.push(of("weight.quant_state.bitsandbytes__nf4", "U8", &[STATE_BYTES], 1));
                Ok(outlines)
            }
            ExportFormat::Awq { group } | ExportFormat::Gptq { group } if !k.is_multiple_of(group) || !n.is_multiple_of(8) => {
                let fitting: Vec<String> = [128, 64, 32].iter().filter(|size| k.is_multiple_of(**size)).map(usize::to_string).collect();
                Err(format!(
                    "has shape [{n}, {k}], expected rows in eights and columns in groups of {group}; fitting: {}",
                    fitting.join(", ")
                ))
            }
            ExportFormat::Awq { group } => Ok(vec![
                of("qweight", "I32", &[k, n / 8], 4),
                of("qzeros", "I32", &[k / group, n / 8], 4),
                of("scales", "F16", &[k / group, n], 2),
            ]),
            ExportFormat::Gptq { group } => Ok(vec![
                of("qweight", "I32", &[k / 8, n], 4),
                of("qzeros", "I32", &[k / group, n / 8], 4),
                of("scales", "F16", &[k / group, n], 2),
                of("g_idx", "I32", &[k], 4),
            ]),
        }
    }

    /// The data of those tensors.
    fn encode(self, weight: &HostWeight) -> Vec<Vec<u8>> {
        let (k, values) = (weight.k, dense_values(weight));
        let (group, symmetric) = match self {
            ExportFormat::Nf4 { double } => return encode_nf4(&values, weight, double),
            ExportFormat::Awq { group } => (group, false),
            ExportFormat::Gptq { group } => (group, true),
        };
        let grouped = Integers { bits: 4, group, symmetric, min_zero: 0 }.quantize(&values, k, through_f16);
        let groups = k / group;
        let (zeros, scales) = (transposed(&grouped.zeros, groups), halves(&transposed(&grouped.scales, groups)));
        if !symmetric {
            return vec![pack_awq(&transposed(&grouped.q, k)), pack_awq(&zeros), scales];
        }
        let stored: Vec<u8> = zeros.iter().map(|zero| zero - 1).collect();
        let g_idx = (0..k).flat_map(|column| ((column / group) as i32).to_le_bytes()).collect();
        vec![pack_gptq(&grouped.q, k, 4), pack_rows(&stored, 4), scales, g_idx]
    }

    fn config(self) -> Value {
        match self {
            ExportFormat::Nf4 { double } => json!({
                "quant_method": "bitsandbytes", "_load_in_4bit": true, "_load_in_8bit": false, "load_in_4bit": true, "load_in_8bit": false,
                "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": "bfloat16",
                "bnb_4bit_quant_storage": "uint8", "llm_int8_threshold": 6.0, "llm_int8_skip_modules": null,
                "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false,
            }),
            ExportFormat::Awq { group } => json!({
                "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group, "zero_point": true,
                "modules_to_not_convert": ["lm_head"],
            }),
            ExportFormat::Gptq { group } => json!({
                "quant_method": "gptq", "bits": 4, "group_size": group, "sym": true, "desc_act": false, "checkpoint_format": "gptq",
                "damp_percent": 0.01, "static_groups": false, "true_sequential": true, "lm_head": false,
            }),
        }
    }
}

fn copy_side_files(source: &Path, target: &Path) -> Result<()> {
    let entries = std::fs::read_dir(source).map_err(|error| io_error(source, error))?;
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let kept = name.to_str().is_some_and(|name| name != "config.json" && !LEFT_BEHIND.iter().any(|ending| name.ends_with(ending)));
        if kept && path.is_file() {
            std::fs::copy(&path, target.join(&name)).map_err(|error| io_error(&path, error))?;
        }
    }
    Ok(())
}

fn write_config(source: &Path, target: &Path, format: ExportFormat) -> Result<()> {
    let mut config: Map<String, Value> = read_object(&source.join("config.json"))?;
    config.insert("quantization_config".into(), format.config());
    if !matches!(format, ExportFormat::Nf4 { .. }) {
        // The kernels of other engines for these two take f16 only.
        config.insert("torch_dtype".into(), json!("float16"));
    }
    let path = target.join("config.json");
    let text = format!("{:#}\n", Value::Object(config));
    std::fs::write(&path, text).map_err(|error| io_error(&path, error))
}
