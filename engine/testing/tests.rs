//! The generated files are those of the Python recipe.

use sha2::{Digest, Sha256};

use super::*;

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn tiny_weights_are_those_of_the_recipe() {
    let pinned = [
        ("qwen2", "0e3ba709cfa05a9c506b99b7409c5fec36d6ec09e027ddf4a5a99fc484a7b1bb"),
        ("qwen2-yarn", "146f5cd6386f4541c269b6bc67bfc01487ce6b8a014c02d3c502d503d4fb671f"),
        ("qwen3", "0d7974e7c446cc4e3939e97e58bf0f90f494bb0b6ba7cde9fb2c1c907231c11b"),
        ("llama", "be1aacadc55415a27b669af40854bc9e341cc6b54da40b9faf7f5f894e1a2c02"),
        ("mistral", "5afe8ccde8b3ef090a538e681b749885e481ffb9fe4c64b3c325fced079f5749"),
        ("phi3", "d673e8a1ec1dee2acbbe5f7b79842a1d22d83a2b900f4d09ab19fae7931ebd19"),
        ("gemma2", "b521b319b2d15cbaafd0b873ed4f04853283c62682cf47e0ecd38066702498d8"),
        ("gemma3", "cb3ee2426e1d59a956de9c9400d4f768c677d2074874ad20c479d9fd80437eeb"),
        ("mixtral", "2edf010fecf108d8038fbfd8f527114ace9503587b3e2649a18104251b35b5a5"),
        ("qwen3-moe", "5dc80ebcb2aa0c1094a2389ac53035068bfa1e5f2eb66cd5da3214f62486c03b"),
    ];
    assert_eq!(pinned.map(|(arch, _)| arch), ARCHS);
    for (arch, expected) in pinned {
        assert_eq!(digest(&safetensors_file(&tiny_tensors(arch, 1))), expected, "{arch}, seed 1");
    }
}

#[test]
fn tiny_ggufs_are_those_of_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let pinned = [
        ("llama-q4_k_m", "f88317840654ce147765b34ec6c363aeb19396f721a078b3f2fcdc071e36a68b"),
        ("llama-q8_0", "78ea995dc4a3811149706a6d415de88c7d8e46022c045edee0348b5a02f43ce0"),
        ("llama-q5_k", "307a06a0f32c4e724f49b8c3e04573a178dd30057843cfd426b87af14ad1f74d"),
        ("qwen2-q5_1", "e6f1974d295e5c62e9c4b38729a4e60815ce88362fe72ec7b1d35479b62bfac8"),
        ("qwen2-q4_0", "35531ee9f782ded2e17c3893cd2346fcea90c8bc3575063c01d92369eb6849c3"),
    ];
    assert_eq!(pinned.map(|(name, _)| name), GGUFS);
    for (name, expected) in pinned {
        let path = write_tiny_gguf(folder.path(), name, 1);
        assert_eq!(digest(&std::fs::read(path).unwrap()), expected, "{name}, seed 1");
    }
}

#[test]
fn tiny_tokenizer_is_that_of_the_recipe() {
    let text = tokenizer::tokenizer_json().to_string();
    assert_eq!(digest(text.as_bytes()), "5cc56e066181aebeb2dc081f182a36e0170f3fdcc954a75dad112b2d60f001b7");
}
