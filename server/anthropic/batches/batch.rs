//! `Batch`: the state of one batch, and what clients are told of it.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::store::{Entry, Times, write_times};
use crate::ids::{rfc3339, unix_time};

/// How a request of a batch ended.
pub(super) enum Outcome {
    Succeeded(Value),
    /// Anthropic's error object.
    Errored(Value),
    Canceled,
    Expired,
}

/// Requests by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) succeeded: usize,
    pub(super) errored: usize,
    pub(super) canceled: usize,
    pub(super) expired: usize,
}

impl Counts {
    fn total(&self) -> usize {
        self.succeeded + self.errored + self.canceled + self.expired
    }

    /// Counts a result by its `type`.
    pub(super) fn note(&mut self, kind: &str) {
        match kind {
            "succeeded" => self.succeeded += 1,
            "errored" => self.errored += 1,
            "canceled" => self.canceled += 1,
            _ => self.expired += 1,
        }
    }
}

/// What changes while a batch runs.
pub(super) struct State {
    pub(super) times: Times,
    pub(super) counts: Counts,
    /// Results are appended to it; None once the batch has ended.
    pub(super) results: Option<File>,
    /// Requests without a result; taken by the runner.
    pub(super) pending: Vec<Entry>,
}

/// One batch.
pub(super) struct Batch {
    id: String,
    folder: PathBuf,
    num_requests: usize,
    state: Mutex<State>,
    is_canceled: watch::Sender<bool>,
}

impl Batch {
    pub(super) fn new(id: String, folder: PathBuf, num_requests: usize, state: State) -> Batch {
        let is_canceled = watch::Sender::new(state.times.canceled.is_some());
        Batch { id, folder, num_requests, state: Mutex::new(state), is_canceled }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn results_file(&self) -> PathBuf {
        self.folder.join(super::store::RESULTS)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().times.ended.is_some()
    }

    pub(super) fn created(&self) -> u64 {
        self.state.lock().times.created
    }

    pub(super) fn has_expired(&self) -> bool {
        unix_time() >= self.state.lock().times.expires
    }

    /// The requests that have no result yet, once.
    pub(super) fn take_pending(&self) -> Vec<Entry> {
        std::mem::take(&mut self.state.lock().pending)
    }

    /// Completes when the batch was cancelled.
    pub(super) async fn canceled(self: Arc<Self>) {
        // An error cannot come: the sender is the batch's own.
        let _ = self.is_canceled.subscribe().wait_for(|is_canceled| *is_canceled).await;
    }

    /// Asks for the end; requests that ended stay ended. Nothing to a batch that has ended.
    pub(super) fn cancel(&self) -> io::Result<()> {
        {
            let mut state = self.state.lock();
            if state.times.ended.is_some() || state.times.canceled.is_some() {
                return Ok(());
            }
            state.times.canceled = Some(unix_time());
            write_times(&self.folder, &state.times)?;
        }
        self.is_canceled.send_replace(true);
        Ok(())
    }

    /// Keeps a result: one line, whole or (after a crash) not at all.
    pub(super) fn record(&self, custom_id: &str, outcome: Outcome) -> io::Result<()> {
        let (kind, result) = match outcome {
            Outcome::Succeeded(message) => ("succeeded", json!({"type": "succeeded", "message": message})),
            Outcome::Errored(error) => ("errored", json!({"type": "errored", "error": error})),
            Outcome::Canceled => ("canceled", json!({"type": "canceled"})),
            Outcome::Expired => ("expired", json!({"type": "expired"})),
        };
        let line = format!("{}\n", json!({"custom_id": custom_id, "result": result}));
        let mut state = self.state.lock();
        if let Some(file) = &mut state.results {
            file.write_all(line.as_bytes())?;
        }
        state.counts.note(kind);
        Ok(())
    }

    /// Every request has its result.
    pub(super) fn end(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Some(file) = state.results.take() {
            file.sync_all()?;
        }
        state.times.ended = Some(unix_time());
        write_times(&self.folder, &state.times)
    }

    /// What clients are told.
    pub(super) fn json(&self) -> Value {
        let state = self.state.lock();
        let Times { created, expires, canceled, ended } = state.times;
        let status = match (ended, canceled) {
            (Some(_), _) => "ended",
            (None, Some(_)) => "canceling",
            (None, None) => "in_progress",
        };
        let Counts { succeeded, errored, canceled: num_canceled, expired } = state.counts;
        json!({
            "id": self.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": {
                "processing": self.num_requests.saturating_sub(state.counts.total()),
                "succeeded": succeeded,
                "errored": errored,
                "canceled": num_canceled,
                "expired": expired,
            },
            "ended_at": ended.map(rfc3339),
            "created_at": rfc3339(created),
            "expires_at": rfc3339(expires),
            "archived_at": null,
            "cancel_initiated_at": canceled.map(rfc3339),
            // Relative, since a server does not know under which name its clients reach it.
            "results_url": ended.map(|_| format!("/v1/messages/batches/{}/results", self.id)),
        })
    }
}
