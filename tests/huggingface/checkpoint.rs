//! What tests of the huggingface backend share: its worker, and tiny checkpoints made from a golden's list of tensors.

use std::path::{Path, PathBuf};

use pagoda_backends::{HuggingFace, HuggingFaceSettings};
use pagoda_engine::testing::{TinyTensor, noise_tensor, write_folder};
use serde::Deserialize;
use serde_json::Value;

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
    }
}

/// Loads a checkpoint.
pub fn load(path: &Path, settings: &HuggingFaceSettings) -> HuggingFace {
    HuggingFace::load(path, settings, &mut |_, _| {}).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
