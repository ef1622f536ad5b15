//! `POST /v1/chat/completions`.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use pagoda_backends::{Choice, GenerateOutput, GenerateRequest, Prompt, StopReason};

use super::chat_stream::ChatStream;
use super::convert::{Format, parse_chat};
use super::logprobs::{ChatLogprobs, prompt_logprobs};
use super::types::{ChatChoice, ChatCompletion, ChatMessageBody, finish_reason, stop_reason, token_ids};
use crate::app::SharedApp;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::ids::{new_id, unix_time};
use crate::{limits, sse};

/// Answers with a chat completion, whole or streamed.
pub(crate) async fn chat(State(app): State<SharedApp>, request: Request) -> Result<Response, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model_id = fields.required_string("model")?;
    let model = app.models.find(model_id)?;
    let parsed = parse_chat(&fields, model.backend.default_config())?;
    let slot = app.slot()?;
    let (format, num_choices) = (parsed.format, parsed.config.n);
    let wants_prompt_logprobs = parsed.config.prompt_logprobs.is_some();
    let request = GenerateRequest { prompt: Prompt::Chat(parsed.prompt), config: parsed.config };
    if format.stream {
        let events = app.bounded(async { Ok(model.backend.generate_stream(request).await?) }).await?;
        return sse::respond(&app, vec![events], ChatStream::new(model_id, num_choices as usize, format), slot).await;
    }
    let output = app.bounded(async { Ok(model.backend.generate(request).await?) }).await?;
    if output.choices.iter().any(|choice| choice.reason == StopReason::Aborted) {
        return Err(sse::aborted_error());
    }
    Ok(Json(whole(model_id, &output, format, wants_prompt_logprobs)).into_response())
}

fn whole<'a>(model_id: &'a str, output: &'a GenerateOutput, format: Format, wants_prompt_logprobs: bool) -> ChatCompletion<'a> {
    ChatCompletion {
        id: new_id("chatcmpl-"),
        object: "chat.completion",
        created: unix_time(),
        model: model_id,
        choices: output.choices.iter().enumerate().map(|(index, choice)| whole_choice(index, choice, format)).collect(),
        usage: output.usage.into(),
        prompt_logprobs: wants_prompt_logprobs.then(|| prompt_logprobs(&output.prompt_logprobs)),
        prompt_token_ids: format.token_ids.then_some(&output.prompt_token_ids),
    }
}

fn whole_choice(index: usize, choice: &Choice, format: Format) -> ChatChoice<'_> {
    ChatChoice {
        index,
        message: ChatMessageBody { role: "assistant", content: &choice.text, refusal: None, tool_calls: None },
        logprobs: format.logprobs.then(|| ChatLogprobs::new(&choice.tokens, format.token_names)),
        finish_reason: finish_reason(&choice.reason),
        stop_reason: stop_reason(&choice.reason),
        token_ids: format.token_ids.then(|| token_ids(&choice.tokens)),
    }
}
