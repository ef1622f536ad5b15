//! `POST /v1/chat/completions`.

use std::borrow::Cow;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use pagoda_backends::{Choice, GenerateOutput, GenerateRequest, Prompt, StopReason};

use super::chat_stream::ChatStream;
use super::convert::{Format, parse_chat};
use super::logprobs::{ChatLogprobs, prompt_logprobs};
use super::types::{ChatChoice, ChatCompletion, ChatMessageBody, ToolCallBody, finish_reason, stop_reason, token_ids};
use crate::app::SharedApp;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::ids::{new_id, unix_time};
use crate::tools::{AnswerParser, Piece, TextEnd, ToolUse};
use crate::{limits, sse};

/// Answers with a chat completion, whole or streamed.
pub(crate) async fn chat(State(app): State<SharedApp>, request: Request) -> Result<Response, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model_id = fields.required_string("model")?;
    let model = app.models.find(model_id)?;
    let parsed = parse_chat(&fields, model.backend.default_config())?.of_model(&model);
    let slot = app.slot()?;
    let (format, num_choices) = (parsed.format, parsed.config.n);
    let wants_prompt_logprobs = parsed.config.prompt_logprobs.is_some();
    let request = GenerateRequest { prompt: Prompt::Chat(parsed.prompt), config: parsed.config };
    if format.stream {
        let events = app.bounded(async { Ok(model.generate_stream(request).await?) }).await?;
        return sse::respond(&app, vec![events], ChatStream::new(model_id, num_choices as usize, format, &parsed.tools), slot).await;
    }
    let output = app.bounded(async { Ok(model.generate(request).await?) }).await?;
    if output.choices.iter().any(|choice| choice.reason == StopReason::Aborted) {
        return Err(sse::aborted_error());
    }
    Ok(Json(whole(model_id, &output, format, wants_prompt_logprobs, &parsed.tools)).into_response())
}

fn whole<'a>(
    model_id: &'a str,
    output: &'a GenerateOutput,
    format: Format,
    wants_prompt_logprobs: bool,
    tools: &ToolUse,
) -> ChatCompletion<'a> {
    ChatCompletion {
        id: new_id("chatcmpl-"),
        object: "chat.completion",
        created: unix_time(),
        model: model_id,
        choices: output.choices.iter().enumerate().map(|(index, choice)| whole_choice(index, choice, format, tools)).collect(),
        usage: output.usage.into(),
        prompt_logprobs: wants_prompt_logprobs.then(|| prompt_logprobs(&output.prompt_logprobs)),
        prompt_token_ids: format.token_ids.then_some(&output.prompt_token_ids),
    }
}

fn whole_choice<'a>(index: usize, choice: &'a Choice, format: Format, tools: &ToolUse) -> ChatChoice<'a> {
    let (pieces, called) = AnswerParser::parse(tools, &choice.text, TextEnd::of(&choice.reason));
    let called = called || !choice.calls.is_empty();
    let reasoning_content = (!choice.reasoning.is_empty()).then_some(choice.reasoning.as_str());
    let content = if called { text_of(&pieces).map(Cow::Owned) } else { Some(Cow::Borrowed(choice.text.as_str())) };
    let calls = calls_of(&pieces).into_iter().chain(choice.calls.iter().map(ToolCallBody::found));
    ChatChoice {
        index,
        message: ChatMessageBody {
            role: "assistant",
            content,
            reasoning_content,
            refusal: None,
            tool_calls: called.then(|| calls.collect()),
        },
        logprobs: format.logprobs.then(|| ChatLogprobs::new(&choice.tokens, format.token_names)),
        finish_reason: finish_reason(&choice.reason, called),
        stop_reason: stop_reason(&choice.reason),
        token_ids: format.token_ids.then(|| token_ids(&choice.tokens)),
    }
}

/// The text around the calls, if there is any.
fn text_of(pieces: &[Piece]) -> Option<String> {
    let texts = pieces.iter().filter_map(|piece| match piece {
        Piece::Text(text) => Some(text.as_str()),
        Piece::Call(_) => None,
    });
    let text: String = texts.collect();
    (!text.is_empty()).then_some(text)
}

fn calls_of(pieces: &[Piece]) -> Vec<ToolCallBody> {
    let calls = pieces.iter().filter_map(|piece| match piece {
        Piece::Call(call) => Some(ToolCallBody::new(call)),
        Piece::Text(_) => None,
    });
    calls.collect()
}
