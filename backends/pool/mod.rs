//! `ModelPool`: several models under one memory budget. A model is loaded when a request needs it, and sent away when it was not used for
//! longest and another one needs its room; requests wait meanwhile, and none is lost. As long as the host has room for its weights, a model
//! that is sent away sleeps there and wakes when it is needed; else it is unloaded.
//!
//! Fairness: requests are served in order of arrival, those of a loaded model at once. When a model waits whose room a busy model takes, the
//! busy one gets no new requests, ends those it has, and goes; it stays at least as long as its load took, so that no more than about half
//! of the time is spent loading. Memory is counted by plan (`need_bytes`), never measured.

pub mod local;
mod on_demand;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::{BackendError, InferenceBackend};
use state::{Action, State, Waiter};

pub use on_demand::OnDemand;

/// Seconds after which a request may be sent again that found the queue full.
const RETRY_AFTER_S: u32 = 1;

/// Shortest time that a loaded model stays: as long as its load took, within these.
const MIN_STAY: Duration = Duration::from_millis(50);
/// See `MIN_STAY`.
const MAX_STAY: Duration = Duration::from_secs(30);

/// Loads a model; runs on the blocking pool.
pub type Load = Box<dyn Fn() -> Result<Arc<dyn InferenceBackend>, BackendError> + Send + Sync>;

/// A model of a pool.
pub struct PoolModel {
    /// Name, for logs.
    pub name: String,
    /// Memory it takes when loaded.
    pub need_bytes: usize,
    /// Host memory that it takes when it is put aside; 0: it is unloaded instead.
    pub kept_bytes: usize,
    /// Loads it.
    pub load: Load,
}

/// Bounds of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Memory that loaded models take together.
    pub budget_bytes: usize,
    /// Host memory for the weights of models that are put aside, and of those that were; 0: none is.
    pub swap_bytes: usize,
    /// Requests that wait for a load.
    pub max_waiting: usize,
}

/// Models that share memory.
pub struct ModelPool {
    models: Vec<PoolModel>,
    state: Mutex<State>,
}

impl ModelPool {
    /// A pool within these limits.
    ///
    /// # Errors
    /// The first model that does not fit by itself: its name and what it needs.
    pub fn new(models: Vec<PoolModel>, limits: PoolLimits) -> Result<Arc<ModelPool>, BackendError> {
        let budget_bytes = limits.budget_bytes;
        if let Some(model) = models.iter().find(|model| model.need_bytes > budget_bytes) {
            let (name, need) = (&model.name, model.need_bytes);
            return Err(BackendError::Unavailable(format!(
                "model `{name}` needs {need} bytes, all models together may take at most {budget_bytes}"
            )));
        }
        let state = State::new(models.iter().map(|model| (model.need_bytes, model.kept_bytes)), limits);
        Ok(Arc::new(ModelPool { models, state: Mutex::new(state) }))
    }

    /// Loads models in their order as long as they fit, and waits for them.
    ///
    /// # Errors
    /// The first load that failed.
    pub async fn preload(self: &Arc<Self>) -> Result<(), BackendError> {
        let num_fitting = self.lock().num_fitting();
        for idx in 0..num_fitting {
            drop(self.acquire(idx).await?);
        }
        Ok(())
    }

    /// The model, loaded, for as long as the lease lives.
    ///
    /// # Errors
    /// `Overloaded` when too many requests wait, or why the load failed.
    pub(crate) async fn acquire(self: &Arc<Self>, idx: usize) -> Result<Lease, BackendError> {
        let granted = {
            let mut state = self.lock();
            if let Some(backend) = state.take(idx) {
                return Ok(Lease { pool: Arc::clone(self), idx, backend });
            }
            let (sender, granted) = oneshot::channel();
            if !state.push(Waiter { idx, granted: sender }) {
                let message = format!("{} requests wait for models to be loaded", state.num_waiting());
                return Err(BackendError::Overloaded { message, retry_after_s: RETRY_AFTER_S });
            }
            granted
        };
        self.advance();
        granted.await.unwrap_or_else(|_| Err(BackendError::Unavailable("the models are being unloaded".into())))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does whatever can be done now: hands out loaded models, begins a load or an unload.
    fn advance(self: &Arc<Self>) {
        loop {
            let action = self.lock().next(Instant::now());
            match action {
                Action::Grant(waiter, backend) => {
                    let lease = Lease { pool: Arc::clone(self), idx: waiter.idx, backend };
                    // Whoever waited may be gone; the lease then goes as well.
                    drop(waiter.granted.send(Ok(lease)));
                }
                Action::Load(idx) => self.spawn(move |pool| pool.load(idx)),
                Action::Wake(idx, backend) => self.spawn(move |pool| pool.wake(idx, backend)),
                Action::Sleep(idx, backend) => self.spawn(move |pool| pool.sleep(idx, backend)),
                Action::Unload(idx, backend) => self.spawn(move |pool| pool.unload(idx, &backend, false)),
                Action::WaitUntil(time) => return self.wake_at(time),
                Action::Nothing => return,
            }
        }
    }

    /// Runs work that blocks, then goes on.
    fn spawn(self: &Arc<Self>, work: impl FnOnce(&Arc<ModelPool>) + Send + 'static) {
        let pool = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            work(&pool);
            pool.advance();
        });
    }

    fn wake_at(self: &Arc<Self>, time: Instant) {
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(time.into()).await;
            pool.advance();
        });
    }

    fn load(&self, idx: usize) {
        let (name, started) = (self.models[idx].name.as_str(), Instant::now());
        tracing::info!(model = name, "loading");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.models[idx].load)()))
            .unwrap_or_else(|_| Err(BackendError::Internal("the load panicked".into())));
        let took = started.elapsed();
        match &outcome {
            Ok(_) => tracing::info!(model = name, seconds = took.as_secs_f32(), "model loaded"),
            Err(error) => tracing::error!(model = name, %error, "model could not be loaded"),
        }
        let failed = self.lock().loaded(idx, outcome, Instant::now() + took.clamp(MIN_STAY, MAX_STAY));
        if let Some((waiters, error)) = failed {
            let message = format!("model `{name}` could not be loaded: {error}");
            for waiter in waiters {
                drop(waiter.granted.send(Err(BackendError::Unavailable(message.clone()))));
            }
        }
    }

    /// Wakes a model, or loads it anew if that fails.
    fn wake(&self, idx: usize, backend: Arc<dyn InferenceBackend>) {
        let (name, started) = (self.models[idx].name.as_str(), Instant::now());
        if let Err(error) = backend.wake() {
            tracing::warn!(model = name, %error, "model does not wake: it is loaded anew");
            self.unload(idx, &backend, true);
            drop(backend);
            return self.load(idx);
        }
        let took = started.elapsed();
        tracing::info!(model = name, seconds = took.as_secs_f32(), "model awake");
        self.lock().loaded(idx, Ok(backend), Instant::now() + took.clamp(MIN_STAY, MAX_STAY));
    }

    /// Puts a model aside, or unloads it if that fails.
    fn sleep(&self, idx: usize, backend: Arc<dyn InferenceBackend>) {
        let (name, started) = (self.models[idx].name.as_str(), Instant::now());
        if let Err(error) = backend.sleep() {
            tracing::warn!(model = name, %error, "model cannot be put aside: it is unloaded");
            return self.unload(idx, &backend, false);
        }
        tracing::info!(model = name, seconds = started.elapsed().as_secs_f32(), "model asleep");
        self.lock().put_aside(idx, backend);
    }

    fn unload(&self, idx: usize, backend: &Arc<dyn InferenceBackend>, is_loading: bool) {
        let started = Instant::now();
        let stats = backend.stats();
        backend.unload();
        tracing::info!(model = self.models[idx].name, seconds = started.elapsed().as_secs_f32(), "model unloaded");
        self.lock().unloaded(idx, &stats, is_loading);
    }

    fn release(self: &Arc<Self>, idx: usize) {
        self.lock().release(idx);
        self.advance();
    }
}

/// The right to use a loaded model.
pub(crate) struct Lease {
    pool: Arc<ModelPool>,
    idx: usize,
    backend: Arc<dyn InferenceBackend>,
}

impl Lease {
    pub(crate) fn backend(&self) -> &Arc<dyn InferenceBackend> {
        &self.backend
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.release(self.idx);
    }
}
