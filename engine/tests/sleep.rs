//! Engines that sleep: the CPU device over a tiny model, and a fake runner that counts and refuses. The GPU's side: `cuda_sleep.rs`.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "testing")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use pagoda_engine::core::{EngineConfig, EngineHandle, RequestStream, start_runner};
use pagoda_engine::error::{EngineError, Result};
use pagoda_engine::loader::{DeviceChoice, EngineOptions, KvDtype, load};
use pagoda_engine::request::{Event, Request};
use pagoda_engine::runner::executor::StepRunner;
use pagoda_engine::runner::{StepInputs, StepOutputs};
use pagoda_engine::sampling::{SampleOutput, SamplingParams};
use pagoda_engine::testing::write_tiny;
use pagoda_scheduler::SchedulerConfig;

fn request(max_tokens: u32) -> Request {
    let sampling = SamplingParams { max_tokens, ignore_eos: true, logprobs: Some(0), ..SamplingParams::default() };
    Request { prompt: (5..45).collect(), sampling, priority: 0, cache_salt: 0 }
}

/// Tokens with the bits of their logprobs, and how many prompt tokens were cached; or why it failed.
fn answer(mut stream: RequestStream) -> std::result::Result<(Vec<(u32, u32)>, usize), String> {
    let (mut tokens, mut num_cached) = (Vec::new(), 0);
    while let Some(event) = stream.next_blocking() {
        match event {
            Event::Started { cached_tokens } => num_cached = cached_tokens,
            Event::Token { token, logprobs, .. } => tokens.push((token, logprobs.map_or(0, |l| l.logprob.to_bits()))),
            Event::Failed { message, .. } | Event::Refused { message } => return Err(message),
            _ => {}
        }
    }
    Ok((tokens, num_cached))
}

fn on_cpu(path: &Path, kv_cache_dtype: KvDtype) -> EngineHandle {
    let options = EngineOptions {
        device: DeviceChoice::Cpu,
        threads: Some(1),
        kv_cache_bytes: Some(1 << 20),
        max_num_seqs: Some(4),
        max_num_batched_tokens: Some(64),
        kv_cache_dtype,
        ..EngineOptions::default()
    };
    load(path, &options, &mut |_| ()).unwrap().handle
}

#[test]
fn what_slept_answers_as_before_and_its_cache_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    for (arch, kv_dtype) in [("qwen2", KvDtype::Auto), ("llama", KvDtype::Fp8), ("mixtral", KvDtype::F16)] {
        let engine = on_cpu(&write_tiny(folder.path(), arch, 1), kv_dtype);
        let ask = || answer(engine.submit(request(9)).unwrap()).unwrap();
        let (expected, _) = ask();
        assert_eq!(expected.len(), 9);
        assert!(ask().1 > 0, "{arch}: a prompt that is known is cached");
        for _ in 0..2 {
            engine.sleep().unwrap();
            engine.sleep().unwrap();
            let refusal = answer(engine.submit(request(9)).unwrap()).unwrap_err();
            assert!(refusal.contains("sleeps"), "{refusal}");
            assert_eq!(engine.stats().num_used_blocks, 0);
            engine.wake().unwrap();
            engine.wake().unwrap();
            assert_eq!(ask(), (expected.clone(), 0), "{arch}");
        }
        engine.sleep().unwrap();
        // Asleep it ends like any other.
        engine.unload();
        assert!(matches!(engine.wake(), Err(EngineError::EngineDead(_))), "{arch}");
    }
}

/// Answers token 9, and checks that it is never asked to run while it sleeps.
struct Fake {
    sleeps: Arc<AtomicBool>,
    refuses: Arc<AtomicBool>,
    done: std::collections::VecDeque<StepOutputs>,
}

impl StepRunner for Fake {
    fn launch(&mut self, inputs: StepInputs) -> Result<()> {
        assert!(!self.sleeps.load(SeqCst), "a step while it sleeps");
        std::thread::yield_now();
        let sampled = inputs.samples.iter().map(|_| SampleOutput { token: 9, logprobs: None }).collect();
        self.done.push_back(StepOutputs { id: inputs.id, sampled, ..StepOutputs::default() });
        Ok(())
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Result<StepOutputs> {
        Ok(self.done.pop_front().unwrap())
    }

    fn sleep(&mut self) -> Result<()> {
        if self.refuses.load(SeqCst) {
            return Err(EngineError::Device("no memory to pin".into()));
        }
        assert!(self.done.is_empty() && !self.sleeps.swap(true, SeqCst), "asleep once, with nothing launched");
        Ok(())
    }

    fn wake(&mut self) -> Result<()> {
        if self.refuses.load(SeqCst) {
            return Err(EngineError::Device("no memory".into()));
        }
        assert!(self.sleeps.swap(false, SeqCst), "woken once");
        Ok(())
    }
}

/// An engine over a fake, what tells whether it sleeps, and what makes it refuse.
fn fake(step_ahead: bool) -> (EngineHandle, Arc<AtomicBool>, Arc<AtomicBool>) {
    let scheduler = SchedulerConfig {
        block_size: 4,
        num_blocks: 64,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        min_chunk: 1,
        max_model_len: 200,
        prefix_caching: true,
        max_waiting: 64,
    };
    let config = EngineConfig { scheduler, vocab_size: 50, eos_token_ids: vec![0], step_ahead, restart_on_failure: false };
    let (sleeps, refuses) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let runner = Fake { sleeps: sleeps.clone(), refuses: refuses.clone(), done: Default::default() };
    (start_runner(config, runner).unwrap(), sleeps, refuses)
}

#[test]
fn what_runs_is_finished_and_what_comes_is_refused() {
    for step_ahead in [false, true] {
        let (engine, sleeps, _) = fake(step_ahead);
        for _ in 0..20 {
            let running = engine.submit(request(150)).unwrap();
            let sleeper = std::thread::spawn({
                let engine = engine.clone();
                move || engine.sleep()
            });
            let late = answer(engine.submit(request(3)).unwrap());
            assert!(
                late.as_ref().is_ok_and(|(tokens, _)| tokens.len() == 3) || late.as_ref().is_err_and(|e| e.contains("sleeps")),
                "{late:?}"
            );
            assert_eq!(answer(running).unwrap().0.len(), 150, "it had begun, so it ends");
            sleeper.join().unwrap().unwrap();
            assert!(sleeps.load(SeqCst));
            engine.wake().unwrap();
        }
    }
}

#[test]
fn refusals_leave_the_engine_as_it_was() {
    let (engine, sleeps, refuses) = fake(true);
    refuses.store(true, SeqCst);
    assert!(engine.sleep().unwrap_err().to_string().contains("no memory to pin"));
    assert_eq!(answer(engine.submit(request(5)).unwrap()).unwrap().0.len(), 5, "awake");
    refuses.store(false, SeqCst);
    engine.sleep().unwrap();
    refuses.store(true, SeqCst);
    assert!(engine.wake().unwrap_err().to_string().contains("no memory"));
    assert!(answer(engine.submit(request(5)).unwrap()).is_err() && sleeps.load(SeqCst), "asleep");
    refuses.store(false, SeqCst);
    engine.wake().unwrap();
    assert_eq!(answer(engine.submit(request(5)).unwrap()).unwrap().0.len(), 5);
}

/// The queue keeps what it holds when the engine ends: nobody may wait for that.
#[test]
fn who_asks_while_the_engine_ends_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let model = write_tiny(folder.path(), "qwen2", 1);
    for _ in 0..20 {
        let engine = on_cpu(&model, KvDtype::Auto);
        let ask = |is_wake: bool| {
            let engine = engine.clone();
            std::thread::spawn(move || {
                loop {
                    let asked = if is_wake { engine.wake() } else { engine.submit(request(1)).map(|stream| drop(answer(stream))) };
                    match asked {
                        Ok(()) | Err(EngineError::QueueFull(_)) => {}
                        Err(EngineError::EngineDead(_)) => return,
                        Err(other) => panic!("{other}"),
                    }
                }
            })
        };
        let asking = [ask(false), ask(true), ask(true)];
        engine.unload();
        for thread in asking {
            thread.join().unwrap();
        }
    }
}
