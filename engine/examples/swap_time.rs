//! How long it takes to swap two models whose weights are in pinned host memory: the same checkpoint in two engines, one asleep. Prints the
//! first sleep of each, which makes its copy, then swaps: `swap_time FOLDER [SWAPS]`. Needs a GPU and host memory for the weights twice.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use pagoda_engine::core::EngineHandle;
use pagoda_engine::loader::{DeviceChoice, EngineOptions, load};
use pagoda_engine::request::{Event, Request};
use pagoda_engine::sampling::SamplingParams;

const KV_BYTES: usize = 8 << 30;
const MEMORY_BYTES: usize = 60 << 30;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let folder = PathBuf::from(arguments.next().expect("swap_time FOLDER [SWAPS]"));
    let num_swaps = arguments.next().map_or(6, |number| number.to_string_lossy().parse().expect("SWAPS: a number"));
    let timed = |what: &str, work: &dyn Fn()| {
        let started = Instant::now();
        work();
        println!("{what:<24} {:>7.1} ms", started.elapsed().as_secs_f64() * 1e3);
    };
    let first = engine(&folder);
    let expected = answer(&first);
    timed("first sleep (copies)", &|| first.sleep().unwrap());
    let second = engine(&folder);
    assert_eq!(answer(&second), expected, "two engines over one checkpoint");
    timed("first sleep (copies)", &|| second.sleep().unwrap());
    timed("wake", &|| first.wake().unwrap());
    let (mut awake, mut asleep) = (&first, &second);
    let mut swaps = Vec::new();
    for _ in 0..num_swaps {
        let started = Instant::now();
        awake.sleep().unwrap();
        let slept = started.elapsed();
        asleep.wake().unwrap();
        let swapped = started.elapsed();
        let token = answer_of(asleep, 1);
        let with_token = started.elapsed();
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        println!("swap {:>7.1} ms (sleep {:>6.1}), {:>7.1} ms to the first token", ms(swapped), ms(slept), ms(with_token));
        swaps.push(ms(swapped));
        assert_eq!(token, expected[..1]);
        (awake, asleep) = (asleep, awake);
    }
    assert_eq!(answer(awake), expected, "the same tokens after all swaps");
    swaps.sort_by(f64::total_cmp);
    println!("swap, median of {num_swaps}: {:.1} ms; slowest {:.1} ms", swaps[swaps.len() / 2], swaps[swaps.len() - 1]);
}

fn engine(folder: &Path) -> EngineHandle {
    let options = EngineOptions {
        device: DeviceChoice::Cuda,
        memory_limit_bytes: Some(MEMORY_BYTES),
        kv_cache_bytes: Some(KV_BYTES),
        prefix_caching: false,
        ..EngineOptions::default()
    };
    let started = Instant::now();
    let model = load(folder, &options, &mut |_| ()).unwrap();
    let gb = model.plan.weight_bytes as f64 / 1e9;
    println!("load of {gb:.2} GB       {:>7.1} ms", started.elapsed().as_secs_f64() * 1e3);
    model.handle
}

/// Greedy tokens of a fixed prompt.
fn answer(engine: &EngineHandle) -> Vec<u32> {
    answer_of(engine, 24)
}

fn answer_of(engine: &EngineHandle, max_tokens: u32) -> Vec<u32> {
    let sampling = SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() };
    let prompt = (0..200).map(|i| (i * 7919 + 13) % 4096).collect();
    let mut stream = engine.submit(Request { prompt, sampling, priority: 0, cache_salt: 0 }).unwrap();
    let mut tokens = Vec::new();
    while let Some(event) = stream.next_blocking() {
        match event {
            Event::Token { token, .. } => tokens.push(token),
            Event::Failed { message, .. } | Event::Refused { message } => panic!("failed: {message}"),
            _ => {}
        }
    }
    tokens
}
