//! Answers the requests of a batch, behind all others: at the lowest priority, some at a time, and again when the server was too busy.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;

use super::batch::{Batch, Outcome};
use super::store::Entry;
use crate::anthropic::convert::parse_messages;
use crate::anthropic::messages;
use crate::app::{Phase, SharedApp};
use crate::error::{ApiError, ErrorKind, Family};
use crate::fields::Fields;

/// Priority of a batch's requests; lower runs earlier.
const PRIORITY: i32 = 1 << 30;
/// First and longest pause before a request is tried again.
const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Tries of a request that a service behind the backend failed.
const MAX_TRIES: u32 = 4;

/// Runs a batch in a task of its own, which ends with the batch or when the server begins to end.
pub(super) fn start(app: &SharedApp, batch: Arc<Batch>) {
    let Ok(batches) = &app.batches else { return };
    let (app, running) = (Arc::clone(app), Arc::clone(&batches.running));
    tokio::spawn(async move {
        let draining = app.leaving(Phase::Running);
        tokio::select! {
            () = run(&app, &batch, &running) => {}
            // What has no result yet runs again after the next start.
            () = draining => {}
        }
    });
}

async fn run(app: &SharedApp, batch: &Arc<Batch>, running: &Semaphore) {
    tracing::info!(batch = batch.id(), "message batch runs");
    let failed = stream::iter(batch.take_pending())
        .map(|entry| one(app, batch, running, entry))
        .buffer_unordered(super::MAX_RUNNING)
        .filter_map(|kept| async move { kept.err() });
    let mut failed = std::pin::pin!(failed);
    let fault = failed.next().await;
    // A batch whose results cannot be kept stops here; what it has not kept runs after the next start.
    match fault.map_or_else(|| batch.end(), Err) {
        Ok(()) => tracing::info!(batch = batch.id(), "message batch ended"),
        Err(error) => tracing::error!(batch = batch.id(), %error, "message batch stopped: its results cannot be kept"),
    }
}

/// Answers one request and keeps the result.
async fn one(app: &SharedApp, batch: &Arc<Batch>, running: &Semaphore, entry: Entry) -> std::io::Result<()> {
    let answer = async {
        let _permit = running.acquire().await;
        if batch.has_expired() { Outcome::Expired } else { answered(app, batch, &entry).await }
    };
    let outcome = tokio::select! {
        biased;
        () = Arc::clone(batch).canceled() => Outcome::Canceled,
        outcome = answer => outcome,
    };
    batch.record(&entry.custom_id, outcome)
}

async fn answered(app: &SharedApp, batch: &Arc<Batch>, entry: &Entry) -> Outcome {
    let (mut pause, mut num_tries) = (MIN_PAUSE, 0);
    loop {
        num_tries += 1;
        let error = match answer(app, entry).await {
            Ok(message) => return Outcome::Succeeded(message),
            Err(error) => error,
        };
        let again = match error.kind {
            ErrorKind::Overloaded | ErrorKind::Unavailable => true,
            ErrorKind::RateLimited | ErrorKind::Upstream | ErrorKind::Deadline => num_tries < MAX_TRIES,
            _ => false,
        };
        if !again {
            return Outcome::Errored(error.json(Family::Anthropic, None));
        }
        if batch.has_expired() {
            return Outcome::Expired;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

async fn answer(app: &SharedApp, entry: &Entry) -> Result<serde_json::Value, ApiError> {
    let fields = Fields::of(&entry.params, "")?;
    let model_id = fields.required_string("model")?;
    let model = app.models.find(model_id)?;
    let mut parsed = parse_messages(&fields, model.backend.default_config())?.of_model(&model);
    parsed.config.priority = PRIORITY;
    messages::answer(app, &model, model_id, parsed).await
}
