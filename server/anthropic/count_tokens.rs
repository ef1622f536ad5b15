//! `POST /v1/messages/count_tokens`: needs no engine slot, and equals the usage of the same request.

use axum::Json;
use axum::extract::{Request, State};
use pagoda_backends::Prompt;
use serde_json::{Value, json};

use super::convert::parse_count;
use crate::app::SharedApp;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::limits;

/// `{"input_tokens":2095}`
pub(crate) async fn count_tokens(State(app): State<SharedApp>, request: Request) -> Result<Json<Value>, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model = app.models.find(fields.required_string("model")?)?;
    let prompt = Prompt::Chat(parse_count(&fields)?);
    let num_tokens = app.bounded(async { Ok(model.backend.count_tokens(&prompt).await?) }).await?;
    Ok(Json(json!({"input_tokens": num_tokens})))
}
