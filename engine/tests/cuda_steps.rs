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

fn engine(folder: &std::path::Path, cuda_graphs: bool) -> EngineHandle {
    let options = EngineOptions {
        device: DeviceChoice::Cuda,
        memory_limit_bytes: Some(1 << 30),
        max_num_seqs: Some(40),
        prefix_caching: false,
        cuda_graphs,
        ..EngineOptions::default()
    };
    load(folder, &options, &mut |_| ()).unwrap().handle
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

fn tokens(engine: &EngineHandle, requests: &[Request]) -> Vec<Vec<u32>> {
    let streams: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let collect = |mut stream: pagoda_engine::core::RequestStream| {
        let mut tokens = Vec::new();
        while let Some(event) = stream.next_blocking() {
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Failed { message, .. } => panic!("failed: {message}"),
                _ => {}
            }
        }
        tokens
    };
    streams.into_iter().map(collect).collect()
}

#[test]
fn recorded_steps_give_the_tokens_of_launched_ones() {
    if CudaDevice::available().is_empty() {
        eprintln!("skipped: no GPU, or built without CUDA kernels");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for arch in ARCHS {
        let model = write_tiny(folder.path(), arch, 1);
        let (recorded, launched) = (engine(&model, true), engine(&model, false));
        // Alone: the same kernels on the same numbers.
        for request in requests(8) {
            let request = [request];
            let expected = tokens(&launched, &request);
            assert_eq!(expected[0].len(), request[0].sampling.max_tokens as usize);
            for run in 0..2 {
                assert_eq!(tokens(&recorded, &request), expected, "{arch}, run {run} of a prompt of {}", request[0].prompt.len());
            }
        }
        // Together: which steps they share depends on when they arrive, and with the step its kernels and the last bits of a sum.
        for count in [2, 3, 8, 13, 21, 40] {
            let requests = requests(count);
            let expected = tokens(&launched, &requests);
            let got = tokens(&recorded, &requests);
            let num_same = got.iter().zip(&expected).filter(|(got, expected)| got == expected).count();
            eprintln!("{arch}: {num_same} of {count} are the same");
            assert!(10 * num_same >= 7 * count, "{arch}: {num_same} of {count} are the same: {got:?} and {expected:?}");
        }
    }
}
