//! Models that say their names, and a log of what was done with them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use pagoda_backends::pool::{ModelPool, OnDemand, PoolLimits, PoolModel};
use pagoda_backends::{
    BackendCapabilities, BackendError, BackendStats, GenerateEvent, GenerateRequest, GenerateStream, GenerationConfig, InferenceBackend,
    Prompt, StopReason, Usage,
};
use tokio::sync::Notify;

/// What all models of a test did.
#[derive(Default)]
pub struct Log {
    pub num_loads: AtomicUsize,
    /// Of weights, to the host and back.
    pub num_copies_out: AtomicUsize,
    pub num_copies_in: AtomicUsize,
    /// Host memory for weights, now and at most.
    pub kept_bytes: AtomicUsize,
    pub most_kept_bytes: AtomicUsize,
    pub bytes: AtomicUsize,
    pub most_bytes: AtomicUsize,
    /// Names in order of loads and unloads.
    pub lives: Mutex<Vec<String>>,
    pub fails: AtomicBool,
    pub sleep_fails: AtomicBool,
    pub wake_fails: AtomicBool,
}

impl Log {
    fn take(&self, bytes: usize) {
        self.most_bytes.fetch_max(self.bytes.fetch_add(bytes, SeqCst) + bytes, SeqCst);
    }
}

/// A model that says its name.
pub struct Named {
    name: String,
    bytes: usize,
    log: Arc<Log>,
    is_loaded: AtomicBool,
    /// Its weights are in host memory.
    is_kept: AtomicBool,
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
        log.take(bytes);
        log.lives.lock().unwrap().push(format!("+{name}"));
        Ok(Arc::new(Named::new(name, bytes, log, gate)))
    }

    fn new(name: &str, bytes: usize, log: &Arc<Log>, gate: Option<Arc<Notify>>) -> Named {
        Named {
            name: name.into(),
            bytes,
            log: Arc::clone(log),
            is_loaded: AtomicBool::new(true),
            is_kept: AtomicBool::new(false),
            num_steps: AtomicUsize::new(0),
            capabilities: BackendCapabilities {
                streaming: true,
                tool_calling: false,
                tool_dialect: None,
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

    /// A transfer of as many bytes as the weights have, unless they are there.
    fn sleep(&self) -> Result<(), BackendError> {
        if self.log.sleep_fails.load(SeqCst) {
            return Err(BackendError::Internal("no memory to pin".into()));
        }
        if !self.is_kept.swap(true, SeqCst) {
            self.log.num_copies_out.fetch_add(1, SeqCst);
            let kept = self.log.kept_bytes.fetch_add(self.bytes, SeqCst) + self.bytes;
            self.log.most_kept_bytes.fetch_max(kept, SeqCst);
        }
        assert!(self.is_loaded.swap(false, SeqCst), "{} falls asleep once", self.name);
        self.log.bytes.fetch_sub(self.bytes, SeqCst);
        self.log.lives.lock().unwrap().push(format!("z{}", self.name));
        Ok(())
    }

    fn wake(&self) -> Result<(), BackendError> {
        if self.log.wake_fails.load(SeqCst) {
            return Err(BackendError::Internal("no memory".into()));
        }
        assert!(!self.is_loaded.load(SeqCst), "{} slept", self.name);
        self.log.take(self.bytes);
        self.log.num_copies_in.fetch_add(1, SeqCst);
        self.log.lives.lock().unwrap().push(format!("w{}", self.name));
        self.is_loaded.store(true, SeqCst);
        Ok(())
    }

    fn unload(&self) {
        std::thread::sleep(Duration::from_millis(1));
        let (was_loaded, was_kept) = (self.is_loaded.swap(false, SeqCst), self.is_kept.swap(false, SeqCst));
        assert!(was_loaded || was_kept, "{} is unloaded once", self.name);
        self.log.bytes.fetch_sub(if was_loaded { self.bytes } else { 0 }, SeqCst);
        self.log.kept_bytes.fetch_sub(if was_kept { self.bytes } else { 0 }, SeqCst);
        self.log.lives.lock().unwrap().push(format!("-{}", self.name));
    }
}

/// Models of these sizes under a budget, without host memory to put them aside.
pub fn pool(
    sizes: &[(&str, usize)],
    budget_bytes: usize,
    max_waiting: usize,
    gate: Option<Arc<Notify>>,
) -> (Arc<Log>, Arc<ModelPool>, Vec<Arc<OnDemand>>) {
    pool_within(sizes, PoolLimits { budget_bytes, swap_bytes: 0, max_waiting }, gate)
}

pub fn pool_within(
    sizes: &[(&str, usize)],
    limits: PoolLimits,
    gate: Option<Arc<Notify>>,
) -> (Arc<Log>, Arc<ModelPool>, Vec<Arc<OnDemand>>) {
    let log = Arc::<Log>::default();
    let models = sizes.iter().map(|&(name, bytes)| {
        let (log, gate, own) = (Arc::clone(&log), gate.clone(), name.to_owned());
        let load = Box::new(move || Named::load(&own, bytes, &log, gate.clone()));
        PoolModel { name: name.into(), need_bytes: bytes, kept_bytes: bytes, load }
    });
    let pool = ModelPool::new(models.collect(), limits).unwrap();
    let face = |&(name, bytes): &(&str, usize)| Arc::new(Named::new(name, bytes, &log, None)) as Arc<dyn InferenceBackend>;
    let on_demand = sizes.iter().enumerate().map(|(idx, size)| Arc::new(OnDemand::new(&pool, idx, face(size)))).collect();
    (log, pool, on_demand)
}
