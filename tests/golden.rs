//! Tiny checkpoints of every family and tiny GGUF files, made here from a seed, against what transformers computed from the same weights.

mod harness;

use harness::compare::Precision;
use harness::{check_suite, small_options};
use pagoda_engine::testing::{ARCHS, GGUFS, write_tiny, write_tiny_gguf};

/// The seed of tests/data/golden.
const SEED: u64 = 1;

fn check_family(arch: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write_tiny(folder.path(), arch, SEED);
    check_suite(&format!("tiny_{arch}"), &path, &small_options(), Precision::F32);
}

fn check_gguf(name: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write_tiny_gguf(folder.path(), name, SEED);
    check_suite(&format!("tinygguf_{name}"), &path, &small_options(), Precision::F32);
}

macro_rules! tests {
    ($check:ident: $($test:ident = $name:literal),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                $check($name);
            }
        )*
    };
}

tests!(check_family:
    qwen2 = "qwen2",
    qwen2_yarn = "qwen2-yarn",
    qwen3 = "qwen3",
    llama = "llama",
    mistral = "mistral",
    phi3 = "phi3",
    gemma2 = "gemma2",
    gemma3 = "gemma3",
    mixtral = "mixtral",
    qwen3_moe = "qwen3-moe",
);

tests!(check_gguf:
    gguf_llama_q4_k_m = "llama-q4_k_m",
    gguf_llama_q5_k = "llama-q5_k",
    gguf_llama_q8_0 = "llama-q8_0",
    gguf_qwen2_q5_1 = "qwen2-q5_1",
    gguf_qwen2_q4_0 = "qwen2-q4_0",
);

#[test]
fn every_family_and_format_has_its_goldens() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden");
    let expected: Vec<String> = ARCHS.iter().map(|a| format!("tiny_{a}")).chain(GGUFS.iter().map(|g| format!("tinygguf_{g}"))).collect();
    for name in expected {
        assert!(std::path::Path::new(folder).join(format!("{name}.json")).is_file(), "{name}.json is missing");
    }
}
