//! What must not change an answer: the batch around a request, the chunks of its prefill, cached prefixes, the loop that is one step
//! ahead, preemption. And what 64 streams at once look like: batched, hardly any KV slot wasted, blocks back within a step of an abort.

mod harness;

use harness::compare::Answer;
use harness::drive::{collect, greedy, run_alone, run_together};
use harness::{engine, small_options};
use pagoda_engine::core::EngineHandle;
use pagoda_engine::loader::{EngineOptions, LoadedModel};
use pagoda_engine::request::{Event, Request};
use pagoda_engine::sampling::SamplingParams;
use pagoda_engine::testing::{VOCAB, write_tiny};

const SEED: u64 = 1;
/// Sums may be taken in another order in another batch: nothing but the last bits of a logprob may show it.
const TOLERANCE: f32 = 1e-3;
/// Families whose attention differs most: full with rope scaling, sliding windows and soft caps, experts.
const ARCHS: [&str; 3] = ["llama", "gemma2", "mixtral"];

fn model(arch: &str, options: &EngineOptions) -> LoadedModel {
    let folder = tempfile::tempdir().expect("a temporary folder");
    engine(&write_tiny(folder.path(), arch, SEED), options)
}

/// `len` tokens that differ from those of other numbers.
fn prompt(number: usize, len: usize) -> Vec<u32> {
    let token = |i: usize| ((number * 7919 + i * 104_729 + i * i * 31) % (VOCAB - 3)) as u32;
    (0..len).map(token).collect()
}

/// Prompts around the block size and the chunk size, and long ones.
fn requests() -> Vec<Request> {
    [1, 5, 15, 16, 17, 31, 32, 33, 64, 100, 150].iter().enumerate().map(|(i, len)| greedy(&prompt(i, *len), 24)).collect()
}

fn assert_same(what: &str, expected: &[Answer], got: &[Answer]) {
    assert_eq!(expected.len(), got.len());
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        assert_eq!(e.tokens, g.tokens, "{what}: tokens of request {i}");
        for (step, (e, g)) in e.tops.iter().zip(&g.tops).enumerate() {
            let close = e.len() == g.len() && e.iter().zip(g).all(|(a, b)| (a.1 - b.1).abs() <= TOLERANCE);
            assert!(close, "{what}: logprobs of request {i}, step {step}: {e:?} and {g:?}");
        }
    }
}

/// Small steps, so that prompts are cut into chunks.
fn chunked() -> EngineOptions {
    EngineOptions { max_num_seqs: Some(8), max_num_batched_tokens: Some(16), ..small_options() }
}

#[test]
fn a_batch_does_not_change_an_answer() {
    for arch in ARCHS {
        let model = model(arch, &small_options());
        let alone = run_alone(&model.handle, requests());
        model.handle.clear_prefix_cache();
        let together = run_together(&model.handle, requests());
        assert!(model.handle.stats().max_running > 1, "{arch}: nothing ran together");
        assert_same(&format!("{arch}, alone and together"), &alone, &together);
    }
}

#[test]
fn chunks_do_not_change_an_answer() {
    for arch in ARCHS {
        let whole = run_together(&model(arch, &small_options()).handle, requests());
        let pieces = run_together(&model(arch, &chunked()).handle, requests());
        assert_same(&format!("{arch}, whole and in chunks"), &whole, &pieces);
    }
}

#[test]
fn a_cached_prefix_does_not_change_an_answer() {
    for arch in ARCHS {
        let off = EngineOptions { prefix_caching: false, ..small_options() };
        let expected = run_alone(&model(arch, &off).handle, requests());
        let cached = model(arch, &small_options());
        assert_same(&format!("{arch}, cache empty"), &expected, &run_alone(&cached.handle, requests()));
        let mut num_cached = 0;
        let again: Vec<Answer> = requests()
            .into_iter()
            .map(|request| {
                let (answer, usage) = collect(cached.handle.submit(request).expect("accepted"));
                num_cached += usage.cached_tokens;
                answer
            })
            .collect();
        // Whole blocks of 16, and at least the last token of a prompt is computed.
        assert!(num_cached >= 16 + 16 + 16 + 32 + 48 + 96 + 144, "{arch}: only {num_cached} tokens came from the cache");
        assert_same(&format!("{arch}, cache full"), &expected, &again);
    }
}

#[test]
fn another_salt_finds_nothing() {
    let model = model("llama", &small_options());
    let cached = |salt: u64| {
        let request = Request { cache_salt: salt, ..greedy(&prompt(1, 100), 2) };
        collect(model.handle.submit(request).expect("accepted")).1.cached_tokens
    };
    assert_eq!([cached(1), cached(2), cached(1), cached(2)], [0, 0, 96, 96]);
}

#[test]
fn the_loop_one_step_ahead_is_the_plain_loop() {
    for arch in ARCHS {
        let loops = [true, false].map(|step_ahead| {
            let options = EngineOptions { step_ahead, ..chunked() };
            run_together(&model(arch, &options).handle, requests())
        });
        assert_same(&format!("{arch}, ahead and plain"), &loops[0], &loops[1]);
    }
}

#[test]
fn sampled_tokens_depend_on_the_seed_alone() {
    let sampled = |seed: u64, number: usize| {
        let mut request = greedy(&prompt(number, 20), 24);
        request.sampling = SamplingParams { temperature: 1.0, top_p: 0.95, seed: Some(seed), ..request.sampling };
        request
    };
    let model = model("llama", &small_options());
    let requests = || (0..12).map(|i| sampled(100 + i as u64 % 4, i / 4));
    let alone = run_alone(&model.handle, requests());
    let together = run_together(&model.handle, requests());
    assert_same("seeded, alone and together", &alone, &together);
    assert_ne!(alone[0].tokens, alone[1].tokens, "seeds 100 and 101 gave the same tokens");
}

#[test]
fn preemption_does_not_change_an_answer() {
    for arch in ARCHS {
        let roomy = model(arch, &small_options());
        let expected = run_together(&roomy.handle, requests());
        assert_eq!(roomy.handle.stats().num_preemptions, 0);
        // One sequence of 256 tokens fits, all eleven do not.
        let bytes_per_block = small_options().kv_cache_bytes.expect("set") / roomy.handle.stats().num_blocks;
        let options = EngineOptions { kv_cache_bytes: Some(20 * bytes_per_block), max_model_len: Some(256), ..small_options() };
        let tight = model(arch, &options);
        assert_same(&format!("{arch}, preempted"), &expected, &run_together(&tight.handle, requests()));
        let stats = tight.handle.stats();
        assert!(stats.num_blocks <= 20 && stats.num_preemptions > 0, "{arch}: {stats:?}");
    }
}

/// Waits until the engine has nothing to do; its numbers are published after the last event of a request.
fn wait_idle(engine: &EngineHandle) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while engine.stats().num_running + engine.stats().num_waiting + engine.stats().num_used_blocks > 0 {
        assert!(std::time::Instant::now() < deadline, "blocks do not come back: {:?}", engine.stats());
        std::thread::yield_now();
    }
}

#[test]
fn sixty_four_streams_run_together_and_waste_little() {
    let model = model("llama", &small_options());
    let answers = run_together(&model.handle, (0..64).map(|i| greedy(&prompt(i, 256 + i), 48)));
    assert!(answers.iter().all(|answer| answer.tokens.len() == 48));
    let stats = model.handle.stats();
    assert!(stats.max_running > 32, "{stats:?}");
    assert!(stats.kv_waste() < 0.04, "{} of the KV slots are unused: {stats:?}", stats.kv_waste());
    wait_idle(&model.handle);
}

#[test]
fn aborted_streams_give_their_blocks_back_within_a_step() {
    // 64 sequences are all that may run: the newcomer starts only when aborted ones are gone, long before the others end.
    let options = EngineOptions { max_num_seqs: Some(64), ..small_options() };
    let model = model("llama", &options);
    let submit = |i: usize, max_tokens: usize| model.handle.submit(greedy(&prompt(i, 40), max_tokens)).expect("accepted");
    let mut streams: Vec<_> = (0..64).map(|i| submit(i, 400)).collect();
    for stream in &mut streams {
        while !matches!(stream.next_blocking().expect("an event"), Event::Token { .. }) {}
    }
    let before = model.handle.stats();
    assert_eq!(before.num_running, 64, "{before:?}");
    streams.truncate(32);
    let mut newcomer = submit(64, 2);
    assert!(matches!(newcomer.next_blocking(), Some(Event::Started { .. })));
    assert!(matches!(newcomer.next_blocking(), Some(Event::Token { .. })));
    let after = model.handle.stats();
    assert!(after.num_running <= 33 && after.num_used_blocks < before.num_used_blocks * 3 / 4, "{before:?}\n{after:?}");
    assert_eq!(after.num_preemptions, 0);
    drop(newcomer);
    for stream in streams {
        assert_eq!(collect(stream).0.tokens.len(), 399, "one token was taken above");
    }
    wait_idle(&model.handle);
}
