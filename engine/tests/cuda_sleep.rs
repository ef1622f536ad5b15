//! Engines on a GPU that give their memory away and take it back: the same bits afterwards, with the steps that were recorded before, and
//! memory that really falls. Needs a GPU, a build with nvcc and the feature `testing`; says so and passes where one is missing.
#![allow(clippy::print_stderr, clippy::unwrap_used)]
#![cfg(feature = "testing")]

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use pagoda_engine::core::EngineHandle;
use pagoda_engine::device::Device;
use pagoda_engine::device::cuda::CudaDevice;
use pagoda_engine::loader::{DenseCopy, DeviceChoice, EngineOptions, KvDtype, load};
use pagoda_engine::request::{Event, Request};
use pagoda_engine::sampling::SamplingParams;
use pagoda_engine::testing::{VOCAB, write_tiny};
use pagoda_engine::weights::quant::Quantization;

const KV_BYTES: usize = 512 << 20;
/// What attention and sampling take at least, whatever the model.
const LEAST_GIVEN: usize = 256 << 20;
const OUTPUT_LEN: u32 = 24;
/// Held by a test while it runs: what is in use is read from the GPU, where other engines of this process count too.
static GPU: Mutex<()> = Mutex::new(());

/// Greedy, drawn and with penalties, which the device counts by itself.
fn requests() -> Vec<Request> {
    let request = |i: usize| {
        let prompt = (0..3 + 9 * i).map(|j| ((i * 7919 + j * 104_729 + j * j * 31) % (VOCAB - 3)) as u32).collect();
        let plain =
            SamplingParams { max_tokens: OUTPUT_LEN, ignore_eos: true, seed: Some(5), logprobs: Some(2), ..SamplingParams::default() };
        let sampling = match i % 3 {
            1 => SamplingParams { temperature: 0.7, top_p: 0.9, logit_bias: vec![(7, 3.0)], ..plain },
            2 => SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.2, ..plain },
            _ => plain,
        };
        Request { prompt, sampling, priority: 0, cache_salt: 0 }
    };
    (0..6).map(request).collect()
}

/// (token, bits of its logprob) of the requests, one after another, so that all runs make the same steps.
fn answers(engine: &EngineHandle) -> Vec<Vec<(u32, u32)>> {
    let answer = |request: Request| {
        let mut stream = engine.submit(request).unwrap();
        let mut tokens = Vec::new();
        while let Some(event) = stream.next_blocking() {
            match event {
                Event::Token { token, logprobs, .. } => tokens.push((token, logprobs.unwrap().logprob.to_bits())),
                Event::Failed { message, .. } | Event::Refused { message } => panic!("failed: {message}"),
                _ => {}
            }
        }
        assert_eq!(tokens.len(), OUTPUT_LEN as usize);
        tokens
    };
    requests().into_iter().map(answer).collect()
}

/// Sleeps and wakes an engine; `in_use` reads the memory of the GPU.
fn check(what: &str, engine: &EngineHandle, in_use: &dyn Fn() -> usize) {
    // The first run launches its steps, the second records them, the third replays.
    let expected = [(); 3].map(|()| answers(engine)).into_iter().next_back().unwrap();
    let awake = in_use();
    for round in 0..3 {
        let started = Instant::now();
        engine.sleep().unwrap();
        let (slept, asleep) = (started.elapsed(), in_use());
        let fallen = awake.saturating_sub(asleep);
        assert!(fallen >= LEAST_GIVEN, "{what}, round {round}: {fallen} bytes of {awake} were given away");
        let started = Instant::now();
        engine.wake().unwrap();
        let woken = started.elapsed();
        let back = in_use();
        assert!(back.abs_diff(awake) < LEAST_GIVEN / 8, "{what}, round {round}: {back} bytes in use, {awake} before");
        assert_eq!(answers(engine), expected, "{what}, round {round}");
        eprintln!("{what}: {} MiB given away, sleep {slept:.1?}, wake {woken:.1?}", fallen >> 20);
    }
}

#[test]
fn what_slept_gives_the_same_bits_and_its_memory_was_free() {
    if CudaDevice::available().is_empty() {
        eprintln!("skipped: no GPU, or built without CUDA kernels");
        return;
    }
    let _alone = GPU.lock().unwrap_or_else(PoisonError::into_inner);
    let (folder, probe) = (tempfile::tempdir().unwrap(), CudaDevice::new(0).unwrap());
    let in_use = || probe.memory_in_use().unwrap();
    let plain = EngineOptions {
        device: DeviceChoice::Cuda,
        memory_limit_bytes: Some(4 << 30),
        kv_cache_bytes: Some(KV_BYTES),
        max_num_seqs: Some(40),
        prefix_caching: false,
        ..EngineOptions::default()
    };
    let quantised = |name: &str| EngineOptions { quantization: Quantization::parse(name), ..plain.clone() };
    let cases = [
        ("llama", "bf16", plain.clone()),
        ("mixtral", "bf16", plain.clone()),
        ("qwen3", "fp8 cache", EngineOptions { kv_cache_dtype: KvDtype::Fp8, ..plain.clone() }),
        ("qwen2", "fp8", quantised("fp8")),
        ("qwen2", "4 bits", EngineOptions { dense_copy: DenseCopy::Off, ..quantised("bitsandbytes") }),
        ("qwen2", "4 bits and a dense copy", EngineOptions { dense_copy: DenseCopy::On, ..quantised("bitsandbytes") }),
    ];
    for (arch, what, options) in cases {
        let engine = load(&write_tiny(folder.path(), arch, 1), &options, &mut |_| ()).unwrap().handle;
        check(&format!("{arch}, {what}"), &engine, &in_use);
        engine.sleep().unwrap();
        engine.unload();
    }
}

/// One engine's memory while the other sleeps, as in a server that swaps models.
#[test]
fn two_engines_take_turns() {
    if CudaDevice::available().is_empty() {
        eprintln!("skipped: no GPU, or built without CUDA kernels");
        return;
    }
    let _alone = GPU.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions {
        device: DeviceChoice::Cuda,
        memory_limit_bytes: Some(2 << 30),
        kv_cache_bytes: Some(64 << 20),
        max_num_seqs: Some(40),
        ..EngineOptions::default()
    };
    let engine = |arch| load(&write_tiny(folder.path(), arch, 1), &options, &mut |_| ()).unwrap().handle;
    let (first, second) = (engine("llama"), engine("gemma2"));
    let (of_first, of_second) = (answers(&first), answers(&second));
    first.sleep().unwrap();
    for _ in 0..3 {
        second.sleep().unwrap();
        first.wake().unwrap();
        assert_eq!(answers(&first), of_first);
        first.sleep().unwrap();
        second.wake().unwrap();
        assert_eq!(answers(&second), of_second);
    }
}
