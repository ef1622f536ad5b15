//! `GET /v1/models` and `/v1/models/{id}`: entries that satisfy both families' clients.

use axum::Json;
use axum::extract::{Path, Query, State};
use pagoda_backends::ToolDialect;
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::SharedApp;
use crate::error::ApiError;
use crate::ids::rfc3339;
use crate::model_source::Model;
use crate::page::Page;

/// Entries of a page without `limit`.
const DEFAULT_LIMIT: usize = 1000;

/// One model under one of its ids.
#[derive(Serialize)]
struct Entry<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The name that this id is an alias of, or the name itself.
    root: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    /// What the model is for.
    model_type: &'static str,
    display_name: &'a str,
    created_at: String,
    lifecycle: &'static str,
    /// Null where a service elsewhere does not say.
    max_model_len: Option<usize>,
    max_input_tokens: Option<usize>,
    max_tokens: Option<usize>,
}

impl<'a> Entry<'a> {
    fn new(id: &'a str, model: &'a Model) -> Self {
        let window = Some(model.backend.capabilities().max_context_length).filter(|&window| window > 0);
        Entry {
            id,
            object: "model",
            created: model.created,
            owned_by: "pagoda",
            root: &model.name,
            kind: "model",
            model_type: model.backend.model_type().as_str(),
            display_name: id,
            created_at: rfc3339(model.created),
            lifecycle: "active",
            max_model_len: window,
            max_input_tokens: window,
            max_tokens: window,
        }
    }
}

/// All models, in pages when asked for.
pub(crate) async fn list_models(State(app): State<SharedApp>, Query(query): Query<Vec<(String, String)>>) -> Result<Json<Value>, ApiError> {
    let models = app.models.all()?;
    let entries: Vec<Entry> = models.iter().flat_map(|model| model.ids().map(move |id| Entry::new(id, model))).collect();
    let ids: Vec<&str> = entries.iter().map(|entry| entry.id).collect();
    let (range, has_more) = Page::parse(&query, DEFAULT_LIMIT)?.range(&ids);
    let data = &entries[range];
    let (first_id, last_id) = (data.first().map(|entry| entry.id), data.last().map(|entry| entry.id));
    Ok(Json(json!({"object": "list", "data": data, "has_more": has_more, "first_id": first_id, "last_id": last_id})))
}

/// One model, with what its backend can do.
pub(crate) async fn retrieve_model(State(app): State<SharedApp>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let model = app.models.find(&id)?;
    let mut entry = serde_json::to_value(Entry::new(&id, &model)).expect("wire types serialise");
    let can = model.backend.capabilities();
    entry["capabilities"] = json!({
        "streaming": can.streaming,
        "tool_calling": can.tool_calling,
        "tool_call_parser": can.tool_dialect.map(ToolDialect::as_str),
        "structured_output": can.structured_output,
        "batching": can.batching,
        "multi_gpu": can.multi_gpu,
        "quantization": can.quantization,
        "max_context_length": can.max_context_length,
        "continuous_batching": can.continuous_batching,
        "paged_attention": can.paged_attention,
    });
    Ok(Json(entry))
}
