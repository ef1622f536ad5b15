//! The engine thread over a fake runner: order of events, loops, aborts, failures. No model, no device.
//!
//! The fake really keeps tokens in paged blocks and answers with a hash of what it reads back, so that a wrong block table, slot or
//! copy changes the tokens.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pagoda_engine::core::{EngineConfig, EngineHandle, RequestStream, start};
use pagoda_engine::error::EngineError;
use pagoda_engine::request::{Event, FinishReason, Request, Usage};
use pagoda_engine::runner::{StepInputs, StepOutputs};
use pagoda_engine::sampling::{SampleOutput, SamplingParams, TokenLogprobs};
use pagoda_scheduler::SchedulerConfig;

const VOCAB: u32 = 1000;
const EOS: u32 = 7;
const BLOCK: usize = 4;

/// Paged "memory" of tokens and the last sampled token of each slot.
#[derive(Default)]
struct FakeModel {
    slots: HashMap<usize, u32>,
    last_tokens: HashMap<usize, u32>,
    choices: HashMap<usize, u32>,
    steps: u64,
}

impl FakeModel {
    fn execute(&mut self, inputs: StepInputs) -> StepOutputs {
        self.steps += 1;
        for &(src, dst) in &inputs.block_copies {
            for offset in 0..BLOCK {
                let token = self.slots.get(&(src as usize * BLOCK + offset)).copied();
                self.slots.insert(dst as usize * BLOCK + offset, token.unwrap_or(0));
            }
        }
        for (slot, state) in &inputs.admitted {
            self.choices.insert(*slot, state.choice);
        }
        let mut outputs = StepOutputs { id: inputs.id, ..StepOutputs::default() };
        for (idx, share) in inputs.shares().enumerate() {
            let sequence = share.sequence;
            let len = share.tokens.len();
            let physical = |position: usize| share.block_table[position / BLOCK] as usize * BLOCK + position % BLOCK;
            for (i, &token) in share.tokens.iter().enumerate() {
                let in_flight = sequence.input_in_flight && i + 1 == len;
                let token = if in_flight { self.last_tokens[&sequence.slot] } else { token };
                self.slots.insert(physical(sequence.start + i), token);
            }
            let read = (0..sequence.start + len).map(|p| self.slots[&physical(p)]);
            let hash = read.fold(17u64, |h, t| h.wrapping_mul(0x100_0000_01b3) ^ u64::from(t + 1));
            for &(slot, output_index) in share.samples {
                let mixed = (hash ^ u64::from(self.choices[&slot]) << 20 ^ u64::from(output_index)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let token = 10 + (mixed >> 40) as u32 % (VOCAB - 10);
                self.last_tokens.insert(slot, token);
                outputs.sampled.push(SampleOutput { token, logprobs: None });
            }
            if let Some(wanted) = &sequence.prompt_logprobs {
                let entry = |&token: &u32| TokenLogprobs { token, logprob: -1.0, rank: 1, top: Vec::new() };
                outputs.prompt_logprobs.push((idx, wanted.next_tokens.iter().map(entry).collect()));
            }
        }
        outputs
    }
}

fn config(num_blocks: usize, step_ahead: bool) -> EngineConfig {
    EngineConfig {
        scheduler: SchedulerConfig {
            block_size: BLOCK,
            num_blocks,
            max_num_seqs: 8,
            max_num_batched_tokens: 16,
            min_chunk: 1,
            max_model_len: 64,
            prefix_caching: true,
            max_waiting: 64,
        },
        vocab_size: VOCAB as usize,
        eos_token_ids: vec![EOS],
        step_ahead,
        restart_on_failure: false,
    }
}

fn engine(num_blocks: usize, step_ahead: bool) -> EngineHandle {
    let mut model = FakeModel::default();
    start(config(num_blocks, step_ahead), move |inputs| Ok(model.execute(inputs))).unwrap()
}

fn request(prompt: &[u32], max_tokens: u32) -> Request {
    let sampling = SamplingParams { max_tokens, ..SamplingParams::default() };
    Request { prompt: prompt.to_vec(), sampling, priority: 0, cache_salt: 0 }
}

/// What a stream said, checked for order.
struct Answer {
    tokens: Vec<Vec<u32>>,
    reasons: Vec<Option<FinishReason>>,
    prompt_logprobs: Vec<u32>,
    usage: Usage,
}

fn collect(mut stream: RequestStream, n: usize) -> Answer {
    let mut answer = Answer { tokens: vec![Vec::new(); n], reasons: vec![None; n], prompt_logprobs: Vec::new(), usage: Usage::default() };
    assert!(matches!(stream.next_blocking(), Some(Event::Started { .. })), "Started comes first");
    loop {
        match stream.next_blocking().expect("a final event comes before the end") {
            Event::Token { choice, token, .. } => {
                assert!(answer.reasons[choice as usize].is_none(), "no token after Finished");
                answer.tokens[choice as usize].push(token);
            }
            Event::Finished { choice, reason } => answer.reasons[choice as usize] = Some(reason),
            Event::PromptLogprobs(entries) => {
                assert!(answer.tokens.iter().all(Vec::is_empty), "prompt logprobs come before tokens");
                answer.prompt_logprobs = entries.iter().map(|e| e.token).collect();
            }
            Event::Done(usage) => {
                answer.usage = usage;
                assert!(stream.next_blocking().is_none(), "nothing after Done");
                return answer;
            }
            Event::Started { .. } => panic!("Started twice"),
            Event::Failed { message, .. } | Event::Refused { message } => panic!("failed: {message}"),
        }
    }
}

fn prompts(count: usize) -> Vec<Vec<u32>> {
    (0..count).map(|i| (0..3 + i % 17).map(|j| ((i * 31 + j * 7) % 900) as u32 + 10).collect()).collect()
}

/// Polls until `condition` or two seconds have passed.
fn eventually(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn many_requests_give_the_same_tokens_in_every_loop_and_pool() {
    let run = |num_blocks, step_ahead| -> Vec<Vec<u32>> {
        let engine = engine(num_blocks, step_ahead);
        let streams: Vec<_> = prompts(40).iter().map(|p| engine.submit(request(p, 20)).unwrap()).collect();
        let answers: Vec<_> = streams.into_iter().map(|s| collect(s, 1)).collect();
        assert!(engine.stats().max_running > 1, "requests share steps");
        assert!(answers.iter().all(|a| a.reasons == [Some(FinishReason::MaxTokens)] && a.usage.completion_tokens == 20));
        answers.into_iter().map(|a| a.tokens.concat()).collect()
    };
    let want = run(1000, false);
    assert_eq!(run(1000, true), want, "one step ahead");
    assert_eq!(run(18, false), want, "a tiny pool preempts");
    assert_eq!(run(18, true), want, "a tiny pool, one step ahead");
}

#[test]
fn several_outputs_share_their_prompt_and_end_each_on_its_own() {
    for step_ahead in [false, true] {
        let engine = engine(100, step_ahead);
        let mut wanted = request(&prompts(12)[11], 9);
        wanted.sampling.n = 3;
        let answer = collect(engine.submit(wanted).unwrap(), 3);
        assert_eq!(answer.reasons, vec![Some(FinishReason::MaxTokens); 3]);
        assert_eq!(answer.usage.completion_tokens, 27);
        assert_ne!(answer.tokens[0], answer.tokens[1]);
        assert!(eventually(|| engine.stats().num_used_blocks == 0), "all blocks are free");
    }
}

#[test]
fn prompt_logprobs_cover_each_prompt_token_once_whatever_the_chunks() {
    for (num_blocks, step_ahead) in [(100, false), (100, true), (17, true)] {
        let engine = engine(num_blocks, step_ahead);
        let others: Vec<_> = prompts(6).iter().map(|p| engine.submit(request(p, 20)).unwrap()).collect();
        let prompt: Vec<u32> = (100..150).collect();
        let mut wanted = request(&prompt, 2);
        wanted.sampling.prompt_logprobs = Some(0);
        let answer = collect(engine.submit(wanted).unwrap(), 1);
        assert_eq!(answer.prompt_logprobs, &prompt[1..]);
        others.into_iter().for_each(|s| assert_eq!(collect(s, 1).tokens[0].len(), 20));
    }
}

#[test]
fn a_repeated_prompt_hits_the_prefix_cache() {
    let engine = engine(100, true);
    let prompt: Vec<u32> = (100..140).collect();
    let first = collect(engine.submit(request(&prompt, 4)).unwrap(), 1);
    let second = collect(engine.submit(request(&prompt, 4)).unwrap(), 1);
    assert_eq!((first.usage.cached_tokens, second.usage.cached_tokens), (0, 36));
    assert_eq!(first.tokens, second.tokens);
    let mut salted = request(&prompt, 4);
    salted.cache_salt = 5;
    assert_eq!(collect(engine.submit(salted).unwrap(), 1).usage.cached_tokens, 0, "another tenant sees nothing");
}

#[test]
fn stop_tokens_end_an_output_and_are_counted() {
    let engine = engine(100, true);
    let free = collect(engine.submit(request(&[20, 21, 22], 12)).unwrap(), 1).tokens.concat();
    let mut stopped = request(&[20, 21, 22], 12);
    stopped.sampling.stop_token_ids = vec![free[5]];
    let answer = collect(engine.submit(stopped).unwrap(), 1);
    let first = free.iter().position(|&t| t == free[5]).unwrap();
    assert_eq!(answer.tokens[0], &free[..=first]);
    assert_eq!(answer.reasons, [Some(FinishReason::StopToken(free[5]))]);
}

#[test]
fn the_context_window_ends_an_output() {
    let engine = engine(100, true);
    let answer = collect(engine.submit(request(&(10..70).collect::<Vec<u32>>(), 100)).unwrap(), 1);
    assert_eq!((answer.tokens[0].len(), answer.reasons[0]), (4, Some(FinishReason::ContextFull)));
}

#[test]
fn dropped_streams_free_their_blocks_and_the_others_finish() {
    let engine = engine(400, true);
    let mut streams: Vec<_> = prompts(32).iter().map(|p| engine.submit(request(p, 40)).unwrap()).collect();
    let dropped = streams.split_off(16);
    drop(dropped);
    for stream in streams {
        assert_eq!(collect(stream, 1).tokens[0].len(), 40);
    }
    assert!(eventually(|| engine.stats().num_used_blocks == 0 && engine.stats().num_waiting == 0));
}

#[test]
fn a_failed_step_fails_every_request_once_and_ends_the_engine() {
    let mut model = FakeModel::default();
    let engine = start(config(100, true), move |inputs| match inputs.id {
        0..6 => Ok(model.execute(inputs)),
        _ => Err(EngineError::Device("lost".into())),
    })
    .unwrap();
    let streams: Vec<_> = prompts(3).iter().map(|p| engine.submit(request(p, 40)).unwrap()).collect();
    for mut stream in streams {
        let events: Vec<Event> = std::iter::from_fn(|| stream.next_blocking()).collect();
        let finals = events.iter().filter(|e| matches!(e, Event::Done(_) | Event::Failed { .. })).count();
        assert_eq!(finals, 1);
        assert!(matches!(events.last(), Some(Event::Failed { message, caller_fault: false }) if message.contains("lost")));
    }
    assert!(eventually(|| engine.health().is_err()));
    assert!(eventually(|| matches!(engine.submit(request(&[11], 1)), Err(EngineError::EngineDead(reason)) if reason.contains("lost"))));
}

#[test]
fn a_panicking_step_is_survived_when_restarting_is_on() {
    let mut model = FakeModel::default();
    let mut config = config(100, true);
    config.restart_on_failure = true;
    let mut calls = 0;
    let engine = start(config, move |inputs| {
        calls += 1;
        assert!(calls != 4, "step four is bad");
        Ok(model.execute(inputs))
    })
    .unwrap();
    let mut first = engine.submit(request(&[11, 12], 40)).unwrap();
    let last = std::iter::from_fn(|| first.next_blocking()).last();
    assert!(matches!(last, Some(Event::Failed { message, .. }) if message.contains("step four is bad")));
    assert_eq!(collect(engine.submit(request(&[11, 12], 10)).unwrap(), 1).tokens[0].len(), 10);
    assert!(engine.health().is_ok());
}

#[test]
fn a_lost_device_ends_the_engine_although_restarting_is_on() {
    let mut config = config(100, true);
    config.restart_on_failure = true;
    let engine = start(config, move |_| Err(EngineError::DeviceLost("fell off the bus".into()))).unwrap();
    let mut stream = engine.submit(request(&[11], 4)).unwrap();
    let last = std::iter::from_fn(|| stream.next_blocking()).last();
    assert!(matches!(last, Some(Event::Failed { message, caller_fault: false }) if message.contains("fell off the bus")));
    assert!(eventually(|| engine.health().is_err_and(|reason| reason.contains("device lost"))));
}

#[test]
fn requests_in_the_queue_of_an_engine_that_dies_are_refused() {
    let (gate, opened) = std::sync::mpsc::channel::<()>();
    let engine = start(config(100, false), move |_| {
        let _ = opened.recv();
        Err(EngineError::Device("broken".into()))
    })
    .unwrap();
    let mut first = engine.submit(request(&[11], 4)).unwrap();
    let mut queued: Vec<_> = (0..5).map(|_| engine.submit(request(&[11], 4)).unwrap()).collect();
    gate.send(()).unwrap();
    assert!(matches!(std::iter::from_fn(|| first.next_blocking()).last(), Some(Event::Failed { .. })));
    for stream in &mut queued {
        // Refused, or failed where the engine took it before its step failed: never left waiting.
        let last = std::iter::from_fn(|| stream.next_blocking()).last();
        assert!(matches!(last, Some(Event::Refused { .. } | Event::Failed { .. })), "{last:?}");
    }
}

#[test]
fn a_draining_engine_refuses_and_says_that_nothing_was_run() {
    let (gate, opened) = std::sync::mpsc::channel::<()>();
    let mut model = FakeModel::default();
    let mut is_first = true;
    let engine = start(config(100, false), move |inputs| {
        if std::mem::take(&mut is_first) {
            let _ = opened.recv();
        }
        Ok(model.execute(inputs))
    })
    .unwrap();
    let running = engine.submit(request(&[11, 12, 13], 5)).unwrap();
    engine.shutdown();
    let mut late = engine.submit(request(&[11], 1)).unwrap();
    gate.send(()).unwrap();
    assert_eq!(collect(running, 1).tokens[0].len(), 5);
    let events: Vec<Event> = std::iter::from_fn(|| late.next_blocking()).collect();
    assert!(matches!(events.as_slice(), [Event::Refused { message }] if message.contains("shut")), "{events:?}");
}

#[test]
fn requests_out_of_range_are_refused_with_the_reason() {
    let engine = engine(100, true);
    let cases = [
        (request(&[], 1), "prompt is empty"),
        (request(&[VOCAB], 1), "outside the vocabulary"),
        (request(&[11; 64], 1), "prompt is too long: 64 tokens > 63 maximum"),
        (request(&[11], 0), "max_tokens"),
    ];
    for (bad, reason) in cases {
        let error = engine.submit(bad).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(reason), "{error:?} should say {reason:?}");
    }
    let mut many = request(&[11], 1);
    many.sampling.n = 9;
    assert!(engine.submit(many).is_err(), "more outputs than sequences run at once");
}

#[test]
fn shutdown_finishes_what_runs_and_refuses_what_comes() {
    let engine = engine(100, true);
    let running = engine.submit(request(&[11, 12, 13], 30)).unwrap();
    engine.shutdown();
    assert_eq!(collect(running, 1).tokens[0].len(), 30);
    assert!(eventually(|| engine.health().is_err()));
    assert!(matches!(engine.submit(request(&[11], 1)), Err(EngineError::EngineDead(_))));
}
