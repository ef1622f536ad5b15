//! Tiny GGUF files: the weights of a tiny checkpoint under GGUF names, quantised, with metadata and vocabulary.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::quantise::quantise;
use super::tensors::{TinyTensor, tiny_tensors};
use super::tokenizer::vocabulary;
use super::{CHAT_TEMPLATE, VOCAB, archs};
use crate::weights::format::WeightFormat;

/// The tiny GGUF files.
pub const GGUFS: [&str; 5] = ["llama-q4_k_m", "llama-q8_0", "llama-q5_k", "qwen2-q5_1", "qwen2-q4_0"];

const ALIGNMENT: usize = 32;

/// Hugging Face stem, GGUF stem.
const STEMS: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Writes `dir/<name>-s<seed>.gguf` and returns its path; `name` is one of `GGUFS`.
pub fn write_tiny_gguf(dir: &Path, name: &str, seed: u64) -> PathBuf {
    std::fs::create_dir_all(dir).expect("the test folder can be made");
    let path = dir.join(format!("{name}-s{seed}.gguf"));
    std::fs::write(&path, file(name, seed)).expect("the test folder can be written");
    path
}

fn file(name: &str, seed: u64) -> Vec<u8> {
    let (arch, base, file_type) = match name {
        "llama-q4_k_m" => ("llama", WeightFormat::Q4K, 15),
        "llama-q8_0" => ("llama", WeightFormat::Q8_0, 7),
        "llama-q5_k" => ("llama", WeightFormat::Q5K, 17),
        "qwen2-q5_1" => ("qwen2", WeightFormat::Q5_1, 9),
        "qwen2-q4_0" => ("qwen2", WeightFormat::Q4_0, 2),
        other => panic!("no tiny GGUF `{other}`; there are {GGUFS:?}"),
    };
    let config = archs::config(arch);
    let mut writer = GgufWriter::default();
    metadata(&mut writer, name, arch, file_type, &config);
    for tensor in tiny_tensors(arch, seed) {
        let (stem, kind) = tensor.name.rsplit_once('.').expect("names end in .weight or .bias");
        let stem = gguf_stem(stem);
        let format = if tensor.shape.len() == 1 { WeightFormat::F32 } else { format_of(base, &stem) };
        let mut data = match format {
            WeightFormat::F32 => tensor.values().iter().flat_map(|value| value.to_le_bytes()).collect(),
            _ => quantise(format, &tensor.values()),
        };
        if arch == "llama" && tensor.shape.len() == 2 && (stem.ends_with("attn_q") || stem.ends_with("attn_k")) {
            data = interleave(&data, &tensor, head_dim(&config));
        }
        writer.tensor(&format!("{stem}.{kind}"), &tensor.shape, format, data);
    }
    if config["rope_scaling"].is_object() {
        let factors = rope_factors(&config);
        writer.tensor("rope_freqs.weight", &[factors.len()], WeightFormat::F32, factors.iter().flat_map(|x| x.to_le_bytes()).collect());
    }
    writer.finish()
}

fn gguf_stem(stem: &str) -> String {
    let renamed = |stem: &str| STEMS.iter().find(|(from, _)| *from == stem).map(|(_, to)| *to).expect("a stem of the table");
    match stem.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((layer, inner)) => format!("blk.{layer}.{}", renamed(inner)),
        None => renamed(stem).to_owned(),
    }
}

/// Q4_K files keep the matrices that matter most in Q6_K.
fn format_of(base: WeightFormat, stem: &str) -> WeightFormat {
    let finer = stem == "output" || ["attn_v", "ffn_down", "token_embd"].iter().any(|part| stem.contains(part));
    if base == WeightFormat::Q4K && finer { WeightFormat::Q6K } else { base }
}

fn head_dim(config: &Value) -> usize {
    let number = |key: &str| config[key].as_u64().map(|value| value as usize);
    number("head_dim").or(number("hidden_size").zip(number("num_attention_heads")).map(|(h, n)| h / n)).expect("complete")
}

/// Row `half * dim/2 + i` of each head becomes row `2 i + half`.
fn interleave(data: &[u8], tensor: &TinyTensor, head_dim: usize) -> Vec<u8> {
    let row_bytes = data.len() / tensor.shape[0];
    let source = |row: usize| {
        let (head, within) = (row / head_dim, row % head_dim);
        head * head_dim + within % 2 * (head_dim / 2) + within / 2
    };
    (0..tensor.shape[0]).flat_map(|row| &data[source(row) * row_bytes..][..row_bytes]).copied().collect()
}

/// Divisors of the llama3 scaling, as llama.cpp's converter writes them.
fn rope_factors(config: &Value) -> Vec<f32> {
    let number = |key: &str| config["rope_scaling"][key].as_f64().expect("complete");
    let (low, high, factor) = (number("low_freq_factor"), number("high_freq_factor"), number("factor"));
    let original = number("original_max_position_embeddings");
    let (theta, dim) = (config["rope_theta"].as_f64().expect("complete"), head_dim(config));
    let divisor = |i: usize| {
        let wavelength = 2.0 * std::f64::consts::PI / (1.0 / theta.powf((2 * i) as f64 / dim as f64));
        let smooth = (original / wavelength - low) / (high - low);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..dim / 2).map(|i| divisor(i) as f32).collect()
}

fn metadata(writer: &mut GgufWriter, name: &str, arch: &str, file_type: u32, config: &Value) {
    let vocabulary = vocabulary();
    let number = |key: &str| config[key].as_u64().expect("complete") as u32;
    let head_dim = head_dim(config) as u32;
    writer.text("general.architecture", arch);
    writer.text("general.name", &format!("tiny-{name}"));
    let keys = [
        ("context_length", number("max_position_embeddings")),
        ("embedding_length", number("hidden_size")),
        ("block_count", number("num_hidden_layers")),
        ("feed_forward_length", number("intermediate_size")),
        ("attention.head_count", number("num_attention_heads")),
        ("attention.head_count_kv", number("num_key_value_heads")),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
    ];
    for (key, value) in keys {
        writer.number(&format!("{arch}.{key}"), value);
    }
    for (key, source) in [("rope.freq_base", "rope_theta"), ("attention.layer_norm_rms_epsilon", "rms_norm_eps")] {
        writer.float(&format!("{arch}.{key}"), config[source].as_f64().expect("complete") as f32);
    }
    writer.number(&format!("{arch}.vocab_size"), VOCAB as u32);
    writer.number("general.file_type", file_type);
    writer.text("tokenizer.ggml.model", "gpt2");
    writer.text("tokenizer.ggml.pre", "gpt-2");
    writer.texts("tokenizer.ggml.tokens", &vocabulary.tokens);
    let types: Vec<i32> = (0..VOCAB).map(|id| if id >= VOCAB - 3 { 3 } else { 1 }).collect();
    writer.ints("tokenizer.ggml.token_type", &types);
    writer.texts("tokenizer.ggml.merges", &vocabulary.merges);
    for (i, key) in ["bos", "eos", "padding"].iter().enumerate() {
        writer.number(&format!("tokenizer.ggml.{key}_token_id"), (VOCAB - 3 + i) as u32);
    }
    writer.flag("tokenizer.ggml.add_bos_token", false);
    writer.text("tokenizer.chat_template", CHAT_TEMPLATE);
}

/// A GGUF v3 file in the making.
#[derive(Default)]
pub struct GgufWriter {
    num_keys: u64,
    num_tensors: u64,
    keys: Vec<u8>,
    infos: Vec<u8>,
    data: Vec<u8>,
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl GgufWriter {
    fn key(&mut self, key: &str, kind: u32) {
        self.num_keys += 1;
        put_text(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend((len as u64).to_le_bytes());
    }

    /// A string.
    pub fn text(&mut self, key: &str, text: &str) {
        self.key(key, 8);
        put_text(&mut self.keys, text);
    }

    /// An unsigned 32-bit number.
    pub fn number(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.keys.extend(value.to_le_bytes());
    }

    /// A 32-bit float.
    pub fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.keys.extend(value.to_le_bytes());
    }

    /// A boolean.
    pub fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.keys.push(value.into());
    }

    /// An array of strings.
    pub fn texts(&mut self, key: &str, list: &[String]) {
        self.array(key, 8, list.len());
        list.iter().for_each(|text| put_text(&mut self.keys, text));
    }

    /// An array of 32-bit integers.
    pub fn ints(&mut self, key: &str, list: &[i32]) {
        self.array(key, 5, list.len());
        self.keys.extend(list.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// A tensor; `shape` has rows first.
    pub fn tensor(&mut self, name: &str, shape: &[usize], format: WeightFormat, data: Vec<u8>) {
        let kind: u32 = match format {
            WeightFormat::F32 => 0,
            WeightFormat::F16 => 1,
            WeightFormat::Q4_0 => 2,
            WeightFormat::Q4_1 => 3,
            WeightFormat::Q5_0 => 6,
            WeightFormat::Q5_1 => 7,
            WeightFormat::Q8_0 => 8,
            WeightFormat::Q4K => 12,
            WeightFormat::Q5K => 13,
            WeightFormat::Q6K => 14,
            WeightFormat::BF16 => 30,
        };
        self.num_tensors += 1;
        put_text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        self.infos.extend(shape.iter().rev().flat_map(|dim| (*dim as u64).to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// The file.
    pub fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.num_tensors.to_le_bytes());
        file.extend(self.num_keys.to_le_bytes());
        file.extend(self.keys);
        file.extend(self.infos);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(self.data);
        file
    }
}
