//! Requests to the backend itself: turns, several outputs, aborts, 4 bits, and what is refused.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use pagoda_backends::{
    BackendError, Constraint, ConstraintForm, GenerateEvent, GenerateRequest, GenerationConfig, HuggingFace, HuggingFaceSettings,
    InferenceBackend, Prompt,
};

use crate::checkpoint::{load, settings, worker, write, write_wide};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn request(config: GenerationConfig) -> GenerateRequest {
    GenerateRequest { prompt: Prompt::Tokens(vec![288, 459, 467, 481]), config }
}

fn greedy(max_tokens: u32) -> GenerationConfig {
    GenerationConfig { max_tokens: Some(max_tokens), temperature: 0.0, ignore_eos: true, ..GenerationConfig::default() }
}

/// A backend over the tiny GPT-2, unless there is no worker.
fn backend(adjust: impl FnOnce(&mut HuggingFaceSettings)) -> Option<HuggingFace> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = settings(&worker()?);
    adjust(&mut settings);
    Some(load(&write(folder.path(), "gpt2"), &settings))
}

#[test]
fn several_outputs_go_on_from_one_prompt() {
    let Some(backend) = backend(|_| {}) else { return };
    runtime().block_on(async {
        let one = backend.generate(request(greedy(12))).await.expect("an answer");
        let three = backend.generate(request(GenerationConfig { n: 3, ..greedy(12) })).await.expect("an answer");
        assert_eq!(three.choices.len(), 3);
        for choice in &three.choices {
            assert_eq!(choice.text, one.choices[0].text);
        }
        let sampled = GenerationConfig { n: 2, temperature: 1.0, seed: Some(5), ..greedy(12) };
        let (first, again) = (backend.generate(request(sampled.clone())).await, backend.generate(request(sampled)).await);
        let (first, again) = (first.expect("an answer"), again.expect("an answer"));
        let texts = |output: &pagoda_backends::GenerateOutput| output.choices.iter().map(|choice| choice.text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&first), texts(&again));
        assert_ne!(first.choices[0].text, first.choices[1].text);
    });
}

#[test]
fn one_request_runs_and_the_others_wait() {
    let Some(backend) = backend(|settings| settings.max_waiting = 2) else { return };
    runtime().block_on(async {
        let mut first = backend.generate_stream(request(greedy(200))).await.expect("its turn");
        assert!(matches!(first.next().await, Some(GenerateEvent::Started { .. })));
        let mut second = backend.generate_stream(request(greedy(4))).await.expect("a place");
        assert!(futures_util::poll!(second.next()).is_pending(), "the first one still has its turn");
        assert_eq!(backend.stats().num_waiting, 1);
        let third = backend.generate_stream(request(greedy(4))).await.expect("a place");
        let refused = backend.generate_stream(request(greedy(4))).await.err().expect("two wait already");
        assert!(matches!(refused, BackendError::Overloaded { .. }), "{refused}");
        drop(third);
        drop(first);
        let events: Vec<GenerateEvent> = second.collect().await;
        assert!(matches!(events.last(), Some(GenerateEvent::Done(usage)) if usage.completion_tokens == 4), "{events:?}");
        // The first one was aborted, not finished.
        let started = Instant::now();
        while backend.stats().num_running > 0 {
            assert!(started.elapsed() < Duration::from_secs(10));
            tokio::task::yield_now().await;
        }
        assert!(backend.stats().num_steps < 200, "{:?}", backend.stats());
    });
}

/// What the worker still holds is not computed again, and the answer is the same as from nothing.
#[test]
fn conversations_go_on_from_what_is_there() {
    let (Some(backend), Some(fresh)) = (backend(|_| {}), backend(|_| {})) else { return };
    let tokens = |seed: u32, len: u32| (0..len).map(|i| 3 + (i * 37 + seed * 101) % 700).collect::<Vec<u32>>();
    let ask = |backend: &HuggingFace, prompt: Vec<u32>| {
        let request = GenerateRequest { prompt: Prompt::Tokens(prompt), config: greedy(8) };
        runtime().block_on(backend.generate(request)).expect("an answer")
    };
    let (first, other) = (tokens(1, 70), tokens(2, 50));
    let longer: Vec<u32> = first.iter().copied().chain(tokens(3, 20)).collect();
    let branch: Vec<u32> = first[..33].iter().copied().chain(tokens(4, 9)).collect();
    for (prompt, cached_tokens) in [(&first, 0), (&other, 0), (&longer, 64), (&branch, 32), (&longer, 80), (&other, 48)] {
        let (answer, expected) = (ask(&backend, prompt.clone()), ask(&fresh, prompt.clone()));
        assert_eq!(answer.choices[0].text, expected.choices[0].text);
        assert_eq!(answer.usage.cached_tokens, cached_tokens);
        fresh.engine().handle().clear_prefix_cache();
    }
}

#[test]
fn answers_follow_a_grammar() {
    let Some(backend) = backend(|_| {}) else { return };
    let form = ConstraintForm::Choice(vec!["yes".into(), "no".into()]);
    let constraint = Constraint { form, raw: true, compact_json: false, field: "guided_choice".into() };
    let config = GenerationConfig { constraint: Some(constraint), ignore_eos: false, ..greedy(12) };
    let output = runtime().block_on(backend.generate(request(config))).expect("an answer");
    assert!(["yes", "no"].contains(&output.choices[0].text.as_str()), "{:?}", output.choices[0].text);
    let capabilities = backend.capabilities();
    assert!(capabilities.structured_output && capabilities.streaming && !capabilities.batching && !capabilities.paged_attention);
}

#[test]
fn four_bits_take_less_memory() {
    let Some(dense) = backend(|_| {}) else { return };
    let Some(packed) = backend(|settings| settings.four_bit = true) else { return };
    // 2 layers of 12 * 64 * 64 weights in linear layers, 4 bytes each as f32; NF4 takes half a byte and a byte a block of 64 and more.
    let num_weights = 2 * 12 * 64 * 64;
    let saved = dense.loaded().weight_bytes - packed.loaded().weight_bytes;
    assert!((num_weights * 33 / 10..num_weights * 35 / 10).contains(&saved), "{saved} of {}", 4 * num_weights);
    let run = |backend: &HuggingFace| runtime().block_on(backend.generate(request(greedy(4)))).expect("an answer").choices[0].tokens.len();
    assert_eq!((run(&dense), run(&packed)), (4, 4));
}

/// What the system counts, not what the worker adds up.
#[test]
fn a_worker_with_four_bits_holds_less() {
    let Some(worker) = worker() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (hidden, layers) = (512, 3);
    let path = write_wide(folder.path(), hidden, layers);
    let run = |four_bit: bool| {
        let loaded = load(&path, &HuggingFaceSettings { four_bit, ..settings(&worker) }).loaded().clone();
        assert!(loaded.resident_bytes > loaded.weight_bytes, "{loaded:?}");
        loaded.resident_bytes
    };
    let (dense, packed) = (run(false), run(true));
    let linear_bytes = layers * 12 * hidden * hidden * 4;
    assert!(dense - packed > linear_bytes * 3 / 4, "{dense} and {packed} bytes, {linear_bytes} of linear layers in f32");
}

#[test]
fn what_cannot_be_loaded_is_said() {
    let Some(worker) = worker() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = write(folder.path(), "gpt2");
    let refused = |settings: &HuggingFaceSettings| HuggingFace::load(&path, settings, &mut |_, _| {}).err().expect("refused").to_string();
    let cuda = refused(&HuggingFaceSettings { device: "cuda".into(), ..settings(&worker) });
    assert!(cuda.contains("cuda") || cuda.contains("CUDA"), "{cuda}");
    let missing = refused(&HuggingFaceSettings { worker: Some("/no/such/worker".into()), ..settings(&worker) });
    assert!(missing.contains("/no/such/worker") && missing.contains("HF_WORKER"), "{missing}");
    let long = refused(&HuggingFaceSettings { max_model_len: Some(4096), ..settings(&worker) });
    assert!(long.contains("4096") && long.contains("256"), "{long}");
    std::fs::write(path.join("config.json"), r#"{"architectures": ["NoSuchForCausalLM"]}"#).expect("written");
    let unknown = refused(&settings(&worker));
    assert!(unknown.contains("NoSuchForCausalLM") && unknown.contains("GPTNeoXForCausalLM"), "{unknown}");
}
