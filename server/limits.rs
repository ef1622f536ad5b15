//! Reading a request's JSON within bounds: bytes, time, nesting (serde_json's limit of 128), and off the async threads when it is large.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use http::header;
use http_body_util::BodyExt;
use serde_json::Value;

use crate::app::App;
use crate::error::{ApiError, ErrorKind};
use crate::fields::Fields;

/// Longest pause within a body.
const BODY_IDLE: Duration = Duration::from_secs(30);
/// Longest time for a whole body.
const BODY_TIME: Duration = Duration::from_secs(300);
/// Bodies above this are parsed on the blocking pool.
const INLINE_PARSE_BYTES: usize = 256 << 10;
/// Capacity taken before the first byte came.
const MAX_FIRST_CAPACITY: usize = 1 << 20;

/// The request's body as JSON.
pub(crate) async fn read_json(app: &App, request: Request) -> Result<Value, ApiError> {
    let bytes = match tokio::time::timeout(BODY_TIME, read_body(app.config.max_body_bytes, request)).await {
        Ok(bytes) => bytes?,
        Err(_) => return Err(body_timeout()),
    };
    if bytes.len() <= INLINE_PARSE_BYTES {
        return parse_json(&bytes);
    }
    tokio::task::spawn_blocking(move || parse_json(&bytes)).await.map_err(|_| ApiError::new(ErrorKind::Internal, "internal error"))?
}

/// JSON of bytes; the top level must be an object.
pub(crate) fn parse_json(bytes: &[u8]) -> Result<Value, ApiError> {
    if bytes.trim_ascii().is_empty() {
        return Err(ApiError::new(ErrorKind::Invalid, "the request body is empty, expected a JSON object"));
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::new(ErrorKind::Invalid, format!("the request body is not valid JSON: {error}")))?;
    if value.is_object() { Ok(value) } else { Err(ApiError::new(ErrorKind::Invalid, "the request body must be a JSON object")) }
}

async fn read_body(max_bytes: usize, request: Request) -> Result<Vec<u8>, ApiError> {
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|len| len > max_bytes as u64) {
        return Err(too_large(max_bytes));
    }
    let mut bytes = Vec::with_capacity(declared.map_or(0, |len| (len as usize).min(MAX_FIRST_CAPACITY)));
    let mut body: Body = request.into_body();
    loop {
        let frame = tokio::time::timeout(BODY_IDLE, body.frame()).await.map_err(|_| body_timeout())?;
        match frame {
            None => return Ok(bytes),
            Some(Err(error)) => return Err(ApiError::new(ErrorKind::Invalid, format!("the request body ended early: {error}"))),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if bytes.len() + data.len() > max_bytes {
                    return Err(too_large(max_bytes));
                }
                bytes.extend_from_slice(&data);
            }
        }
    }
}

/// `truncate_prompt_tokens`: the longest input in tokens; -1 or none: the model's own limit.
pub(crate) fn max_tokens_to_keep(fields: &Fields) -> Result<Option<usize>, ApiError> {
    const NAME: &str = "truncate_prompt_tokens";
    match fields.integer(NAME, -1, i64::from(u32::MAX))? {
        Some(0) => Err(fields.wrong(NAME, "an integer of at least 1, or -1")),
        tokens => Ok(tokens.and_then(|tokens| usize::try_from(tokens).ok())),
    }
}

fn too_large(max_bytes: usize) -> ApiError {
    ApiError::new(ErrorKind::BodyTooLarge, format!("the request body is larger than {max_bytes} bytes"))
}

fn body_timeout() -> ApiError {
    ApiError::new(ErrorKind::BodyTimeout, "the request body did not arrive in time")
}
