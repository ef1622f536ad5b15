//! The tiny Qwen2 checkpoint in every quantised checkpoint format, bit for bit as `tests/golden` had them made.
//!
//! Only the projections are quantised, rounded to nearest. The act order of GPTQ is a stand-in that q, k, v and gate, up share.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Value, json};

use super::noise::noise;
use super::raw_file::{RawTensor, raw_file};
use super::tensors::{TinyTensor, tiny_tensors};
use super::write_tiny;
use crate::weights::quant::books::{FP4, NF4};
use crate::weights::quant::quantize::floats::{fp8_rows, fp8_scale, nvfp4, nvfp4_global, to_e2m1, to_e4m3};
use crate::weights::quant::quantize::four_bit::{dynamic_map, nearest_of, nested, nf4};
use crate::weights::quant::quantize::integers::{Integers, through_f16};
use crate::weights::quant::quantize::packing::{pack_awq, pack_gptq, pack_rows, transposed};

/// The formats.
pub const QUANTISED: [&str; 19] = [
    "awq",
    "gptq-sym",
    "gptq-asym",
    "gptq-desc",
    "gptq-channel",
    "gptq-int8",
    "gptq-v2",
    "bnb-nf4",
    "bnb-nf4-dq",
    "bnb-fp4",
    "fp8-channel",
    "fp8-tensor",
    "fp8-ct-block",
    "fp8-block",
    "nvfp4",
    "nvfp4a16",
    "mxfp4a16",
    "ct-int4",
    "ct-int4-asym",
];

const GROUP: usize = 32;
const FUSED: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];

/// Writes `dir/qwen2-s<seed>-<format>` and returns its path; `format` is one of `QUANTISED`.
pub fn write_quantised(dir: &Path, format: &str, seed: u64) -> PathBuf {
    let plain = write_tiny(dir, "qwen2", seed);
    let folder = dir.join(format!("qwen2-s{seed}-{format}"));
    std::fs::rename(&plain, &folder).expect("the test folder can be renamed");
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("the test folder can be written");
    put("model.safetensors", &raw_file(&quantised_tensors(format, seed)));
    let mut config = super::tiny_config("qwen2");
    config["quantization_config"] = quantization_config(format);
    if is_half(format) {
        config["torch_dtype"] = json!("float16");
    }
    put("config.json", config.to_string().as_bytes());
    folder
}

/// AWQ and GPTQ checkpoints are f16 throughout.
fn is_half(format: &str) -> bool {
    format.starts_with("awq") || format.starts_with("gptq")
}

fn quantised_tensors(format: &str, seed: u64) -> Vec<RawTensor> {
    let tensors = tiny_tensors("qwen2", seed);
    let mut out = Vec::new();
    for tensor in &tensors {
        match projection(&tensor.name) {
            Some(projection) => {
                let absmax = absmax_of_fused(&tensors, &tensor.name, projection);
                let matrix = Matrix { name: &tensor.name, values: tensor.values(), n: tensor.shape[0], k: tensor.shape[1], absmax };
                let stem = tensor.name.strip_suffix("weight").expect("projections end so");
                out.extend(matrix.quantise(format).into_iter().map(|mut part| {
                    part.name = format!("{stem}{}", part.name);
                    part
                }));
            }
            None if is_half(format) => {
                out.push(RawTensor::new(&tensor.name, "F16", &tensor.shape, halves(&tensor.values())));
            }
            None => {
                let bytes = tensor.bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
                out.push(RawTensor::new(&tensor.name, "BF16", &tensor.shape, bytes));
            }
        }
    }
    out
}

/// `q_proj` of a projection's weight.
fn projection(name: &str) -> Option<&str> {
    name.strip_suffix(".weight").and_then(|stem| stem.rsplit_once('.')).map(|(_, last)| last).filter(|last| last.ends_with("_proj"))
}

/// Projections that engines fuse share one NVFP4 global scale.
fn absmax_of_fused(tensors: &[TinyTensor], name: &str, projection: &str) -> f32 {
    let mates = FUSED.iter().find(|mates| mates.contains(&projection)).copied().unwrap_or_default();
    let names: Vec<String> = mates.iter().map(|mate| name.replace(projection, mate)).chain([name.to_owned()]).collect();
    let values = tensors.iter().filter(|tensor| names.contains(&tensor.name)).flat_map(TinyTensor::values);
    values.fold(0.0, |max, x| max.max(x.abs()))
}

fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
}

fn brains(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
}

fn singles(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn through_bf16(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

struct Matrix<'a> {
    name: &'a str,
    values: Vec<f32>,
    n: usize,
    k: usize,
    absmax: f32,
}

impl Matrix<'_> {
    fn quantise(&self, format: &str) -> Vec<RawTensor> {
        match format {
            "awq" => self.awq(),
            "bnb-nf4" | "bnb-nf4-dq" | "bnb-fp4" => self.bitsandbytes(format),
            "fp8-channel" | "fp8-tensor" => self.fp8(format),
            "fp8-ct-block" => self.fp8_blocks("weight_scale"),
            "fp8-block" => self.fp8_blocks("weight_scale_inv"),
            "nvfp4" | "nvfp4a16" => self.nvfp4(format),
            "mxfp4a16" => self.mxfp4(),
            "ct-int4" | "ct-int4-asym" => self.packed(format == "ct-int4"),
            other => self.gptq(other),
        }
    }

    fn awq(&self) -> Vec<RawTensor> {
        let (n, k, groups) = (self.n, self.k, self.k / GROUP);
        let grouped = Integers { bits: 4, group: GROUP, symmetric: false, min_zero: 0 }.quantize(&self.values, k, through_f16);
        vec![
            RawTensor::new("qweight", "I32", &[k, n / 8], pack_awq(&transposed(&grouped.q, k))),
            RawTensor::new("qzeros", "I32", &[groups, n / 8], pack_awq(&transposed(&grouped.zeros, groups))),
            RawTensor::new("scales", "F16", &[groups, n], halves(&transposed(&grouped.scales, groups))),
        ]
    }

    /// A stand-in for the order of the Hessian's diagonal, by the bits of some noise: of the layer and what feeds the projection, not of the projection.
    fn act_order(&self) -> Vec<usize> {
        let projection = projection(self.name).expect("only projections are quantised");
        let lead = FUSED.iter().find(|mates| mates.contains(&projection)).map_or(projection, |mates| mates[0]);
        let name = self.name.replace(&format!("{projection}.weight"), lead);
        let keys = noise(7, &name, self.k, 1.0, 0.0);
        let mut order: Vec<usize> = (0..self.k).collect();
        order.sort_by_key(|column| keys[*column]);
        order
    }

    fn gptq(&self, format: &str) -> Vec<RawTensor> {
        let (n, k) = (self.n, self.k);
        let bits: u32 = if format == "gptq-int8" { 8 } else { 4 };
        let group = if format == "gptq-channel" { k } else { GROUP };
        let symmetric = !["gptq-asym", "gptq-v2"].contains(&format);
        let order = if format == "gptq-desc" { self.act_order() } else { (0..k).collect() };
        let plus = u8::from(format != "gptq-v2");
        let sorted: Vec<f32> = self.values.chunks_exact(k).flat_map(|row| order.iter().map(|column| row[*column])).collect();
        let grouped = Integers { bits, group, symmetric, min_zero: plus }.quantize(&sorted, k, through_f16);
        let (mut q, mut g_idx) = (vec![0; n * k], vec![0i32; k]);
        for (j, column) in order.iter().enumerate() {
            g_idx[*column] = (j / group) as i32;
            (0..n).for_each(|row| q[row * k + column] = grouped.q[row * k + j]);
        }
        let (groups, bits_) = (k / group, bits as usize);
        let zeros: Vec<u8> = transposed(&grouped.zeros, groups).iter().map(|zero| zero - plus).collect();
        vec![
            RawTensor::new("qweight", "I32", &[k * bits_ / 32, n], pack_gptq(&q, k, bits)),
            RawTensor::new("qzeros", "I32", &[groups, n * bits_ / 32], pack_rows(&zeros, bits)),
            RawTensor::new("scales", "F16", &[groups, n], halves(&transposed(&grouped.scales, groups))),
            RawTensor::new("g_idx", "I32", &[k], g_idx.iter().flat_map(|group| group.to_le_bytes()).collect()),
        ]
    }

    fn bitsandbytes(&self, format: &str) -> Vec<RawTensor> {
        let kind = if format == "bnb-fp4" { "fp4" } else { "nf4" };
        let (book, blocks) = match kind {
            "fp4" => (FP4, nearest_of(&FP4, &self.values, 64)),
            _ => (NF4, nf4(&self.values, 64)),
        };
        let mut state = format!(r#"{{"quant_type": "{kind}", "blocksize": 64, "dtype": "bfloat16", "shape": [{}, {}]"#, self.n, self.k);
        let count = blocks.absmax.len();
        let mut tensors = vec![
            RawTensor::new("weight", "U8", &[blocks.codes.len(), 1], blocks.codes),
            RawTensor::new("weight.quant_map", "F32", &[16], singles(&book)),
        ];
        if format.ends_with("dq") {
            let map = dynamic_map();
            let nested = nested(&blocks.absmax, &map, 256);
            state += &format!(r#", "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": {}"#, f64::from(nested.offset));
            tensors.push(RawTensor::new("weight.absmax", "U8", &[count], nested.codes));
            tensors.push(RawTensor::new("weight.nested_absmax", "F32", &[count.div_ceil(256)], singles(&nested.absmax)));
            tensors.push(RawTensor::new("weight.nested_quant_map", "F32", &[256], singles(&map)));
        } else {
            tensors.push(RawTensor::new("weight.absmax", "F32", &[count], singles(&blocks.absmax)));
        }
        state.push('}');
        tensors.push(RawTensor::new(&format!("weight.quant_state.bitsandbytes__{kind}"), "U8", &[state.len()], state.into_bytes()));
        tensors
    }

    fn fp8(&self, format: &str) -> Vec<RawTensor> {
        let (n, k) = (self.n, self.k);
        let (codes, scales, shape) = match format {
            "fp8-channel" => {
                let (codes, scales) = fp8_rows(&self.values, k, through_bf16);
                (codes, scales, vec![n, 1])
            }
            _ => {
                let scale = through_bf16(fp8_scale(self.values.iter().fold(0.0, |max, x| max.max(x.abs()))));
                (self.values.iter().map(|x| to_e4m3(x / scale)).collect(), vec![scale], vec![1])
            }
        };
        let mut tensors =
            vec![RawTensor::new("weight", "F8_E4M3", &[n, k], codes), RawTensor::new("weight_scale", "BF16", &shape, brains(&scales))];
        if format == "fp8-tensor" {
            tensors.push(RawTensor::new("input_scale", "BF16", &[1], brains(&[0.03125])));
        }
        tensors
    }

    fn fp8_blocks(&self, key: &str) -> Vec<RawTensor> {
        const BLOCK: usize = 128;
        let (n, k) = (self.n, self.k);
        let (down, across) = (n.div_ceil(BLOCK), k.div_ceil(BLOCK));
        let mut largest = vec![0.0f32; down * across];
        let block = |i: usize| i / k / BLOCK * across + i % k / BLOCK;
        self.values.iter().enumerate().for_each(|(i, x)| largest[block(i)] = largest[block(i)].max(x.abs()));
        let scales: Vec<f32> = largest.into_iter().map(fp8_scale).collect();
        let codes = self.values.iter().enumerate().map(|(i, x)| to_e4m3(x / scales[block(i)])).collect();
        vec![RawTensor::new("weight", "F8_E4M3", &[n, k], codes), RawTensor::new(key, "F32", &[down, across], singles(&scales))]
    }

    fn nvfp4(&self, format: &str) -> Vec<RawTensor> {
        let (n, k, global) = (self.n, self.k, nvfp4_global(self.absmax));
        let matrix = nvfp4(&self.values, global);
        let mut tensors = vec![
            RawTensor::new("weight_packed", "U8", &[n, k / 2], matrix.codes),
            RawTensor::new("weight_scale", "F8_E4M3", &[n, k / 16], matrix.scales),
            RawTensor::new("weight_global_scale", "F32", &[1], singles(&[global])),
        ];
        if format == "nvfp4" {
            tensors.push(RawTensor::new("input_global_scale", "F32", &[1], singles(&[448.0 * 6.0 / 8.0])));
        }
        tensors
    }

    fn mxfp4(&self) -> Vec<RawTensor> {
        let (n, k) = (self.n, self.k);
        let exponent = |group: &[f32]| {
            let max = group.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            // floor(log2 max) - 2, biased by 127; no group of a tiny checkpoint is all zeros or subnormal.
            (max.to_bits() >> 23).saturating_sub(2) as u8
        };
        let scales: Vec<u8> = self.values.chunks_exact(32).map(exponent).collect();
        let code = |i: usize| to_e2m1(self.values[i] / f32::from_bits(u32::from(scales[i / 32]) << 23));
        let codes = (0..n * k / 2).map(|i| code(2 * i) | code(2 * i + 1) << 4).collect();
        vec![RawTensor::new("weight_packed", "U8", &[n, k / 2], codes), RawTensor::new("weight_scale", "U8", &[n, k / 32], scales)]
    }

    fn packed(&self, symmetric: bool) -> Vec<RawTensor> {
        let (n, k, groups) = (self.n, self.k, self.k / GROUP);
        let mut grouped = Integers { bits: 4, group: GROUP, symmetric, min_zero: 0 }.quantize(&self.values, k, |scale| scale);
        // The scale is rounded after the zero point was chosen from the exact one.
        let stored: Vec<f32> = grouped.scales.iter().map(|scale| through_bf16(*scale)).collect();
        for (i, (q, value)) in grouped.q.iter_mut().zip(&self.values).enumerate() {
            *q = ((value / stored[i / GROUP]).round_ties_even() + f32::from(grouped.zeros[i / GROUP])).clamp(0.0, 15.0) as u8;
        }
        let shape = [n as i64, k as i64].iter().flat_map(|len| len.to_le_bytes()).collect();
        let mut tensors = vec![
            RawTensor::new("weight_packed", "I32", &[n, k / 8], pack_rows(&grouped.q, 4)),
            RawTensor::new("weight_scale", "BF16", &[n, groups], brains(&stored)),
            RawTensor::new("weight_shape", "I64", &[2], shape),
        ];
        if !symmetric {
            // Eight rows a word, word by word along the groups.
            let by_group = pack_rows(&transposed(&grouped.zeros, groups), 4);
            let words: Vec<[u8; 4]> = by_group.as_chunks::<4>().0.to_vec();
            tensors.push(RawTensor::new("weight_zero_point", "I32", &[n / 8, groups], transposed(&words, n / 8).concat()));
        }
        tensors
    }
}

fn quantization_config(format: &str) -> Value {
    let gptq = |group: i64, symmetric: bool, act_order: bool, bits: u32| {
        json!({"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": act_order, "damp_percent": 0.01,
            "static_groups": false, "true_sequential": true, "lm_head": false})
    };
    let bitsandbytes = |kind: &str, double: bool| {
        json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": null})
    };
    let compressed = |format: &str, weights: Value| {
        json!({"quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": null}}})
    };
    let float = |strategy: &str| json!({"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": true, "block_structure": null});
    match format {
        "awq" => {
            json!({"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": GROUP, "zero_point": true, "modules_to_not_convert": null})
        }
        "gptq-sym" => gptq(GROUP as i64, true, false, 4),
        "gptq-asym" => gptq(GROUP as i64, false, false, 4),
        "gptq-desc" => gptq(GROUP as i64, true, true, 4),
        "gptq-channel" => gptq(-1, true, false, 4),
        "gptq-int8" => gptq(GROUP as i64, true, false, 8),
        "gptq-v2" => {
            let mut config = gptq(GROUP as i64, false, false, 4);
            config["checkpoint_format"] = json!("gptq_v2");
            config
        }
        "bnb-nf4" => bitsandbytes("nf4", false),
        "bnb-nf4-dq" => bitsandbytes("nf4", true),
        "bnb-fp4" => bitsandbytes("fp4", false),
        "fp8-channel" => compressed("float-quantized", float("channel")),
        "fp8-tensor" => compressed("float-quantized", float("tensor")),
        "fp8-ct-block" => {
            let mut weights = float("block");
            weights["block_structure"] = json!([128, 128]);
            compressed("float-quantized", weights)
        }
        "fp8-block" => json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}),
        "nvfp4" | "nvfp4a16" => {
            compressed("nvfp4-pack-quantized", json!({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}))
        }
        "mxfp4a16" => compressed("mxfp4-pack-quantized", json!({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32})),
        "ct-int4" => compressed("pack-quantized", json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP})),
        "ct-int4-asym" => compressed(
            "pack-quantized",
            json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": false}),
        ),
        other => panic!("no quantised checkpoint `{other}`; there are {QUANTISED:?}"),
    }
}
