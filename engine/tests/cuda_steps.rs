//! Recorded decode steps on a GPU give the same tokens as steps launched op by op, whatever the batch. Needs a GPU, a build with nvcc and
//! the feature `testing`; says so and passes where one is missing.
#![allow(clippy::print_stderr, clippy::unwrap_used)]
#![cfg(feature = "testing")]

use pagoda_engine::core::EngineHandle;
use pagoda_engine::device::cuda::CudaDevice;
use pagoda_engine::loader::{DeviceChoice, EngineOptions, load};
use pagoda_engine::request::{Event, Request};
use pagoda_engine::sampling::SamplingParams;
use pagoda_engine::testing::{VOCAB, write_tiny};

/// Dense with grouped queries, sliding windows with soft caps, experts, norms of heads.
const ARCHS: [&str; 4] = ["llama", "gemma2", "mixtral", "qwen3"];
const OUTPUT_LEN: u32 = 40;

/// Two engines over one model: one that records its decode steps, one that launches them.
struct Pair {
    recorded: EngineHandle,
    launched: EngineHandle,
}

impl Pair {
    fn new(folder: &std::path::Path, deterministic: bool) -> Pair {
        let engine = |cuda_graphs| {
            let options = EngineOptions {
                device: DeviceChoice::Cuda,
                memory_limit_bytes: Some(1 << 30),
                kv_cache_bytes: Some(32 << 20),
                max_num_seqs: Some(40),
                prefix_caching: false,
                cuda_graphs,
                deterministic,
                ..EngineOptions::default()
            };
            load(folder, &options, &mut |_| ()).unwrap().handle
        };
        Pair { recorded: engine(true), launched: engine(false) }
    }

    /// The same tokens of all requests, sent at once: the shape's first step runs op by op, so `num_runs` of the recorded engine.
    fn check(&self, what: &str, requests: &[Request], num_runs: usize) {
        let expected = tokens(&self.launched, requests);
        let num_wanted: u32 = requests.iter().map(|request| request.sampling.max_tokens * request.sampling.n).sum();
        assert_eq!(expected.iter().map(Vec::len).sum::<usize>(), num_wanted as usize, "{what}");
        for run in 0..num_runs {
            assert_eq!(tokens(&self.recorded, requests), expected, "{what}, run {run}");
        }
    }
}

/// Greedy, drawn, and with penalties that read the tokens before: in turn.
fn requests(count: usize) -> Vec<Request> {
    let request = |i: usize| {
        let prompt = (0..3 + 5 * i).map(|j| ((i * 7919 + j * 104_729 + j * j * 31) % (VOCAB - 3)) as u32).collect();
        let plain = SamplingParams { max_tokens: OUTPUT_LEN - i as u32 % 3, ignore_eos: true, seed: Some(5), ..SamplingParams::default() };
        let sampling = match i % 4 {
            2 => SamplingParams { temperature: 0.7, top_p: 0.9, ..plain },
            3 => SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.2, ..plain },
            _ => plain,
        };
        Request { prompt, sampling, priority: 0, cache_salt: 0 }
    };
    (0..count).map(request).collect()
}

/// (choice, token) of every request, choice after choice.
fn tokens(engine: &EngineHandle, requests: &[Request]) -> Vec<Vec<(u32, u32)>> {
    let streams: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let collect = |mut stream: pagoda_engine::core::RequestStream| {
        let mut tokens = Vec::new();
        while let Some(event) = stream.next_blocking() {
            match event {
                Event::Token { choice, token, .. } => tokens.push((choice, token)),
                Event::Failed { message, .. } => panic!("failed: {message}"),
                _ => {}
            }
        }
        // Stable: the tokens of a choice keep their order.
        tokens.sort_by_key(|(choice, _)| *choice);
        tokens
    };
    streams.into_iter().map(collect).collect()
}

fn is_there() -> bool {
    let found = !CudaDevice::available().is_empty();
    if !found {
        eprintln!("skipped: no GPU, or built without CUDA kernels");
    }
    found
}

#[test]
fn recorded_steps_give_the_tokens_of_launched_ones() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for arch in ARCHS {
        let pair = Pair::new(&write_tiny(folder.path(), arch, 1), false);
        for request in requests(8) {
            pair.check(&format!("{arch}, a prompt of {}", request.prompt.len()), &[request], 2);
        }
        // Choices of one request are always in the same step. So many of them are a shape's number of sequences: the kernels are the same.
        for n in [2, 8, 16, 24] {
            let request = requests(3).swap_remove(2);
            let request = Request { sampling: SamplingParams { n, ..request.sampling }, ..request };
            pair.check(&format!("{arch}, {n} choices"), &[request], 2);
        }
    }
}

/// Which requests share a step depends on when they arrive, and with the step its kernels: only where those do not count are all tokens the
/// same, also those of steps that were filled up.
#[test]
fn recorded_steps_of_any_batch_give_the_tokens_of_launched_ones() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for arch in ARCHS {
        let pair = Pair::new(&write_tiny(folder.path(), arch, 1), true);
        for count in [2, 3, 8, 13, 21, 40] {
            pair.check(&format!("{arch}, {count} requests"), &requests(count), 1);
        }
    }
}

/// A few steps, launched, recorded and replayed, for compute-sanitizer (scripts/gpu-table.sh).
#[test]
fn smallest_recorded_steps_give_the_tokens_of_launched_ones() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::new(&write_tiny(folder.path(), "qwen3", 1), false);
    let request = requests(3).swap_remove(2);
    let sampling = SamplingParams { n: 2, max_tokens: 4, ..request.sampling };
    pair.check("qwen3, two choices", &[Request { sampling, ..request }], 1);
}
