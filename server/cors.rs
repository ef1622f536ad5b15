//! CORS: preflight answers and the headers that let a page read a reply.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::config::CorsOrigins;

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, HEAD, OPTIONS");
const HEADERS: &str = "authorization, x-api-key, content-type, accept, anthropic-version, anthropic-beta, \
                       anthropic-dangerous-direct-browser-access, user-agent, x-request-id";
const EXPOSED: HeaderValue = HeaderValue::from_static("request-id, x-request-id, retry-after");
const MAX_AGE_S: HeaderValue = HeaderValue::from_static("86400");
/// Longest list of requested headers that is echoed.
const MAX_REQUESTED_BYTES: usize = 2048;

/// What to say about a request's origin.
pub(crate) struct CorsReply {
    allow_origin: Option<HeaderValue>,
    varies: bool,
}

impl CorsReply {
    pub(crate) fn new(origins: &CorsOrigins, headers: &HeaderMap) -> Self {
        match origins {
            CorsOrigins::Any => CorsReply { allow_origin: Some(HeaderValue::from_static("*")), varies: false },
            CorsOrigins::List(list) => {
                let origin = headers.get(header::ORIGIN);
                let known = origin.filter(|origin| list.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()));
                CorsReply { allow_origin: known.cloned(), varies: true }
            }
        }
    }

    /// Adds the headers that every reply carries.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        if self.varies {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
        if let Some(origin) = &self.allow_origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}

/// The answer to OPTIONS on any path. Requested headers are allowed as they come, since `*` does not cover `authorization`.
pub(crate) fn preflight(request_headers: &HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed_headers(request_headers));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_S);
    headers.insert(header::ALLOW, METHODS);
    response
}

fn allowed_headers(request_headers: &HeaderMap) -> HeaderValue {
    let requested = request_headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut allowed = HEADERS.to_owned();
    if requested.len() <= MAX_REQUESTED_BYTES {
        let names = requested.split(',').map(str::trim).filter(|name| HeaderName::from_bytes(name.as_bytes()).is_ok());
        for name in names.filter(|name| !HEADERS.split(", ").any(|known| known.eq_ignore_ascii_case(name))) {
            allowed.push_str(", ");
            allowed.push_str(name);
        }
    }
    HeaderValue::from_str(&allowed).expect("header names are valid header values")
}
