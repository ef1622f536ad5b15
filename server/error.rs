//! `ApiError`: what a client is told when something goes wrong, and the one table from kind to status and type of both families.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use pagoda_backends::BackendError;
use serde_json::{Value, json};

/// Seconds after which a client should try a server that is ending: as long as a supervisor may need to start another.
const RESTART_RETRY_S: u32 = 5;

/// Whose error shape a client expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// `{"type":"error","error":{"type","message"},"request_id"}`
    Anthropic,
    /// `{"error":{"message","type","param","code"}}`
    OpenAi,
    /// `{"error":"message"}`
    Ollama,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    Invalid,
    TooLong,
    Key,
    Route,
    Model,
    Method,
    BodyTimeout,
    BodyTooLarge,
    Overloaded,
    RateLimited,
    Unavailable,
    Deadline,
    Upstream,
    Internal,
}

/// One row of the table: status and type for Anthropic, then status, type and code for OpenAI.
type Row = (u16, &'static str, u16, &'static str, Option<&'static str>);

impl ErrorKind {
    #[rustfmt::skip]
    const fn row(self) -> Row {
        match self {
            ErrorKind::Invalid      => (400, "invalid_request_error", 400, "invalid_request_error", None),
            ErrorKind::TooLong      => (400, "invalid_request_error", 400, "invalid_request_error", Some("context_length_exceeded")),
            ErrorKind::Key          => (401, "authentication_error",  401, "authentication_error",  Some("invalid_api_key")),
            ErrorKind::Route        => (404, "not_found_error",       404, "invalid_request_error", Some("unknown_url")),
            ErrorKind::Model        => (404, "not_found_error",       404, "invalid_request_error", Some("model_not_found")),
            ErrorKind::Method       => (405, "invalid_request_error", 405, "invalid_request_error", Some("method_not_allowed")),
            ErrorKind::BodyTimeout  => (408, "timeout_error",         408, "timeout_error",         Some("request_timeout")),
            ErrorKind::BodyTooLarge => (413, "request_too_large",     413, "invalid_request_error", Some("request_too_large")),
            ErrorKind::Overloaded   => (529, "overloaded_error",      429, "rate_limit_error",      Some("rate_limit_exceeded")),
            ErrorKind::RateLimited  => (429, "rate_limit_error",      429, "rate_limit_error",      Some("rate_limit_exceeded")),
            ErrorKind::Unavailable  => (503, "overloaded_error",      503, "overloaded_error",      Some("overloaded")),
            ErrorKind::Deadline     => (504, "timeout_error",         504, "timeout_error",         Some("timeout")),
            ErrorKind::Upstream     => (502, "api_error",             502, "server_error",          Some("upstream_error")),
            ErrorKind::Internal     => (500, "api_error",             500, "server_error",          None),
        }
    }
}

/// An error on its way to a client.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    pub(crate) retry_after_s: Option<u32>,
}

impl ApiError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        ApiError { kind, message: message.into(), param: None, retry_after_s: None }
    }

    /// A 400 about one field; the message starts with the field's path.
    pub(crate) fn field(path: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let path = path.into();
        ApiError { kind: ErrorKind::Invalid, message: format!("{path}: {message}"), param: Some(path), retry_after_s: None }
    }

    pub(crate) fn model_not_found(id: &str) -> Self {
        ApiError {
            param: Some("model".into()),
            ..Self::new(ErrorKind::Model, format!("model `{id}` not found; GET /v1/models lists them"))
        }
    }

    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The error's JSON; `request_id` goes into Anthropic's bodies.
    pub(crate) fn json(&self, family: Family, request_id: Option<&str>) -> Value {
        let (_, anthropic_type, _, openai_type, code) = self.kind.row();
        match (family, request_id) {
            (Family::Anthropic, None) => json!({"type": "error", "error": {"type": anthropic_type, "message": self.message}}),
            (Family::Anthropic, Some(id)) => {
                json!({"type": "error", "error": {"type": anthropic_type, "message": self.message}, "request_id": id})
            }
            (Family::Ollama, _) => json!({"error": self.message}),
            (Family::OpenAi, _) => {
                json!({"error": {"message": self.message, "type": openai_type, "param": self.param, "code": code}})
            }
        }
    }

    /// The HTTP answer in a family's shape.
    pub(crate) fn render(&self, family: Family, request_id: &str) -> Response {
        let (anthropic_status, _, openai_status, _, _) = self.kind.row();
        let status = if family == Family::Anthropic { anthropic_status } else { openai_status };
        let mut response = Response::new(Body::from(self.json(family, Some(request_id)).to_string()));
        *response.status_mut() = StatusCode::from_u16(status).expect("the table holds valid statuses");
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<BackendError> for ApiError {
    fn from(error: BackendError) -> Self {
        let kind = match &error {
            BackendError::InvalidRequest { .. } | BackendError::Unsupported(_) => ErrorKind::Invalid,
            BackendError::PromptTooLong { .. } => ErrorKind::TooLong,
            BackendError::Overloaded { .. } => ErrorKind::Overloaded,
            BackendError::RateLimited { .. } => ErrorKind::RateLimited,
            BackendError::TimedOut(_) => ErrorKind::Deadline,
            BackendError::Upstream(_) => ErrorKind::Upstream,
            BackendError::Unavailable(_) => ErrorKind::Unavailable,
            BackendError::ModelNotFound(_) => ErrorKind::Model,
            BackendError::Internal(_) => ErrorKind::Internal,
        };
        let mut api = ApiError::new(kind, error.to_string());
        match error {
            BackendError::InvalidRequest { param, .. } => api.param = param,
            BackendError::Overloaded { retry_after_s, .. } | BackendError::RateLimited { retry_after_s, .. } => {
                api.retry_after_s = Some(retry_after_s)
            }
            BackendError::Unavailable(_) => api.retry_after_s = Some(RESTART_RETRY_S),
            BackendError::ModelNotFound(_) => api.param = Some("model".into()),
            BackendError::Internal(reason) => tracing::error!(reason, "backend failed"),
            BackendError::Upstream(reason) | BackendError::TimedOut(reason) => tracing::warn!(reason, "upstream failed"),
            _ => {}
        }
        api
    }
}

/// Handlers return errors without knowing their family: the error travels as an extension and `front` renders it.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
