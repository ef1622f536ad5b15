//! What went wrong with a service, what the client is told, and whether asking again may help.

use std::error::Error as _;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use crate::{BackendError, Json};

/// Longest message of a service that is passed on, characters.
const MAX_MESSAGE_CHARS: usize = 2000;
/// Seconds after which to come back where a service did not say.
const DEFAULT_RETRY_AFTER_S: u32 = 1;

/// A request that failed.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// What the client is told.
    pub(super) error: BackendError,
    /// The service's own words, for the quirks that can be answered by asking differently.
    pub(super) message: String,
    /// Sending it again may help.
    pub(super) is_retryable: bool,
    /// The service is down or overloaded, as opposed to refusing this request.
    pub(super) is_outage: bool,
    /// How long the service wants to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// HTTP status, where one came.
    pub(super) status: Option<StatusCode>,
}

impl Fault {
    fn new(error: BackendError, is_retryable: bool, is_outage: bool) -> Fault {
        Fault { error, message: String::new(), is_retryable, is_outage, retry_after: None, status: None }
    }

    /// The request cannot be sent.
    pub(super) fn of_request(error: BackendError) -> Fault {
        Fault::new(error, false, false)
    }

    /// The service sent what is no answer.
    pub(super) fn nonsense(service: &str, what: impl std::fmt::Display) -> Fault {
        Fault::new(BackendError::Upstream(format!("{service} sent {what}")), false, true)
    }

    /// The answer broke off. Before anything of it was passed on, asking again may help.
    pub(super) fn cut(service: &str, reason: impl std::fmt::Display) -> Fault {
        Fault::new(BackendError::Upstream(format!("{service} broke off its answer: {reason}")), true, true)
    }

    /// Nothing came for too long.
    pub(super) fn timed_out(service: &str, limit: Duration) -> Fault {
        let message = format!("{service} sent nothing for {} s", limit.as_secs_f32());
        Fault::new(BackendError::TimedOut(message), false, true)
    }

    /// The breaker let nothing pass.
    pub(super) fn held_back(service: &str, wait: Duration) -> Fault {
        let retry_after_s = seconds(wait);
        let message = format!("{service} failed several times in a row; the next request is sent in {retry_after_s} s");
        Fault::new(BackendError::Overloaded { message, retry_after_s }, false, false)
    }

    /// No HTTP answer came.
    pub(super) fn of_transport(service: &str, error: reqwest::Error) -> Fault {
        let is_connect = error.is_connect();
        // The address is in the configuration; a message that goes to clients needs none.
        let error = error.without_url();
        let mut cause = error.source();
        while let Some(deeper) = cause.and_then(|cause| cause.source()) {
            cause = Some(deeper);
        }
        let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
        let verb = if is_connect { "cannot be reached" } else { "broke off" };
        Fault::new(BackendError::Upstream(format!("{service} {verb}: {cause}")), true, true)
    }

    /// An HTTP answer other than 200.
    pub(super) fn of_status(service: &str, status: StatusCode, retry_after: Option<Duration>, body: &str) -> Fault {
        let told = Told::parse(body);
        let quoted = if told.message.is_empty() { String::new() } else { format!(": {}", told.message) };
        let message = format!("{service} answered HTTP {}{quoted}", status.as_u16());
        let retry_after_s = retry_after.map_or(DEFAULT_RETRY_AFTER_S, seconds);
        let (error, is_retryable, is_outage) = match status.as_u16() {
            400 | 413 | 422 => (refusal(&told), false, false),
            401 | 403 => {
                let message = format!("{service} refused this server's key or its rights (HTTP {})", status.as_u16());
                (BackendError::Internal(message), false, false)
            }
            408 => (BackendError::TimedOut(message), true, true),
            429 => (BackendError::RateLimited { message, retry_after_s }, true, false),
            503 | 529 => (BackendError::Overloaded { message, retry_after_s }, true, true),
            504 => (BackendError::TimedOut(message), true, true),
            500.. => (BackendError::Upstream(message), true, true),
            _ => (BackendError::Upstream(message), false, false),
        };
        Fault { error, message: told.message, is_retryable, is_outage, retry_after, status: Some(status) }
    }

    /// An error in the middle of a stream.
    pub(super) fn of_event(service: &str, event: &Json) -> Fault {
        let told = Told::parse(&event.to_string());
        let message = format!("{service} failed: {}", told.message);
        let error = match (told.kind.as_str(), told.code.as_str()) {
            ("invalid_request_error" | "BadRequestError", _) | (_, "400") => refusal(&told),
            ("rate_limit_error", _) | (_, "429") => BackendError::RateLimited { message, retry_after_s: DEFAULT_RETRY_AFTER_S },
            ("overloaded_error", _) | (_, "503" | "529") => BackendError::Overloaded { message, retry_after_s: DEFAULT_RETRY_AFTER_S },
            ("timeout_error", _) => BackendError::TimedOut(message),
            _ => BackendError::Upstream(message),
        };
        Fault { message: told.message, ..Fault::new(error, false, false) }
    }
}

/// A request that the service refuses: the client's fault, in the service's words.
fn refusal(told: &Told) -> BackendError {
    match Overflow::parse(&told.message) {
        Some(overflow) if overflow.prompt_tokens > overflow.max_tokens => {
            BackendError::PromptTooLong { prompt_tokens: overflow.prompt_tokens, max_tokens: overflow.max_tokens }
        }
        _ if told.message.is_empty() => {
            BackendError::InvalidRequest { param: None, message: "the service behind this model refused the request".into() }
        }
        _ => BackendError::InvalidRequest { param: told.param.clone(), message: told.message.clone() },
    }
}

fn seconds(wait: Duration) -> u32 {
    (wait.as_secs_f64().ceil() as u32).max(1)
}

/// What an error body says, in the shapes of OpenAI, vLLM (new and old), FastAPI and plain text.
#[derive(Default)]
struct Told {
    message: String,
    param: Option<String>,
    kind: String,
    code: String,
}

impl Told {
    fn parse(body: &str) -> Told {
        let json: Value = serde_json::from_str(body).unwrap_or(Value::Null);
        let error = match &json["error"] {
            Value::Null => &json,
            error => error,
        };
        let plain = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let message = match (&error["message"], &error["detail"], error) {
            (Value::String(text), _, _) | (_, Value::String(text), _) | (_, _, Value::String(text)) => text.clone(),
            (_, detail @ (Value::Array(_) | Value::Object(_)), _) => detail.to_string(),
            // A page of some proxy says nothing to a client.
            _ if json.is_null() && body.trim_start().starts_with('<') => String::new(),
            _ => body.trim().to_owned(),
        };
        Told {
            message: message.chars().take(MAX_MESSAGE_CHARS).collect(),
            param: error["param"].as_str().map(str::to_owned),
            kind: plain(&error["type"]),
            code: plain(&error["code"]),
        }
    }
}

/// Numbers of a message that says that prompt and answer do not fit the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow {
    pub(super) prompt_tokens: usize,
    /// Largest prompt, or the window where the service says that.
    pub(super) max_tokens: usize,
}

impl Overflow {
    /// Reads the wordings of pagoda, OpenAI and vLLM.
    pub(super) fn parse(message: &str) -> Option<Overflow> {
        if let Some(prompt_tokens) = number_after(message, "prompt is too long: ") {
            return Some(Overflow { prompt_tokens, max_tokens: number_after(message, " tokens > ")? });
        }
        let max_tokens = ["context length is only ", "context length is ", "max_model_len of ", "maximum model length of "]
            .into_iter()
            .find_map(|before| number_after(message, before))?;
        let after = ["resulted in ", "You passed ", "request has ", "prompt contains at least ", "prompt contains "];
        let before = [" in the messages", " input tokens", " in your prompt", " text tokens"];
        let prompt_tokens = before.into_iter().find_map(|after| number_before(message, after));
        let prompt_tokens = prompt_tokens.or_else(|| after.into_iter().find_map(|before| number_after(message, before)));
        Some(Overflow { prompt_tokens: prompt_tokens.or_else(|| number_after(message, "requested "))?, max_tokens })
    }
}

fn number_after(text: &str, before: &str) -> Option<usize> {
    let rest = &text[text.find(before)? + before.len()..];
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    rest[..digits].parse().ok()
}

fn number_before(text: &str, after: &str) -> Option<usize> {
    let text = &text[..text.find(after)?];
    let text = text.strip_suffix(" tokens").unwrap_or(text);
    text[text.trim_end_matches(|c: char| c.is_ascii_digit()).len()..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflows_of_several_services_are_read() {
        let check = |message: &str, prompt_tokens: usize, max_tokens: usize| {
            assert_eq!(Overflow::parse(message), Some(Overflow { prompt_tokens, max_tokens }), "{message}");
        };
        check("prompt is too long: 40961 tokens > 32768 maximum", 40961, 32768);
        check(
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens. Please reduce the length of the messages.",
            9001,
            8192,
        );
        check(
            "This model's maximum context length is 32768 tokens. However, you requested 64000 tokens (32000 in the messages, 32000 in the completion).",
            32000,
            32768,
        );
        check(
            "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context length is 8192 tokens and your request has 900 input tokens (32000 > 8192 - 900).",
            900,
            8192,
        );
        check(
            "You passed 700 input tokens and requested 4000 output tokens. However, the model's context length is only 4096 tokens, resulting in a maximum input length of 96 tokens.",
            700,
            4096,
        );
        assert_eq!(Overflow::parse("temperature must be at most 2"), None);
        assert_eq!(Overflow::parse("context length is long, requested much"), None);
    }

    #[test]
    fn statuses_become_our_errors() {
        use BackendError::*;
        let of = |status: u16, body: &str| Fault::of_status("up", StatusCode::from_u16(status).expect("a status"), None, body);
        let told = r#"{"error":{"message":"bad n","type":"invalid_request_error","param":"n","code":null}}"#;
        assert_eq!(of(400, told).error, InvalidRequest { param: Some("n".into()), message: "bad n".into() });
        assert_eq!(of(422, r#"{"detail":[{"loc":["body"]}]}"#).message, r#"[{"loc":["body"]}]"#);
        assert_eq!(of(400, r#"{"object":"error","message":"old vLLM","code":400}"#).message, "old vLLM");
        let long = r#"{"error":{"message":"prompt is too long: 9 tokens > 8 maximum"}}"#;
        assert_eq!(of(400, long).error, PromptTooLong { prompt_tokens: 9, max_tokens: 8 });
        assert!(
            matches!(of(401, r#"{"error":{"message":"Incorrect API key provided: sk-1"}}"#).error, Internal(text) if !text.contains("sk-"))
        );
        assert!(matches!(of(429, told).error, RateLimited { retry_after_s: 1, .. }));
        assert!(matches!(of(502, "<html>gateway</html>").error, Upstream(text) if text == "up answered HTTP 502"));
        assert!(matches!(of(404, "no model x").error, Upstream(text) if text == "up answered HTTP 404: no model x"));
        let retryable: Vec<u16> = [302, 400, 401, 404, 408, 413, 429, 500, 502, 503, 504, 529]
            .into_iter()
            .filter(|&status| of(status, "").is_retryable)
            .collect();
        assert_eq!(retryable, [408, 429, 500, 502, 503, 504, 529]);
    }
}
