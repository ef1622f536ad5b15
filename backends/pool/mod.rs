//! `ModelPool`: several models under one memory budget. A model is loaded when a request needs it, and unloaded when it was not used for
//! longest and another one needs its room; requests wait meanwhile, and none is lost.
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
    /// Loads it.
    pub load: Load,
}

/// Models that share memory.
pub struct ModelPool {
    models: Vec<PoolModel>,
    state: Mutex<State>,
}

impl ModelPool {
    /// A pool whose loaded models together take at most `budget_bytes`, and where at most `max_waiting` requests wait for a load.
    ///
    /// # Errors
    /// The first model that does not fit by itself: its name and what it needs.
    pub fn new(models: Vec<PoolModel>, budget_bytes: usize, max_waiting: usize) -> Result<Arc<ModelPool>, BackendError> {
        if let Some(model) = models.iter().find(|model| model.need_bytes > budget_bytes) {
            let (name, need) = (&model.name, model.need_bytes);
            return Err(BackendError::Unavailable(format!(
                "model `{name}` needs {need} bytes, all models together may take at most {budget_bytes}"
            )));
        }
        let needs = models.iter().map(|model| model.need_bytes).collect();
        Ok(Arc::new(ModelPool { models, state: Mutex::new(State::new(needs, budget_bytes, max_waiting)) }))
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
                Action::Unload(idx, backend) => self.spawn(move |pool| pool.unload(idx, &backend)),
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

    fn unload(&self, idx: usize, backend: &Arc<dyn InferenceBackend>) {
        let started = Instant::now();
        let stats = backend.stats();
        backend.unload();
        tracing::info!(model = self.models[idx].name, seconds = started.elapsed().as_secs_f32(), "model unloaded");
        self.lock().unloaded(idx, &stats);
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
