//! The weights of a tiny checkpoint, in the order in which its file holds them.

use half::bf16;
use serde_json::Value;

use super::noise::noise;
use super::{VOCAB, archs};

/// A tensor of a tiny checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyTensor {
    /// Hugging Face name.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// bf16 bits.
    pub bits: Vec<u16>,
}

impl TinyTensor {
    /// The values in f32.
    pub fn values(&self) -> Vec<f32> {
        self.bits.iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect()
    }
}

/// A tensor of noise: the same for the same seed, name and shape.
pub fn noise_tensor(seed: u64, name: &str, shape: &[usize], deviation: f64, mean: f64) -> TinyTensor {
    let bits = noise(seed, name, shape.iter().product(), deviation, mean);
    TinyTensor { name: name.to_owned(), shape: shape.to_vec(), bits }
}

struct Maker {
    arch: String,
    config: Value,
    seed: u64,
    hidden: usize,
    tensors: Vec<TinyTensor>,
}

/// All tensors of `arch`, one of `ARCHS`.
pub fn tiny_tensors(arch: &str, seed: u64) -> Vec<TinyTensor> {
    let config = archs::config(arch);
    let hidden = size(&config, "hidden_size");
    let tied = config["tie_word_embeddings"] == true;
    let num_layers = size(&config, "num_hidden_layers");
    let mut maker = Maker { arch: arch.to_owned(), config, seed, hidden, tensors: Vec::new() };
    let deviation = if tied { 3.0 / (hidden as f64).powf(0.5) } else { 1.0 };
    maker.put("model.embed_tokens.weight", &[VOCAB, hidden], deviation, 0.0);
    for layer in 0..num_layers {
        let prefix = format!("model.layers.{layer}.");
        maker.norms(&prefix);
        maker.attention(&format!("{prefix}self_attn."));
        maker.mlp(&prefix);
    }
    maker.norm("model.norm", 0.1);
    if !tied {
        maker.linear("lm_head", VOCAB, hidden, 3.0);
    }
    maker.tensors
}

fn size(config: &Value, key: &str) -> usize {
    config[key].as_u64().expect("tiny configurations are complete") as usize
}

impl Maker {
    fn is(&self, archs: &[&str]) -> bool {
        archs.contains(&self.arch.as_str())
    }

    fn put(&mut self, name: &str, shape: &[usize], deviation: f64, mean: f64) {
        self.tensors.push(noise_tensor(self.seed, name, shape, deviation, mean));
    }

    fn linear(&mut self, stem: &str, n: usize, k: usize, gain: f64) {
        self.put(&format!("{stem}.weight"), &[n, k], gain / (k as f64).powf(0.5), 0.0);
    }

    /// Gemma multiplies by 1 + w, so its norms have mean 0.
    fn norm(&mut self, stem: &str, deviation: f64) {
        let mean = if self.arch.starts_with("gemma") { 0.0 } else { 1.0 };
        self.put(&format!("{stem}.weight"), &[self.hidden], deviation, mean);
    }

    fn norms(&mut self, prefix: &str) {
        self.norm(&format!("{prefix}input_layernorm"), 0.2);
        if self.arch.starts_with("gemma") {
            self.norm(&format!("{prefix}pre_feedforward_layernorm"), 0.2);
            self.put(&format!("{prefix}post_attention_layernorm.weight"), &[self.hidden], 0.3, 4.0);
            self.put(&format!("{prefix}post_feedforward_layernorm.weight"), &[self.hidden], 0.3, 4.0);
        } else {
            self.norm(&format!("{prefix}post_attention_layernorm"), 0.2);
        }
    }

    fn attention(&mut self, prefix: &str) {
        let (hidden, heads, kv_heads) = (self.hidden, size(&self.config, "num_attention_heads"), size(&self.config, "num_key_value_heads"));
        let head_dim = self.config["head_dim"].as_u64().map_or(hidden / heads, |dim| dim as usize);
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        // Peaked attention, so that faults of rope and mask show.
        let gain = if self.is(&["qwen3", "qwen3-moe", "gemma3"]) { 1.0 } else { 1.7 };
        if self.is(&["phi3"]) {
            self.linear(&format!("{prefix}qkv_proj"), q + 2 * kv, hidden, 1.7);
        } else {
            self.linear(&format!("{prefix}q_proj"), q, hidden, gain);
            self.linear(&format!("{prefix}k_proj"), kv, hidden, gain);
            self.linear(&format!("{prefix}v_proj"), kv, hidden, 1.5);
        }
        if self.is(&["qwen2", "qwen2-yarn"]) {
            for (name, len, deviation) in [("q_proj", q, 0.7), ("k_proj", kv, 0.7), ("v_proj", kv, 0.5)] {
                self.put(&format!("{prefix}{name}.bias"), &[len], deviation, 0.0);
            }
        }
        if self.is(&["qwen3", "qwen3-moe", "gemma3"]) {
            let mean = if self.is(&["gemma3"]) { 0.6 } else { 1.6 };
            self.put(&format!("{prefix}q_norm.weight"), &[head_dim], 0.3, mean);
            self.put(&format!("{prefix}k_norm.weight"), &[head_dim], 0.3, mean);
        }
        self.linear(&format!("{prefix}o_proj"), hidden, q, 1.5);
    }

    fn mlp(&mut self, prefix: &str) {
        let (hidden, width) = (self.hidden, size(&self.config, "intermediate_size"));
        match self.arch.as_str() {
            "phi3" => {
                self.linear(&format!("{prefix}mlp.gate_up_proj"), 2 * width, hidden, 1.5);
                self.linear(&format!("{prefix}mlp.down_proj"), hidden, width, 1.5);
            }
            "mixtral" => self.experts(&format!("{prefix}block_sparse_moe."), "num_local_experts", width, ["w1", "w3", "w2"]),
            "qwen3-moe" => {
                let width = size(&self.config, "moe_intermediate_size");
                self.experts(&format!("{prefix}mlp."), "num_experts", width, ["gate_proj", "up_proj", "down_proj"]);
            }
            _ => self.gated(&format!("{prefix}mlp."), width, ["gate_proj", "up_proj", "down_proj"]),
        }
    }

    fn experts(&mut self, prefix: &str, count_key: &str, width: usize, names: [&str; 3]) {
        let count = size(&self.config, count_key);
        self.linear(&format!("{prefix}gate"), count, self.hidden, 3.0);
        for expert in 0..count {
            self.gated(&format!("{prefix}experts.{expert}."), width, names);
        }
    }

    fn gated(&mut self, prefix: &str, width: usize, [gate, up, down]: [&str; 3]) {
        self.linear(&format!("{prefix}{gate}"), width, self.hidden, 1.5);
        self.linear(&format!("{prefix}{up}"), width, self.hidden, 1.5);
        self.linear(&format!("{prefix}{down}"), self.hidden, width, 1.5);
    }
}
