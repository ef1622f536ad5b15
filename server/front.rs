//! What every request goes through, whatever its route: request id, CORS, keys, draining, panics, and error bodies in the client's family.

use std::panic::AssertUnwindSafe;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use tower::ServiceExt;

use crate::app::{App, InFlight, Phase, stopping_error};
use crate::auth;
use crate::body::{GuardedBody, RequestBody};
use crate::cors::{self, CorsReply};
use crate::error::{ApiError, ErrorKind, Family};
use crate::ids::new_id;

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Routes that OpenAI's clients use; elsewhere `anthropic-version` asks for Anthropic's errors.
const OPENAI_ROUTES: [&str; 12] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/api/rerank",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/score",
    "/v1/score",
    "/tokenize",
    "/detokenize",
];
/// Longest path quoted in an error.
const MAX_QUOTED_PATH: usize = 200;

/// Answers one request.
pub(crate) async fn answer(app: &App, router: Router, in_flight: InFlight, request: Request<Incoming>) -> Response {
    let (parts, body) = request.into_parts();
    let request_id = new_id("req_");
    let family = family_of(parts.uri.path(), &parts.headers);
    let cors = CorsReply::new(&app.config.cors_origins, &parts.headers);
    let quoted: String = format!("{} {}", parts.method, parts.uri.path()).chars().take(MAX_QUOTED_PATH).collect();
    let body = RequestBody::new(body, &parts.headers);

    let response = if parts.method == Method::OPTIONS {
        cors::preflight(&parts.headers)
    } else if let Err(error) = admit(app, parts.uri.path(), &parts.headers) {
        error.into_response()
    } else {
        route(router, Request::from_parts(parts, Body::new(body))).await
    };

    let mut response = in_family(response, family, &request_id, &quoted);
    tracing::debug!(request_id, route = quoted, status = response.status().as_u16(), "answered");
    let headers = response.headers_mut();
    cors.apply(headers);
    let id_value = HeaderValue::from_str(&request_id).expect("ids are ASCII");
    headers.insert(REQUEST_ID, id_value.clone());
    headers.insert(X_REQUEST_ID, id_value);
    if app.phase() != Phase::Running {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Body::new(GuardedBody::new(body, in_flight)))
}

/// Whose error shape the client expects.
fn family_of(path: &str, headers: &HeaderMap) -> Family {
    if path == "/api/embed" {
        return Family::Ollama;
    }
    let anthropic_route = path == "/v1/messages" || path.starts_with("/v1/messages/");
    if anthropic_route || (headers.contains_key("anthropic-version") && !OPENAI_ROUTES.contains(&path)) {
        Family::Anthropic
    } else {
        Family::OpenAi
    }
}

fn admit(app: &App, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
    auth::check(&app.config.api_keys, path, headers)?;
    let answers_while_draining = ["/health", "/version", "/metrics"].contains(&path);
    if app.phase() != Phase::Running && !answers_while_draining { Err(stopping_error()) } else { Ok(()) }
}

/// Runs the handler; a panic in it is a 500 and nobody else's problem.
async fn route(router: Router, request: Request<Body>) -> Response {
    match AssertUnwindSafe(router.oneshot(request)).catch_unwind().await {
        Ok(Ok(response)) => response,
        Err(_panic) => {
            tracing::error!("a handler panicked");
            ApiError::new(ErrorKind::Internal, "internal error").into_response()
        }
    }
}

/// Gives errors the family's body: those of handlers and those that the router answered by itself.
fn in_family(mut response: Response, family: Family, request_id: &str, quoted: &str) -> Response {
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None => match response.status() {
            status if status.as_u16() < 400 => return response,
            StatusCode::SERVICE_UNAVAILABLE => return response,
            StatusCode::NOT_FOUND => ApiError::new(ErrorKind::Route, format!("no such route: {quoted}")),
            StatusCode::METHOD_NOT_ALLOWED => ApiError::new(ErrorKind::Method, format!("method not allowed: {quoted}")),
            status if status.is_client_error() => ApiError::new(ErrorKind::Invalid, format!("bad request: {quoted}")),
            _ => ApiError::new(ErrorKind::Internal, "internal error"),
        },
    };
    let mut rendered = error.render(family, request_id);
    if let Some(allowed) = response.headers_mut().remove(header::ALLOW) {
        rendered.headers_mut().insert(header::ALLOW, allowed);
    }
    rendered
}
