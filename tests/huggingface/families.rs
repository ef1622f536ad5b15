//! Tiny checkpoints of every family against what transformers computed from the same weights.

use pagoda_backends::{HuggingFaceSettings, InferenceBackend};
use pagoda_engine::testing::write_tiny;

use crate::checkpoint::{load, settings, worker, write};
use crate::harness::case::{self, Suite};
use crate::harness::compare::{Precision, compare};
use crate::harness::drive::{greedy, run_together};

/// All cases of a golden, as sequences beside each other, and one after another.
fn check(golden: &str, path: &std::path::Path, settings: &HuggingFaceSettings, precision: Precision) {
    let suite: Suite = case::read(golden);
    let backend = load(path, settings);
    let answers = run_together(backend.engine().handle(), suite.cases.iter().map(|case| greedy(&case.prompt_ids, case.greedy.len())));
    let mut worst = 0.0f32;
    for (case, answer) in suite.cases.iter().zip(&answers) {
        match compare(case, answer, precision) {
            Ok(difference) => worst = worst.max(difference),
            Err(fault) => panic!("{golden} {}: {fault}", case.id),
        }
    }
    println!("{golden}: {} cases, logprobs within {worst}", answers.len());
    backend.unload();
}

fn check_family(name: &str) {
    let Some(worker) = worker() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    check(&format!("hf_{name}"), &write(folder.path(), name), &settings(&worker), Precision::F32);
}

macro_rules! families {
    ($($test:ident = $name:literal),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                check_family($name);
            }
        )*
    };
}

families! {
    gpt2 = "gpt2",
    gptj = "gptj",
    gpt_neox = "gpt_neox",
    gpt_neox_sequential = "gpt_neox-sequential",
    bloom = "bloom",
    falcon = "falcon",
    falcon_new = "falcon-new",
    falcon_alibi = "falcon-alibi",
    mpt = "mpt",
    opt = "opt",
    phi = "phi",
    stablelm = "stablelm",
    starcoder2 = "starcoder2",
    olmo = "olmo",
    olmo2 = "olmo2",
    gemma = "gemma",
    cohere = "cohere",
    granite = "granite",
}

/// What the native engine has too, so that both can be compared on one model.
#[test]
fn families_of_the_native_engine() {
    let Some(worker) = worker() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    for arch in ["llama", "mistral", "qwen2", "qwen3"] {
        check(&format!("tiny_{arch}"), &write_tiny(folder.path(), arch, 1), &settings(&worker), Precision::F32);
    }
}

/// The golden's weights were bitsandbytes' own, made dense.
#[test]
fn four_bits_are_those_of_bitsandbytes() {
    let Some(worker) = worker() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let four_bit = HuggingFaceSettings { four_bit: true, ..settings(&worker) };
    check("tinyq_bnb-nf4-dq", &write_tiny(folder.path(), "qwen2", 1), &four_bit, Precision::F32);
}

#[test]
fn flash_attention_gives_the_same() {
    let Some(worker) = worker() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let flash = HuggingFaceSettings { flash_attention: true, ..settings(&worker) };
    for name in ["gpt2", "falcon-new"] {
        let path = write(folder.path(), name);
        assert!(load(&path, &flash).loaded().ignored.is_empty(), "{name}");
        check(&format!("hf_{name}"), &path, &flash, Precision::F32);
    }
    let ignored = load(&write(folder.path(), "bloom"), &flash).loaded().ignored.clone();
    assert_eq!(ignored, ["flash attention: candle has none for a bloom model on cpu"]);
}
