//! `ModelPool`: models that share memory, under many clients.
#![allow(clippy::unwrap_used, reason = "tests may stop at a surprise")]

#[path = "pool/named.rs"]
mod named;
#[path = "pool/swap.rs"]
mod swap;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use named::pool;
use pagoda_backends::pool::{ModelPool, OnDemand, PoolLimits, PoolModel};
use pagoda_backends::{BackendError, GenerateRequest, GenerationConfig, InferenceBackend, Prompt};
use tokio::sync::Notify;

fn request() -> GenerateRequest {
    GenerateRequest { prompt: Prompt::Tokens(vec![1]), config: GenerationConfig::default() }
}

async fn ask(model: &OnDemand) -> String {
    model.generate(request()).await.unwrap().choices[0].text.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thirty_two_clients_mix_models_that_do_not_fit_together() {
    let cases: [(&[(&str, usize)], usize); 3] =
        [(&[("a", 6), ("b", 6)], 10), (&[("a", 3), ("b", 3), ("c", 3)], 6), (&[("a", 1), ("b", 9), ("c", 5), ("d", 4)], 10)];
    for (sizes, budget) in cases {
        let (log, _pool, models) = pool(sizes, budget, 1000, None);
        let client = |client: usize| {
            let models = &models;
            async move {
                for turn in 0..20 {
                    // Some stay with a model for a while, some change every time.
                    let idx = (client + turn / (client % 5 + 1)) % models.len();
                    assert_eq!(ask(&models[idx]).await, sizes[idx].0);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), join_all((0..32).map(client))).await.expect("nobody waits for ever");
        assert!(log.most_bytes.load(SeqCst) <= budget, "{} of {budget} bytes", log.most_bytes.load(SeqCst));
        let num_answers: u64 = models.iter().map(|model| model.stats().num_steps).sum();
        assert_eq!(num_answers, 32 * 20, "counts of all lives");
        let num_loads = log.num_loads.load(SeqCst);
        assert!(num_loads >= sizes.len() && num_loads < 32 * 20 / 2, "{num_loads} loads for {num_answers} answers");
    }
}

#[tokio::test]
async fn the_one_not_used_for_longest_goes() {
    let (log, pool, models) = pool(&[("a", 3), ("b", 3), ("c", 3)], 6, 9, None);
    pool.preload().await.unwrap();
    assert_eq!(*log.lives.lock().unwrap(), ["+a", "+b"]);
    for idx in [1, 0, 2, 0, 1] {
        ask(&models[idx]).await;
    }
    assert_eq!(*log.lives.lock().unwrap(), ["+a", "+b", "-b", "+c", "-c", "+b"]);
}

#[tokio::test]
async fn what_needs_no_weights_loads_nothing() {
    let (log, _pool, models) = pool(&[("a", 3), ("b", 3)], 3, 9, None);
    assert_eq!(models[1].count_tokens(&Prompt::Tokens(vec![1])).await, Ok(1));
    assert_eq!(models[1].detokenize(&[1]).await, Ok("b".into()));
    assert_eq!((models[1].capabilities().max_context_length, models[1].health()), (9, Ok(())));
    assert_eq!(log.num_loads.load(SeqCst), 0);
}

#[tokio::test]
async fn a_busy_model_ends_what_it_has_and_gets_nothing_new() {
    let gate = Arc::new(Notify::new());
    let (log, _pool, models) = pool(&[("a", 3), ("b", 3)], 3, 9, Some(Arc::clone(&gate)));
    let mut running = models[0].generate_stream(request()).await.unwrap();
    let asked = |idx: usize| {
        let model = Arc::clone(&models[idx]);
        tokio::spawn(async move { ask(&model).await })
    };
    let other = asked(1);
    // The other model waits until the first may go, and then the first takes nobody any more.
    tokio::time::sleep(Duration::from_millis(120)).await;
    let again = asked(0);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!((models[0].stats().num_waiting, models[1].stats().num_waiting), (1, 1));
    assert_eq!(*log.lives.lock().unwrap(), ["+a"]);
    let open = tokio::spawn(async move {
        loop {
            gate.notify_waiters();
            gate.notify_one();
            tokio::task::yield_now().await;
        }
    });
    while running.next().await.is_some() {}
    drop(running);
    assert_eq!((other.await.unwrap(), again.await.unwrap()), ("b".into(), "a".into()));
    open.abort();
    assert_eq!(*log.lives.lock().unwrap(), ["+a", "-a", "+b", "-b", "+a"]);
}

#[tokio::test]
async fn those_who_leave_hold_nothing() {
    let gate = Arc::new(Notify::new());
    let (log, _pool, models) = pool(&[("a", 3), ("b", 3)], 3, 9, Some(gate));
    let running = models[0].generate_stream(request()).await.unwrap();
    // One that waits for the other model goes away; then the one that runs.
    let waiting = tokio::time::timeout(Duration::from_millis(80), models[1].generate_stream(request()));
    assert!(waiting.await.is_err());
    drop(running);
    assert_eq!(models[1].stats().num_waiting, 0);
    drop(models[0].generate_stream(request()).await.unwrap());
    drop(models[1].generate_stream(request()).await.unwrap());
    assert_eq!(log.lives.lock().unwrap().last().map(String::as_str), Some("+b"));
}

#[tokio::test]
async fn a_failed_load_tells_those_who_waited_and_is_tried_again() {
    let (log, _pool, models) = pool(&[("a", 3), ("b", 3)], 3, 9, None);
    log.fails.store(true, SeqCst);
    for outcome in join_all((0..5).map(|_| models[0].generate_stream(request()))).await {
        let error = outcome.err().expect("the load fails").to_string();
        assert!(error.contains("model `a` could not be loaded: no such file"), "{error}");
    }
    log.fails.store(false, SeqCst);
    assert_eq!(ask(&models[0]).await, "a");
    assert_eq!(ask(&models[1]).await, "b");
}

#[tokio::test]
async fn bounds() {
    let gate = Arc::new(Notify::new());
    let (_log, _pool, models) = pool(&[("a", 3), ("b", 3)], 3, 2, Some(gate));
    let _running = models[0].generate_stream(request()).await.unwrap();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            tokio::spawn({
                let model = Arc::clone(&models[1]);
                async move { model.generate_stream(request()).await.map(|_| ()) }
            })
        })
        .collect();
    while models[1].stats().num_waiting < 2 {
        tokio::task::yield_now().await;
    }
    let refusal = models[1].generate_stream(request()).await.err();
    assert!(matches!(refusal, Some(BackendError::Overloaded { .. })), "{refusal:?}");
    waiting.iter().for_each(|waiting| waiting.abort());
    let models =
        vec![PoolModel { name: "big".into(), need_bytes: 9, kept_bytes: 9, load: Box::new(|| Err(BackendError::Internal(String::new()))) }];
    let limits = PoolLimits { budget_bytes: 8, swap_bytes: 0, max_waiting: 1 };
    let refusal = ModelPool::new(models, limits).err().unwrap().to_string();
    assert!(refusal.contains("`big` needs 9 bytes") && refusal.contains("at most 8"), "{refusal}");
}
