//! `/v1/messages/batches`: many requests at once, answered when nothing more urgent runs. Kept in a folder, so that a restart goes on.
//!
//! `store` knows the files, `batch` one batch's state, `runner` answers its requests through the same models as everybody else's.
//! Every key sees every batch.

mod batch;
mod results;
mod runner;
mod store;

use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::response::Response;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::app::SharedApp;
use crate::error::{ApiError, ErrorKind};
use crate::fields::Fields;
use crate::limits;
use crate::page::Page;
use batch::Batch;
use store::{Entry, Store};

/// Requests of all batches that generate at the same time.
const MAX_RUNNING: usize = 32;
/// Batches that have not ended.
const MAX_UNFINISHED: usize = 1000;
/// Requests of one batch.
const MAX_REQUESTS: usize = 100_000;
/// Seconds after which a full server takes another batch.
const RETRY_AFTER_S: u32 = 60;

/// All batches of a server.
pub(crate) struct Batches {
    store: Store,
    /// Oldest first.
    batches: Mutex<Vec<Arc<Batch>>>,
    running: Arc<Semaphore>,
}

impl Batches {
    /// Batches kept in a folder, which is made if it is not there; those of an earlier process among them.
    ///
    /// # Errors
    /// A folder that cannot be read or written.
    pub(crate) fn open(folder: &Path) -> std::io::Result<Batches> {
        let store = Store::open(folder)?;
        let batches = store.load()?.into_iter().map(Arc::new).collect();
        Ok(Batches { store, batches: Mutex::new(batches), running: Arc::new(Semaphore::new(MAX_RUNNING)) })
    }

    /// The process that has a folder which cannot be opened, as far as it told.
    pub(crate) fn holder(folder: &Path) -> Option<u32> {
        store::holder(folder)
    }

    fn find(&self, id: &str) -> Result<Arc<Batch>, ApiError> {
        let batches = self.batches.lock();
        batches.iter().find(|batch| batch.id() == id).cloned().ok_or_else(|| not_found(id))
    }
}

/// Goes on with what an earlier process left unfinished.
pub(crate) fn resume(app: &SharedApp) {
    let Ok(batches) = &app.batches else { return };
    for batch in batches.batches.lock().iter().filter(|batch| !batch.has_ended()) {
        runner::start(app, Arc::clone(batch));
    }
}

fn not_found(id: &str) -> ApiError {
    ApiError::new(ErrorKind::Route, format!("no message batch {id:?}"))
}

fn of(app: &SharedApp) -> Result<&Batches, ApiError> {
    app.batches.as_ref().map_err(|why| ApiError::new(ErrorKind::Route, format!("this server keeps no message batches: {}", why.told())))
}

/// Why a server keeps no batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoBatches {
    /// It was given no folder.
    NoFolder,
    /// Another server has the folder.
    Taken,
}

impl NoBatches {
    /// For clients, and for whoever they ask.
    fn told(self) -> &'static str {
        match self {
            NoBatches::NoFolder => "it has no folder for them; start it with --batch-dir FOLDER",
            NoBatches::Taken => "another server keeps its own in the same folder; end that one, or start this one with another --batch-dir",
        }
    }
}

/// `POST /v1/messages/batches`
pub(crate) async fn create(State(app): State<SharedApp>, request: Request) -> Result<Json<Value>, ApiError> {
    let batches = of(&app)?;
    let body = limits::read_json(&app, request).await?;
    let entries = read_entries(&Fields::of(&body, "")?)?;
    if batches.batches.lock().iter().filter(|batch| !batch.has_ended()).count() >= MAX_UNFINISHED {
        let message = format!("overloaded: {MAX_UNFINISHED} batches have not ended");
        return Err(ApiError::new(ErrorKind::Overloaded, message).retry_after(RETRY_AFTER_S));
    }
    let store = batches.store.clone();
    let created = tokio::task::spawn_blocking(move || store.create(entries)).await;
    let batch = match created {
        Ok(Ok(batch)) => Arc::new(batch),
        Ok(Err(error)) => return Err(store_error(&error)),
        Err(_) => return Err(ApiError::new(ErrorKind::Internal, "internal error")),
    };
    batches.batches.lock().push(Arc::clone(&batch));
    runner::start(&app, Arc::clone(&batch));
    Ok(Json(batch.json()))
}

fn store_error(error: &std::io::Error) -> ApiError {
    tracing::error!(%error, "a message batch could not be kept");
    ApiError::new(ErrorKind::Internal, "the batch could not be stored")
}

fn read_entries(body: &Fields) -> Result<Vec<Entry>, ApiError> {
    let items = body.require("requests")?.as_array().filter(|items| !items.is_empty());
    let items = items.ok_or_else(|| body.wrong("requests", "a non-empty array"))?;
    if items.len() > MAX_REQUESTS {
        return Err(body.error("requests", format!("at most {MAX_REQUESTS} entries, got {}", items.len())));
    }
    let mut ids = std::collections::HashSet::new();
    let entry = |(idx, item)| {
        let item = Fields::of(item, format!("requests[{idx}]"))?;
        let custom_id = item.required_string("custom_id")?;
        let is_good = custom_id.len() <= 64 && custom_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        if !is_good {
            return Err(item.wrong("custom_id", "1 to 64 letters, digits, `_` or `-`"));
        }
        if !ids.insert(custom_id.to_owned()) {
            return Err(item.error("custom_id", format!("must be unique, got {custom_id:?} twice")));
        }
        let params = item.require("params")?;
        Fields::of(params, item.path("params"))?.refuse_true(&["stream"])?;
        Ok(Entry { custom_id: custom_id.to_owned(), params: params.clone() })
    };
    items.iter().enumerate().map(entry).collect()
}

/// `GET /v1/messages/batches`: the newest first, in pages.
pub(crate) async fn list(State(app): State<SharedApp>, Query(query): Query<Vec<(String, String)>>) -> Result<Json<Value>, ApiError> {
    let all: Vec<Arc<Batch>> = of(&app)?.batches.lock().iter().rev().cloned().collect();
    let ids: Vec<&str> = all.iter().map(|batch| batch.id()).collect();
    let page = Page::parse(&query, 20)?;
    let (range, has_more) = page.range(&ids);
    let data: Vec<Value> = all[range.clone()].iter().map(|batch| batch.json()).collect();
    let ids = &ids[range];
    Ok(Json(json!({"data": data, "has_more": has_more, "first_id": ids.first(), "last_id": ids.last()})))
}

/// `GET /v1/messages/batches/{id}`
pub(crate) async fn retrieve(State(app): State<SharedApp>, UrlPath(id): UrlPath<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(of(&app)?.find(&id)?.json()))
}

/// `POST /v1/messages/batches/{id}/cancel`
pub(crate) async fn cancel(State(app): State<SharedApp>, UrlPath(id): UrlPath<String>) -> Result<Json<Value>, ApiError> {
    let batch = of(&app)?.find(&id)?;
    batch.cancel().map_err(|error| store_error(&error))?;
    Ok(Json(batch.json()))
}

/// `DELETE /v1/messages/batches/{id}`: only of a batch that has ended.
pub(crate) async fn delete(State(app): State<SharedApp>, UrlPath(id): UrlPath<String>) -> Result<Json<Value>, ApiError> {
    let batches = of(&app)?;
    let batch = batches.find(&id)?;
    if !batch.has_ended() {
        return Err(ApiError::new(ErrorKind::Invalid, format!("the batch {id} is still processing: cancel it and wait for its end first")));
    }
    batches.store.remove(&batch).map_err(|error| store_error(&error))?;
    batches.batches.lock().retain(|other| other.id() != id);
    Ok(Json(json!({"id": id, "type": "message_batch_deleted"})))
}

/// `GET /v1/messages/batches/{id}/results`: a line of JSON a request, in no particular order.
pub(crate) async fn results(State(app): State<SharedApp>, UrlPath(id): UrlPath<String>) -> Result<Response, ApiError> {
    let batch = of(&app)?.find(&id)?;
    if !batch.has_ended() {
        return Err(ApiError::new(ErrorKind::Route, format!("the batch {id} is still processing: it has no results yet")));
    }
    results::respond(batch.results_file()).map_err(|error| store_error(&error))
}
