//! `/health`, `/version` and `/`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

use crate::app::{App, Phase, SharedApp};

/// 200 when requests can be served; 503 with the reason while loading, draining, or with a dead backend.
pub(crate) async fn health(State(app): State<SharedApp>) -> Response {
    let (status, body) = match check(&app) {
        Ok(body) => (StatusCode::OK, body),
        Err((word, reason)) => (StatusCode::SERVICE_UNAVAILABLE, json!({"status": word, "reason": reason})),
    };
    (status, Json(body)).into_response()
}

fn check(app: &App) -> Result<Value, (&'static str, String)> {
    if app.phase() != Phase::Running {
        return Err(("draining", "the server is shutting down".into()));
    }
    let models = app.models.all().map_err(|error| ("loading", error.message))?;
    let mut entries = Vec::with_capacity(models.len());
    for model in models.iter() {
        model.backend.health().map_err(|reason| ("dead", format!("model `{}`: {reason}", model.name)))?;
        let stats = model.backend.stats();
        entries.push(json!({
            "name": model.name,
            "num_running": stats.num_running,
            "num_waiting": stats.num_waiting,
            "num_blocks": stats.num_blocks,
            "num_used_blocks": stats.num_used_blocks,
            "kv_waste": stats.kv_waste,
            "num_preemptions": stats.num_preemptions,
            "num_steps": stats.num_steps,
            "max_running": stats.max_running,
        }));
    }
    Ok(json!({"status": "ok", "models": entries}))
}

/// `{"version":"x"}`
pub(crate) async fn version(State(app): State<SharedApp>) -> Json<Value> {
    Json(json!({"version": app.config.version}))
}

/// What this server is, for a browser.
pub(crate) async fn about(State(app): State<SharedApp>) -> Json<Value> {
    Json(json!({
        "name": "pagoda",
        "version": app.config.version,
        "apis": ["/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models"],
        "health": "/health",
        "metrics": "/metrics",
    }))
}
