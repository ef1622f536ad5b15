//! `/metrics`: numbers for Prometheus, under the names that vLLM's users scale and alert by, and some of our own.
//!
//! `Meter` counts one model's requests as their streams pass; `families` turns meters and the backends' own numbers into text. Label values
//! never come from a request.

mod exposition;
mod families;
mod histogram;
mod meter;
mod recording;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;

use crate::app::SharedApp;

pub(crate) use meter::Meter;
pub(crate) use recording::Recording;

/// Prometheus' text format, version 0.0.4.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers with all numbers. A server that still loads has no models to tell of, and answers all the same.
pub(crate) async fn metrics(State(app): State<SharedApp>) -> Response {
    let models = app.models.all().unwrap_or_default();
    let text = families::render(&models, app.num_in_flight(), &app.config.version);
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response()
}
