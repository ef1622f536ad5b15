//! `POST /tokenize` and `/detokenize`, as vLLM has them.

use axum::Json;
use axum::extract::{Request, State};
use pagoda_backends::Prompt;
use serde_json::{Value, json};

use crate::app::SharedApp;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::{limits, openai};

/// Ids a request may bring.
const MAX_TOKENS: usize = 4 << 20;

/// Ids of a text or of a conversation.
pub(crate) async fn tokenize(State(app): State<SharedApp>, request: Request) -> Result<Json<Value>, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model = app.models.find_or_first(fields.string("model")?)?;
    let prompt = read_prompt(&fields)?;
    let wants_strings = fields.boolean("return_token_strs")?.unwrap_or(false);
    let tokens = app.bounded(async { Ok(model.backend.tokenize(&prompt).await?) }).await?;
    let strings = match wants_strings {
        true => Some(app.bounded(async { Ok(model.backend.token_strs(&prompt, &tokens).await?) }).await?),
        false => None,
    };
    let window = model.backend.capabilities().max_context_length;
    Ok(Json(json!({"count": tokens.len(), "max_model_len": window, "tokens": tokens, "token_strs": strings})))
}

/// The prompt of a `/tokenize` body.
pub(crate) fn read_prompt(fields: &Fields) -> Result<Prompt, ApiError> {
    if fields.get("messages").is_some() {
        let mut chat = openai::read_chat_prompt(fields)?;
        chat.tools = openai::read_tools(fields)?;
        return Ok(Prompt::Chat(chat));
    }
    let text = fields.require("prompt")?.as_str().ok_or_else(|| fields.wrong("prompt", "a string"))?.to_owned();
    Ok(Prompt::Text { text, add_special_tokens: fields.boolean("add_special_tokens")?.unwrap_or(true) })
}

/// Text of ids.
pub(crate) async fn detokenize(State(app): State<SharedApp>, request: Request) -> Result<Json<Value>, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model = app.models.find_or_first(fields.string("model")?)?;
    fields.require("tokens")?;
    let tokens = fields.token_ids("tokens", MAX_TOKENS)?.unwrap_or_default();
    if let Some(idx) = model.backend.unknown_token(&tokens) {
        return Err(ApiError::field(format!("tokens[{idx}]"), format!("{} is not in the vocabulary", tokens[idx])));
    }
    let text = app.bounded(async { Ok(model.backend.detokenize(&tokens).await?) }).await?;
    Ok(Json(json!({"prompt": text})))
}
