//! What a decode step costs the engine thread, without model and device: `cargo run --release -p pagoda-engine --example host_time`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use pagoda_engine::core::{EngineConfig, start};
use pagoda_engine::request::{Event, Request};
use pagoda_engine::runner::{StepInputs, StepOutputs};
use pagoda_engine::sampling::{SampleOutput, SamplingParams};
use pagoda_scheduler::SchedulerConfig;

const PROMPT_LEN: usize = 512;
const OUTPUT_LEN: u32 = 400;

fn main() {
    for num_seqs in [1, 64, 256, 512] {
        measure(num_seqs);
    }
}

/// All sequences decode together; prompts are computed one after another before that.
fn measure(num_seqs: usize) {
    let scheduler = SchedulerConfig {
        block_size: 16,
        num_blocks: num_seqs * 64,
        max_num_seqs: num_seqs,
        max_num_batched_tokens: 8192,
        min_chunk: 1,
        max_model_len: 1024,
        prefix_caching: true,
        max_waiting: 1024,
    };
    let config = EngineConfig { scheduler, vocab_size: 1000, eos_token_ids: vec![999], step_ahead: true, restart_on_failure: false };
    let engine = start(config, |inputs: StepInputs| {
        let sampled = vec![SampleOutput { token: 7, logprobs: None }; inputs.samples.len()];
        Ok(StepOutputs { id: inputs.id, sampled, inputs, ..StepOutputs::default() })
    })
    .unwrap();
    let sampling = SamplingParams { max_tokens: OUTPUT_LEN, ignore_eos: true, ..SamplingParams::default() };
    let request = |i: usize| {
        let prompt = (0..PROMPT_LEN).map(|j| ((i * 7919 + j * 31) % 999) as u32).collect();
        Request { prompt, sampling: sampling.clone(), priority: 0, cache_salt: i as u64 }
    };
    let mut streams: Vec<_> = (0..num_seqs).map(|i| engine.submit(request(i)).unwrap()).collect();
    // The last to be admitted has its first token: from here on every step is a decode of all.
    while !matches!(streams[num_seqs - 1].next_blocking(), Some(Event::Token { .. })) {}
    let (before, started) = (engine.stats(), Instant::now());
    for stream in &mut streams {
        while stream.next_blocking().is_some() {}
    }
    let (after, wall_s) = (engine.stats(), started.elapsed().as_secs_f64());
    let num_steps = (after.num_steps - before.num_steps).max(1) as f64;
    let host_us = (after.host_us - before.host_us) as f64 / num_steps;
    println!("{num_seqs:>4} sequences: {host_us:>7.1} us a step on the engine thread, {:>7.1} us in all", wall_s * 1e6 / num_steps);
}
