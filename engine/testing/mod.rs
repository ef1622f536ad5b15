//! What tests need of the engine: tiny random-weight checkpoints of every family as Hugging Face folders, one in every quantised format, and
//! five GGUF files, made from a seed; a device that rounds like a GPU; a decoder that reads given tokens.
//!
//! Behind the cargo feature `testing`. The recipe is that of `tests/golden/make_tiny.py`, bit for bit, so that goldens computed elsewhere
//! from the same seed apply; `tests` below pins the digests. Writing panics where the folder cannot be written: only tests call it.

mod archs;
mod fault;
mod forced;
mod gguf_file;
mod noise;
mod quantise;
mod quantised;
mod raw_file;
pub mod rounded;
mod tensors;
mod tokenizer;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub use archs::ARCHS;
pub use fault::with_fault;
pub use forced::Forced;
pub use gguf_file::{GGUFS, GgufWriter, write_tiny_gguf};
pub use quantised::{QUANTISED, write_quantised};
pub use raw_file::{RawTensor, raw_file};
pub use tensors::{TinyTensor, noise_tensor, tiny_tensors};

/// Rows of every tiny vocabulary; the last three are `<|im_start|>`, `<|im_end|>` (EOS) and `<|pad|>`.
pub const VOCAB: usize = 768;

/// The chat template of every tiny checkpoint (ChatML).
pub const CHAT_TEMPLATE: &str = concat!(
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
);

/// config.json of a tiny architecture; `arch` is one of `ARCHS`.
pub fn tiny_config(arch: &str) -> Value {
    archs::config(arch)
}

/// Writes `dir/<arch>-s<seed>` with config, generation config, tokeniser and bf16 weights, and returns its path.
pub fn write_tiny(dir: &Path, arch: &str, seed: u64) -> PathBuf {
    write_folder(&dir.join(format!("{arch}-s{seed}")), &archs::config(arch), &tiny_tensors(arch, seed))
}

/// Writes a folder with this config.json and these weights, and what every tiny checkpoint has beside them; returns its path.
pub fn write_folder(folder: &Path, config: &Value, tensors: &[TinyTensor]) -> PathBuf {
    std::fs::create_dir_all(folder).expect("the test folder can be made");
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("the test folder can be written");
    let put_json = |name: &str, value: &Value| put(name, value.to_string().as_bytes());
    put("model.safetensors", &safetensors_file(tensors));
    put_json("generation_config.json", &json!({"bos_token_id": VOCAB - 3, "eos_token_id": VOCAB - 2}));
    put_json("tokenizer.json", &tokenizer::tokenizer_json());
    put_json(
        "tokenizer_config.json",
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>",
            "clean_up_tokenization_spaces": false, "model_max_length": config["max_position_embeddings"], "chat_template": CHAT_TEMPLATE,
        }),
    );
    put_json("config.json", config);
    folder.to_owned()
}

/// A safetensors file of bf16 tensors in the given order.
pub fn safetensors_file(tensors: &[TinyTensor]) -> Vec<u8> {
    let raw = |tensor: &TinyTensor| {
        let bytes = tensor.bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        RawTensor::new(&tensor.name, "BF16", &tensor.shape, bytes)
    };
    raw_file(&tensors.iter().map(raw).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
