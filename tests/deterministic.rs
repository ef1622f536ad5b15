//! `deterministic`: the same request gives the same bits alone, among 64 others, in chunks and after a cached prefix. On every CPU, and on a
//! GPU where there is one. `PAGODA_TEST_MODEL` names a checkpoint to go through beside the tiny ones.
#![allow(clippy::print_stdout)]

mod harness;

use std::path::Path;

use harness::compare::Answer;
use harness::drive::{greedy, run_alone, run_together};
use harness::engine;
use pagoda_engine::device::cuda::CudaDevice;
use pagoda_engine::loader::{DeviceChoice, EngineOptions};
use pagoda_engine::request::Request;
use pagoda_engine::sampling::SamplingParams;
use pagoda_engine::testing::write_tiny;

const SEED: u64 = 1;
/// Families whose layers differ most: grouped heads with biases, sliding windows and soft caps, experts.
const ARCHS: [&str; 3] = ["qwen2", "gemma2", "mixtral"];
const NUM_TOGETHER: usize = 64;

/// Requests whose lengths lie around tiles, blocks and chunks; every other one is sampled.
fn requests(vocab: usize, num: usize) -> Vec<Request> {
    const LENS: [usize; 12] = [1, 7, 15, 16, 17, 33, 64, 65, 100, 128, 129, 150];
    let prompt = |number: usize| -> Vec<u32> {
        let token = |i: usize| ((number * 7919 + i * 104_729 + i * i * 31) % (vocab - 3)) as u32;
        (0..LENS[number % LENS.len()]).map(token).collect()
    };
    let request = |number: usize| {
        let mut request = greedy(&prompt(number), 16 + number % 9);
        if number % 2 == 1 {
            request.sampling = SamplingParams { temperature: 0.9, top_p: 0.95, seed: Some(number as u64), ..request.sampling };
        }
        request
    };
    (0..num).map(request).collect()
}

/// The best tokens of a step with the bits of their logprobs.
fn bits(top: &[(u32, f32)]) -> Vec<(u32, u32)> {
    top.iter().map(|(token, logprob)| (*token, logprob.to_bits())).collect()
}

fn assert_same_bits(what: &str, expected: &[Answer], got: &[Answer]) {
    assert_eq!(expected.len(), got.len());
    for (i, (expected, got)) in expected.iter().zip(got).enumerate() {
        assert_eq!(expected.tokens, got.tokens, "{what}: tokens of request {i}");
        for (step, (expected, got)) in expected.tops.iter().zip(&got.tops).enumerate() {
            assert_eq!(bits(expected), bits(got), "{what}: logprobs of request {i}, step {step}");
        }
    }
}

fn check(name: &str, path: &Path, device: DeviceChoice) {
    let base =
        EngineOptions { device, deterministic: true, threads: Some(1), max_num_seqs: Some(NUM_TOGETHER), ..EngineOptions::default() };
    let base = EngineOptions { kv_cache_bytes: Some(64 << 20), max_model_len: Some(256), prefix_caching: false, ..base };
    let (alone, vocab) = {
        let model = engine(path, &base);
        let wanted = requests(model.config.vocab_size, 12);
        let alone = run_alone(&model.handle, wanted);
        // The same twelve among as many others as run at once; all come together.
        let all = run_together(&model.handle, requests(model.config.vocab_size, NUM_TOGETHER));
        assert!(model.handle.stats().max_running > 12, "{name}: nothing ran together");
        assert_same_bits(&format!("{name}, alone and among {NUM_TOGETHER}"), &alone, &all[..12]);
        println!("{name} on {}: alone and among {NUM_TOGETHER} alike", model.device);
        (alone, model.config.vocab_size)
    };
    let chunked = engine(path, &EngineOptions { max_num_seqs: Some(8), max_num_batched_tokens: Some(24), ..base.clone() });
    assert_same_bits(&format!("{name}, in chunks"), &alone, &run_together(&chunked.handle, requests(vocab, 12)));
    drop(chunked);
    let cached = engine(path, &EngineOptions { prefix_caching: true, ..base });
    for round in ["cache empty", "cache full"] {
        assert_same_bits(&format!("{name}, {round}"), &alone, &run_together(&cached.handle, requests(vocab, 12)));
    }
    println!("{name}: in chunks and with a prefix cache alike");
}

fn check_tiny(device: DeviceChoice) {
    for arch in ARCHS {
        let folder = tempfile::tempdir().expect("a temporary folder");
        check(arch, &write_tiny(folder.path(), arch, SEED), device);
    }
}

#[test]
fn the_same_bits_on_a_cpu() {
    check_tiny(DeviceChoice::Cpu);
}

#[test]
fn the_same_bits_on_a_gpu() {
    if CudaDevice::available().is_empty() {
        println!("skipped: no GPU, or built without kernels");
        return;
    }
    check_tiny(DeviceChoice::Cuda);
    if let Some(path) = std::env::var_os("PAGODA_TEST_MODEL") {
        check("PAGODA_TEST_MODEL", Path::new(&path), DeviceChoice::Cuda);
    }
}
