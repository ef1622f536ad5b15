//! `App`: what all requests share, and the route table.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::anthropic::batches::{self, Batches, NoBatches};
use crate::config::ServerConfig;
use crate::connection::NumBusy;
use crate::error::{ApiError, ErrorKind};
use crate::model_source::ModelSource;
use crate::{anthropic, embed, health, metrics, openai, rerank, score, tokenize};

/// Seconds after which a client should come back when every slot is taken.
const OVERLOADED_RETRY_S: u32 = 1;

pub(crate) type SharedApp = Arc<App>;

/// The route table. Unknown routes and wrong methods are answered by `front`, in the family's shape.
pub(crate) fn router(app: SharedApp) -> Router {
    Router::new()
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/messages/batches", post(batches::create).get(batches::list))
        .route("/v1/messages/batches/{id}", get(batches::retrieve).delete(batches::delete))
        .route("/v1/messages/batches/{id}/cancel", post(batches::cancel))
        .route("/v1/messages/batches/{id}/results", get(batches::results))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/responses", post(openai::responses))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/api/embed", post(embed::embed))
        .route("/api/rerank", post(rerank::rerank))
        .route("/rerank", post(rerank::rerank))
        .route("/v1/rerank", post(rerank::rerank))
        .route("/v2/rerank", post(rerank::rerank))
        .route("/score", post(score::score))
        .route("/v1/score", post(score::score))
        .route("/v1/models", get(openai::list_models))
        .route("/v1/models/{*id}", get(openai::retrieve_model))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(health::health))
        .route("/metrics", get(metrics::metrics))
        .route("/version", get(health::version))
        .route("/", get(health::about))
        .with_state(app)
}

/// Life of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running,
    /// No new requests; those running may finish.
    Draining,
    /// Requests still running are told so and end.
    Stopping,
}

/// State shared by all requests.
pub(crate) struct App {
    pub(crate) config: ServerConfig,
    pub(crate) models: ModelSource,
    /// None: the server keeps none.
    pub(crate) batches: Result<Batches, NoBatches>,
    slots: Arc<Semaphore>,
    phase: watch::Sender<Phase>,
    num_in_flight: watch::Sender<usize>,
}

impl App {
    pub(crate) fn new(config: ServerConfig, models: ModelSource, batches: Result<Batches, NoBatches>) -> Self {
        let slots = Arc::new(Semaphore::new(config.max_concurrent_requests.min(Semaphore::MAX_PERMITS)));
        App { config, models, batches, slots, phase: watch::Sender::new(Phase::Running), num_in_flight: watch::Sender::new(0) }
    }

    /// The right to generate, for as long as the permit lives.
    pub(crate) fn slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            let message = format!("overloaded: {} requests are running", self.config.max_concurrent_requests);
            ApiError::new(ErrorKind::Overloaded, message).retry_after(OVERLOADED_RETRY_S)
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Completes when running requests must end.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        self.leaving(Phase::Draining)
    }

    /// Completes when a phase is over.
    pub(crate) fn leaving(&self, last: Phase) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.subscribe();
        async move {
            // An error means that the app is gone, and then there is nothing left to run for.
            let _ = phase.wait_for(|phase| *phase > last).await;
        }
    }

    /// Runs `work` until it is done, late, or the server stops. Dropping the result's future drops the work.
    pub(crate) async fn bounded<T>(&self, work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        tokio::select! {
            outcome = work => outcome,
            () = deadline(self.config.request_timeout) => Err(deadline_error()),
            () = self.stopping() => Err(stopping_error()),
        }
    }

    /// Counts a request until the guard is dropped.
    pub(crate) fn in_flight(&self, num_busy: &NumBusy) -> InFlight {
        self.num_in_flight.send_modify(|num| *num += 1);
        num_busy.fetch_add(1, Ordering::Relaxed);
        InFlight { num_in_flight: self.num_in_flight.clone(), num_busy: Arc::clone(num_busy) }
    }

    pub(crate) fn num_in_flight(&self) -> usize {
        *self.num_in_flight.borrow()
    }

    /// Completes when no request is in flight.
    pub(crate) async fn idle(&self) {
        let _ = self.num_in_flight.subscribe().wait_for(|num| *num == 0).await;
    }
}

/// Completes after `limit`; never without one.
pub(crate) async fn deadline(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

pub(crate) fn deadline_error() -> ApiError {
    ApiError::new(ErrorKind::Deadline, "the request took longer than the server allows")
}

pub(crate) fn stopping_error() -> ApiError {
    ApiError::new(ErrorKind::Unavailable, "the server is shutting down")
}

/// A request being answered: from its headers to the last byte of the response.
pub(crate) struct InFlight {
    num_in_flight: watch::Sender<usize>,
    num_busy: NumBusy,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.num_in_flight.send_modify(|num| *num -= 1);
        self.num_busy.fetch_sub(1, Ordering::Relaxed);
    }
}
