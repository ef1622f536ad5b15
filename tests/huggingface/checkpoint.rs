//! What tests of the huggingface backend share: its worker, and tiny checkpoints made from a golden's list of tensors.

use std::path::{Path, PathBuf};

use pagoda_backends::{HuggingFace, HuggingFaceSettings};
use pagoda_engine::testing::{TinyTensor, noise_tensor, write_folder};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::case;

/// The part of a golden that says what the checkpoint is.
#[derive(Deserialize)]
struct Recipe {
    seed: u64,
    config: Value,
    /// Name, shape, deviation, mean.
    tensors: Vec<(String, Vec<usize>, f64, f64)>,
}

/// The worker's binary: what HF_WORKER names, else what lies beside pagoda. None: it was not built, which is said aloud; an error where
/// PAGODA_HUGGINGFACE=require.
pub fn worker() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_pagoda")).with_file_name("pagoda-hf-worker");
    let path = std::env::var_os("HF_WORKER").map_or(beside, PathBuf::from);
    if path.is_file() {
        return Some(path);
    }
    assert_ne!(std::env::var("PAGODA_HUGGINGFACE").as_deref(), Ok("require"), "{}: not there", path.display());
    println!("skipped: no worker at {} (cargo build --manifest-path huggingface/Cargo.toml)", path.display());
    None
}

/// Writes the checkpoint of golden `hf_NAME` into `folder`.
pub fn write(folder: &Path, name: &str) -> PathBuf {
    let recipe: Recipe = case::read(&format!("hf_{name}"));
    let tensor =
        |(name, shape, deviation, mean): &(String, Vec<usize>, f64, f64)| noise_tensor(recipe.seed, name, shape, *deviation, *mean);
    let tensors: Vec<TinyTensor> = recipe.tensors.iter().map(tensor).collect();
    write_folder(&folder.join(name), &recipe.config, &tensors)
}

/// Writes a GPT-NeoX of a width and depth of its own.
pub fn write_wide(folder: &Path, hidden: usize, layers: usize) -> PathBuf {
    let config = json!({
        "architectures": ["GPTNeoXForCausalLM"], "vocab_size": 768, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 8,
        "intermediate_size": 4 * hidden, "max_position_embeddings": 64, "tie_word_embeddings": false, "hidden_act": "gelu",
    });
    let matrix = |name: &str, n: usize, k: usize| noise_tensor(1, name, &[n, k], 0.05, 0.0);
    let vector = |name: &str| noise_tensor(1, name, &[hidden], 0.1, 1.0);
    let mut tensors = vec![matrix("gpt_neox.embed_in.weight", 768, hidden), matrix("embed_out.weight", 768, hidden)];
    tensors.push(vector("gpt_neox.final_layer_norm.weight"));
    for layer in 0..layers {
        let name = |end: &str| format!("gpt_neox.layers.{layer}.{end}.weight");
        tensors.extend([vector(&name("input_layernorm")), vector(&name("post_attention_layernorm"))]);
        tensors.push(matrix(&name("attention.query_key_value"), 3 * hidden, hidden));
        tensors.push(matrix(&name("attention.dense"), hidden, hidden));
        tensors.push(matrix(&name("mlp.dense_h_to_4h"), 4 * hidden, hidden));
        tensors.push(matrix(&name("mlp.dense_4h_to_h"), hidden, 4 * hidden));
    }
    write_folder(&folder.join("wide"), &config, &tensors)
}

/// One thread on a CPU, everything else as it comes.
pub fn settings(worker: &Path) -> HuggingFaceSettings {
    HuggingFaceSettings {
        worker: Some(worker.to_owned()),
        device: "cpu".into(),
        four_bit: false,
        flash_attention: false,
        threads: Some(1),
        max_model_len: None,
        max_waiting: 64,
        chat_template: None,
        tool_dialect: None,
    }
}

/// Loads a checkpoint.
pub fn load(path: &Path, settings: &HuggingFaceSettings) -> HuggingFace {
    HuggingFace::load(path, settings, &mut |_, _| {}).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
