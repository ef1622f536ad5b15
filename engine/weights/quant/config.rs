//! `quantization_config` of config.json (or quantize_config.json, quant_config.json, hf_quant_config.json beside it): what the tensors
//! themselves do not say, and refusals of what is not read.
//!
//! Keys as transformers (Apache-2.0) and the tools that write them have them.

use std::path::Path;

use serde_json::Value;

use crate::error::{EngineError, Result};
use crate::weights::json::{Fields, read_optional};

/// Largest block and group that a configuration may name.
const MAX_BLOCK: usize = 1 << 20;
/// Most groups of a compressed-tensors configuration, and names of a list.
const MAX_ENTRIES: usize = 4096;
/// Where older tools wrote the configuration, with the method that each file implies.
const SIDE_FILES: [(&str, &str); 3] =
    [("quantize_config.json", "gptq"), ("quant_config.json", "awq"), ("hf_quant_config.json", "modelopt")];

/// What a checkpoint says of its quantisation.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantConfig {
    /// Who made it.
    pub method: Method,
    /// Height and width of FP8 blocks.
    pub block: [usize; 2],
}

/// The methods.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// bitsandbytes, 4 or 8 bits.
    Bitsandbytes,
    /// AWQ in GEMM packing.
    Awq,
    /// GPTQ.
    Gptq(GptqConfig),
    /// Marlin's own layout.
    Marlin,
    /// compressed-tensors.
    CompressedTensors,
    /// FP8 of DeepSeek, Qwen3 and AutoFP8.
    Fp8,
    /// NVIDIA ModelOpt.
    ModelOpt,
}

/// What GPTQ's tensors do not say.
#[derive(Clone, Debug, PartialEq)]
pub struct GptqConfig {
    /// Stored zero points are z ("gptq_v2"), else z - 1.
    pub stores_zero: bool,
    /// Columns of a group; None: all, or as the tensors have it.
    pub group_size: Option<usize>,
}

impl Method {
    /// Lower-case name, as `quant_method` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Bitsandbytes => "bitsandbytes",
            Method::Awq => "awq",
            Method::Gptq(_) => "gptq",
            Method::Marlin => "marlin",
            Method::CompressedTensors => "compressed-tensors",
            Method::Fp8 => "fp8",
            Method::ModelOpt => "modelopt",
        }
    }
}

/// Reads the configuration of a folder; `fields` is its config.json. None: the weights are not quantised.
///
/// # Errors
/// A key is out of range, or says something that is not supported: the error names it and what is.
pub fn read(folder: &Path, fields: &Fields) -> Result<Option<QuantConfig>> {
    for key in ["quantization_config", "compression_config"] {
        if let Some(object) = fields.opt_object(key)? {
            return parse(&object, None).map(Some);
        }
    }
    for (file, method) in SIDE_FILES {
        let path = folder.join(file);
        if let Some(map) = read_optional(&path)? {
            let fields = Fields::new(&path, map);
            let inner = fields.opt_object("quantization")?;
            return parse(&inner.unwrap_or(fields), Some(method)).map(Some);
        }
    }
    Ok(None)
}

/// The configuration in an object; `implied` is the method where the object has no `quant_method`.
///
/// # Errors
/// As `read`.
pub fn parse(fields: &Fields, implied: Option<&str>) -> Result<QuantConfig> {
    let name = fields.opt_text("quant_method")?.or(implied).unwrap_or("").to_lowercase();
    let mut block = [128, 128];
    let method = match name.as_str() {
        "bitsandbytes" => bitsandbytes(fields)?,
        "awq" => awq(fields)?,
        "gptq" => gptq(fields)?,
        "marlin" => {
            check_bits(fields, &[4])?;
            Method::Marlin
        }
        "compressed-tensors" => {
            block = compressed(fields)?;
            Method::CompressedTensors
        }
        "fp8" | "fbgemm_fp8" => {
            check_word(fields, "fmt", &["e4m3", "float8_e4m3fn"])?;
            check_word(fields, "activation_scheme", &["dynamic", "static"])?;
            block = block_of(fields, "weight_block_size")?.unwrap_or(block);
            Method::Fp8
        }
        "modelopt" | "modelopt_fp4" => {
            check_word(fields, "quant_algo", &["NVFP4", "FP8"])?;
            Method::ModelOpt
        }
        other => {
            let supported = "bitsandbytes, awq, gptq, marlin, compressed-tensors, fp8, modelopt";
            return Err(unsupported(fields, "quant_method", &format!("`{other}`"), supported));
        }
    };
    Ok(QuantConfig { method, block })
}

fn unsupported(fields: &Fields, key: &str, found: &str, supported: &str) -> EngineError {
    EngineError::Unsupported(fields.error(key, format_args!("is {found}; supported are {supported}")).to_string())
}

/// A word, if present, must be one of these, whatever its case.
fn check_word(fields: &Fields, key: &str, words: &[&str]) -> Result<()> {
    match fields.opt_text(key)? {
        Some(word) if !words.iter().any(|known| known.eq_ignore_ascii_case(word)) => {
            Err(unsupported(fields, key, &format!("`{word}`"), &words.join(", ")))
        }
        _ => Ok(()),
    }
}

fn check_bits(fields: &Fields, bits: &[usize]) -> Result<()> {
    for key in ["bits", "w_bit"] {
        if let Some(found) = fields.opt_size(key, 64)?.filter(|found| !bits.contains(found)) {
            let supported: Vec<String> = bits.iter().map(usize::to_string).collect();
            return Err(unsupported(fields, key, &found.to_string(), &format!("{} bits", supported.join(" and "))));
        }
    }
    Ok(())
}

fn bitsandbytes(fields: &Fields) -> Result<Method> {
    check_word(fields, "bnb_4bit_quant_type", &["nf4", "fp4"])?;
    check_word(fields, "bnb_4bit_quant_storage", &["uint8"])?;
    Ok(Method::Bitsandbytes)
}

fn awq(fields: &Fields) -> Result<Method> {
    check_bits(fields, &[4])?;
    check_word(fields, "version", &["gemm"])?;
    if fields.opt_flag("zero_point")? == Some(false) {
        return Err(unsupported(fields, "zero_point", "false", "AWQ with zero points"));
    }
    Ok(Method::Awq)
}

fn gptq(fields: &Fields) -> Result<Method> {
    check_bits(fields, &[4, 8])?;
    check_word(fields, "checkpoint_format", &["gptq", "gptq_v2", "marlin"])?;
    let format = fields.opt_text("checkpoint_format")?.unwrap_or("gptq");
    if format == "marlin" || fields.opt_flag("is_marlin_format")? == Some(true) {
        return Ok(Method::Marlin);
    }
    // -1 stands for all columns.
    let group_size = match fields.get("group_size").and_then(Value::as_i64) {
        Some(-1) => None,
        _ => fields.opt_size("group_size", MAX_BLOCK)?,
    };
    Ok(Method::Gptq(GptqConfig { stores_zero: format == "gptq_v2", group_size }))
}

/// Two sizes, if present.
fn block_of(fields: &Fields, key: &str) -> Result<Option<[usize; 2]>> {
    let Some(list) = fields.opt_list(key, MAX_ENTRIES)? else { return Ok(None) };
    let sizes: Option<Vec<usize>> = list.iter().map(|size| size.as_u64().map(|size| size as usize)).collect();
    match sizes.as_deref() {
        Some(&[height, width]) if (1..=MAX_BLOCK).contains(&height) && (16..=MAX_BLOCK).contains(&width) => Ok(Some([height, width])),
        _ => Err(fields.error(key, format_args!("is no pair of a height from 1 and a width from 16 to {MAX_BLOCK}"))),
    }
}

/// Checks every group of a compressed-tensors configuration; the block of those that have one.
fn compressed(fields: &Fields) -> Result<[usize; 2]> {
    let formats = [
        "pack-quantized",
        "int-quantized",
        "float-quantized",
        "naive-quantized",
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
        "mixed-precision",
        "dense",
    ];
    check_word(fields, "format", &formats)?;
    check_word(fields, "quantization_status", &["compressed", "frozen"])?;
    if let Some(sparsity) = fields.opt_object("sparsity_config")? {
        check_word(&sparsity, "format", &["dense"])?;
    }
    let mut block = None;
    let Some(groups) = fields.opt_object("config_groups")? else { return Ok([128, 128]) };
    for name in groups.keys(MAX_ENTRIES)? {
        let Some(group) = groups.opt_object(&name)? else { continue };
        check_word(&group, "format", &formats)?;
        let Some(weights) = group.opt_object("weights")? else { continue };
        if let Some(bits) = weights.opt_size("num_bits", 64)?.filter(|bits| ![4, 8].contains(bits)) {
            return Err(unsupported(&weights, "num_bits", &bits.to_string(), "4 and 8 bits"));
        }
        check_word(&weights, "strategy", &["tensor", "channel", "group", "block", "tensor_group"])?;
        if let Some(found) = block_of(&weights, "block_structure")? {
            if block.is_some_and(|block| block != found) {
                return Err(unsupported(&weights, "block_structure", &format!("{found:?} beside {block:?}"), "blocks of one size"));
            }
            block = Some(found);
        }
    }
    Ok(block.unwrap_or([128, 128]))
}
