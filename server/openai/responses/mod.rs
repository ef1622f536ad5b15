//! `POST /v1/responses`, without state: nothing is kept, so a conversation is sent whole every time.
//!
//! A body is turned into a body of `/v1/chat/completions` and read as that, so both routes know the same tools, formats and parameters.

mod answer;
mod request;
mod stream;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use pagoda_backends::{GenerateEvent, GenerateRequest, Prompt, StopReason};

use super::convert::parse_chat;
use crate::app::SharedApp;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::sse::Frames;
use crate::{limits, sse};
use answer::Answer;
use stream::ResponseStream;

/// Answers with a response, whole or streamed.
pub(crate) async fn responses(State(app): State<SharedApp>, request: Request) -> Result<Response, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model_id = fields.required_string("model")?;
    let model = app.models.find(model_id)?;
    let chat = request::chat_body(&fields)?;
    let parsed = parse_chat(&Fields::of(&chat, "")?, model.backend.default_config()).map_err(request::in_own_words)?.of_model(&model);
    let slot = app.slot()?;
    let answer = Answer::new(request::echo(&fields, &parsed.config), &parsed.tools);
    let request = GenerateRequest { prompt: Prompt::Chat(parsed.prompt), config: parsed.config };
    if parsed.format.stream {
        let events = app.bounded(async { Ok(model.generate_stream(request).await?) }).await?;
        return sse::respond(&app, vec![events], ResponseStream::new(answer), slot).await;
    }
    let output = app.bounded(async { Ok(model.generate(request).await?) }).await?;
    whole(answer, output)
}

/// The answer's events once more, without the frames.
fn whole(mut answer: Answer, output: pagoda_backends::GenerateOutput) -> Result<Response, ApiError> {
    let mut unseen = Frames::new();
    let mut reason = StopReason::Aborted;
    for choice in output.choices.into_iter().take(1) {
        answer.take(GenerateEvent::Reasoning { choice: 0, text: choice.reasoning, tokens: Vec::new() }, &mut unseen);
        answer.take(GenerateEvent::Delta { choice: 0, text: choice.text, tokens: Vec::new() }, &mut unseen);
        for call in choice.calls {
            answer.take(GenerateEvent::CallStarted { choice: 0, id: call.id, name: call.name }, &mut unseen);
            answer.take(GenerateEvent::CallArguments { choice: 0, text: call.arguments }, &mut unseen);
        }
        reason = choice.reason;
    }
    if reason == StopReason::Aborted {
        return Err(sse::aborted_error());
    }
    answer.take(GenerateEvent::Finished { choice: 0, reason }, &mut unseen);
    answer.take(GenerateEvent::Done(output.usage), &mut unseen);
    Ok(Json(answer.response()).into_response())
}
