//! `ModelPool`: models that share memory, under many clients.
#![allow(clippy::unwrap_used, reason = "tests may stop at a surprise")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use pagoda_backends::pool::{ModelPool, OnDemand, PoolModel};
use pagoda_backends::{
    BackendCapabilities, BackendError, BackendStats, GenerateEvent, GenerateRequest, GenerateStream, GenerationConfig, InferenceBackend,
    Prompt, StopReason, Usage,
};
use tokio::sync::Notify;

/// What all models of a test did.
#[derive(Default)]
struct Log {
    num_loads: AtomicUsize,
    bytes: AtomicUsize,
    most_bytes: AtomicUsize,
    /// Names in order of loads and unloads.
    lives: Mutex<Vec<String>>,
    fails: AtomicBool,
}

/// A model that says its name.
struct Named {
    name: String,
    bytes: usize,
    log: Arc<Log>,
    is_loaded: AtomicBool,
    num_steps: AtomicUsize,
    capabilities: BackendCapabilities,
    /// Answers wait for it.
    gate: Option<Arc<Notify>>,
}

impl Named {
    fn load(name: &str, bytes: usize, log: &Arc<Log>, gate: Option<Arc<Notify>>) -> Result<Arc<dyn InferenceBackend>, BackendError> {
        std::thread::sleep(Duration::from_millis(2));
        if log.fails.load(SeqCst) {
            return Err(BackendError::Internal("no such file".into()));
        }
        log.num_loads.fetch_add(1, SeqCst);
        log.most_bytes.fetch_max(log.bytes.fetch_add(bytes, SeqCst) + bytes, SeqCst);
        log.lives.lock().unwrap().push(format!("+{name}"));
        Ok(Arc::new(Named::new(name, bytes, log, gate)))
    }

    fn new(name: &str, bytes: usize, log: &Arc<Log>, gate: Option<Arc<Notify>>) -> Named {
        Named {
            name: name.into(),
            bytes,
            log: Arc::clone(log),
            is_loaded: AtomicBool::new(true),
            num_steps: AtomicUsize::new(0),
            capabilities: BackendCapabilities {
                streaming: true,
                tool_calling: false,
                structured_output: false,
                batching: true,
                multi_gpu: false,
                quantization: Vec::new(),
                max_context_length: 9,
                continuous_batching: true,
                paged_attention: true,
            },
            gate,
        }
    }
}

#[async_trait]
impl InferenceBackend for Named {
    async fn generate_stream(&self, _request: GenerateRequest) -> Result<GenerateStream, BackendError> {
        assert!(self.is_loaded.load(SeqCst), "{} is used while it is loaded", self.name);
        self.num_steps.fetch_add(1, SeqCst);
        let events = vec![
            GenerateEvent::Started { prompt_tokens: 1, prompt_token_ids: vec![1], cached_tokens: 0 },
            GenerateEvent::Delta { choice: 0, text: self.name.clone(), tokens: Vec::new() },
            GenerateEvent::Finished { choice: 0, reason: StopReason::EndOfTurn },
            GenerateEvent::Done(Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 1 }),
        ];
        let gate = self.gate.clone();
        Ok(stream::iter(events)
            .then(move |event| {
                let gate = gate.clone();
                async move {
                    match gate {
                        Some(gate) => gate.notified().await,
                        None => tokio::task::yield_now().await,
                    }
                    event
                }
            })
            .boxed())
    }

    async fn tokenize(&self, _prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        Ok(vec![1])
    }

    async fn detokenize(&self, _tokens: &[u32]) -> Result<String, BackendError> {
        Ok(self.name.clone())
    }

    fn token_str(&self, _token: u32) -> Option<String> {
        None
    }

    fn default_config(&self) -> GenerationConfig {
        GenerationConfig::default()
    }

    fn capabilities(&self) -> &BackendCapabilities {
        &self.capabilities
    }

    fn stats(&self) -> BackendStats {
        BackendStats { num_steps: self.num_steps.load(SeqCst) as u64, ..BackendStats::default() }
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }

    fn unload(&self) {
        std::thread::sleep(Duration::from_millis(1));
        assert!(self.is_loaded.swap(false, SeqCst), "{} is unloaded once", self.name);
        self.log.bytes.fetch_sub(self.bytes, SeqCst);
        self.log.lives.lock().unwrap().push(format!("-{}", self.name));
    }
}

/// Models of these sizes under a budget.
fn pool(
    sizes: &[(&str, usize)],
    budget: usize,
    max_waiting: usize,
    gate: Option<Arc<Notify>>,
) -> (Arc<Log>, Arc<ModelPool>, Vec<Arc<OnDemand>>) {
    let log = Arc::<Log>::default();
    let models = sizes.iter().map(|&(name, bytes)| {
        let (log, gate, own) = (Arc::clone(&log), gate.clone(), name.to_owned());
        let load = Box::new(move || Named::load(&own, bytes, &log, gate.clone()));
        PoolModel { name: name.into(), need_bytes: bytes, load }
    });
    let pool = ModelPool::new(models.collect(), budget, max_waiting).unwrap();
    let face = |&(name, bytes): &(&str, usize)| Arc::new(Named::new(name, bytes, &log, None)) as Arc<dyn InferenceBackend>;
    let on_demand = sizes.iter().enumerate().map(|(idx, size)| Arc::new(OnDemand::new(&pool, idx, face(size)))).collect();
    (log, pool, on_demand)
}

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
    let models = vec![PoolModel { name: "big".into(), need_bytes: 9, load: Box::new(|| Err(BackendError::Internal(String::new()))) }];
    let refusal = ModelPool::new(models, 8, 1).err().unwrap().to_string();
    assert!(refusal.contains("`big` needs 9 bytes") && refusal.contains("at most 8"), "{refusal}");
}
