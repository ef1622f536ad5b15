//! `POST /v1/messages`.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use pagoda_backends::{GenerateOutput, GenerateRequest, Prompt, StopReason};

use super::convert::parse_messages;
use super::stream::MessageStream;
use super::types::{ContentBlock, Message, stop_reason};
use crate::app::SharedApp;
use crate::error::{ApiError, ErrorKind};
use crate::fields::Fields;
use crate::ids::new_id;
use crate::tools::{AnswerParser, Piece, TextEnd, ToolUse};
use crate::{limits, sse};

/// Answers with a message, whole or streamed.
pub(crate) async fn messages(State(app): State<SharedApp>, request: Request) -> Result<Response, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model_id = fields.required_string("model")?;
    let model = app.models.find(model_id)?;
    let parsed = parse_messages(&fields, model.backend.default_config())?;
    let slot = app.slot()?;
    let request = GenerateRequest { prompt: Prompt::Chat(parsed.prompt), config: parsed.config };
    if parsed.stream {
        let events = app.bounded(async { Ok(model.backend.generate_stream(request).await?) }).await?;
        return sse::respond(&app, vec![events], MessageStream::new(model_id, &parsed.tools), slot).await;
    }
    let output = app.bounded(async { Ok(model.backend.generate(request).await?) }).await?;
    whole(model_id, &output, &parsed.tools)
}

fn whole(model_id: &str, output: &GenerateOutput, tools: &ToolUse) -> Result<Response, ApiError> {
    let choice = output.choices.first().ok_or_else(|| ApiError::new(ErrorKind::Internal, "the backend gave no answer"))?;
    if choice.reason == StopReason::Aborted {
        return Err(sse::aborted_error());
    }
    let id = new_id("msg_");
    let mut message = Message::new(&id, model_id, output.usage.into());
    let (pieces, called) = AnswerParser::parse(tools, &choice.text, TextEnd::of(&choice.reason));
    let ids: Vec<String> = pieces.iter().map(|_| new_id("toolu_")).collect();
    message.content = pieces.iter().zip(&ids).map(|(piece, id)| block(piece, id)).collect();
    let (reason, sequence) = stop_reason(&choice.reason, called);
    (message.stop_reason, message.stop_sequence) = (Some(reason), sequence);
    Ok(Json(message).into_response())
}

fn block<'a>(piece: &'a Piece, id: &'a str) -> ContentBlock<'a> {
    match piece {
        Piece::Text(text) => ContentBlock::Text { text },
        Piece::Call(call) => ContentBlock::ToolUse { id, name: &call.name, input: &call.arguments },
    }
}
