//! `POST /v1/messages`.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use pagoda_backends::{FoundCall, GenerateOutput, GenerateRequest, Prompt, StopReason};
use serde_json::Value;

use super::convert::{MessagesRequest, parse_messages};
use super::stream::MessageStream;
use super::types::{ContentBlock, Message, SIGNATURE, stop_reason};
use crate::app::{App, SharedApp};
use crate::error::{ApiError, ErrorKind};
use crate::fields::Fields;
use crate::ids::new_id;
use crate::model_source::Model;
use crate::tools::{AnswerParser, Piece, TextEnd, ToolCall, ToolUse};
use crate::{limits, sse};

/// Answers with a message, whole or streamed.
pub(crate) async fn messages(State(app): State<SharedApp>, request: Request) -> Result<Response, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model_id = fields.required_string("model")?;
    let model = app.models.find(model_id)?;
    let parsed = parse_messages(&fields, model.backend.default_config())?.of_model(&model);
    let slot = app.slot()?;
    if parsed.stream {
        let request = GenerateRequest { prompt: Prompt::Chat(parsed.prompt), config: parsed.config };
        let events = app.bounded(async { Ok(model.generate_stream(request).await?) }).await?;
        return sse::respond(&app, vec![events], MessageStream::new(model_id, &parsed.tools), slot).await;
    }
    Ok(Json(answer(&app, &model, model_id, parsed).await?).into_response())
}

/// The whole answer to a body of this route.
pub(super) async fn answer(app: &App, model: &Model, model_id: &str, parsed: MessagesRequest) -> Result<Value, ApiError> {
    let request = GenerateRequest { prompt: Prompt::Chat(parsed.prompt), config: parsed.config };
    let output = app.bounded(async { Ok(model.generate(request).await?) }).await?;
    whole(model_id, &output, &parsed.tools)
}

fn whole(model_id: &str, output: &GenerateOutput, tools: &ToolUse) -> Result<Value, ApiError> {
    let choice = output.choices.first().ok_or_else(|| ApiError::new(ErrorKind::Internal, "the backend gave no answer"))?;
    if choice.reason == StopReason::Aborted {
        return Err(sse::aborted_error());
    }
    let id = new_id("msg_");
    let mut message = Message::new(&id, model_id, output.usage.into());
    let end = TextEnd::of(&choice.reason);
    let (pieces, called) = AnswerParser::parse(tools, &choice.text, end);
    let found: Vec<(&str, Piece)> = choice.calls.iter().map(|call| (call.id.as_str(), found_piece(call, end))).collect();
    let ids: Vec<String> = pieces.iter().map(|_| new_id("toolu_")).collect();
    let thinking = (!choice.reasoning.is_empty()).then_some(ContentBlock::Thinking { thinking: &choice.reasoning, signature: SIGNATURE });
    message.content = thinking.into_iter().chain(pieces.iter().zip(&ids).map(|(piece, id)| block(piece, id))).collect();
    message.content.extend(found.iter().map(|(id, piece)| block(piece, id)));
    let called = called || found.iter().any(|(_, piece)| matches!(piece, Piece::Call(_)));
    let (reason, sequence) = stop_reason(&choice.reason, called);
    (message.stop_reason, message.stop_sequence) = (Some(reason), sequence);
    Ok(serde_json::to_value(message).expect("wire types serialise"))
}

/// A call that the backend found. Its arguments have to be an object here; those that are none stay text.
fn found_piece(call: &FoundCall, end: TextEnd) -> Piece {
    match ToolCall::from_text(&call.name, &call.arguments, end) {
        Some(call) => Piece::Call(call),
        None => Piece::Text(format!("{}({})", call.name, call.arguments)),
    }
}

fn block<'a>(piece: &'a Piece, id: &'a str) -> ContentBlock<'a> {
    match piece {
        Piece::Text(text) => ContentBlock::Text { text },
        Piece::Call(call) => ContentBlock::ToolUse { id, name: &call.name, input: &call.arguments },
    }
}
