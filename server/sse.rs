//! Server-sent events: pumps a backend's events through a family's encoder into a response body, with pings while nothing comes.
//!
//! The body is pulled by the connection: a client that is gone drops it, and with it the backend's streams, which aborts the request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, header};
use pagoda_backends::{BackendError, GenerateEvent, GenerateStream};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::{App, deadline, deadline_error, stopping_error};
use crate::error::{ApiError, ErrorKind};

/// How long the head waits for the first event, so that a fault found early is a plain HTTP error.
const FIRST_EVENT_WAIT: Duration = Duration::from_secs(2);

/// Frames ready to be sent; one frame is one event and one HTTP chunk.
pub(crate) type Frames = VecDeque<Bytes>;

/// A family's way of writing events.
pub(crate) trait Encode: Send + Unpin + 'static {
    /// Writes an event of one of the request's prompts; never called with `Failed`.
    fn event(&mut self, prompt_idx: usize, event: GenerateEvent, frames: &mut Frames);
    /// Writes the end, once every prompt is done.
    fn end(&mut self, frames: &mut Frames);
    /// A sign of life while nothing comes.
    fn ping(&self) -> Bytes;
    /// Writes a fault in the middle of the stream; nothing follows it.
    fn error(&mut self, error: &ApiError, frames: &mut Frames);
}

/// An event with a name: `event: name`, `data: json`.
pub(crate) fn named_frame(name: &str, data: &impl Serialize) -> Bytes {
    let mut frame = format!("event: {name}\ndata: ").into_bytes();
    write_json(&mut frame, data);
    frame.into()
}

/// An event without a name: `data: json`.
pub(crate) fn data_frame(data: &impl Serialize) -> Bytes {
    let mut frame = b"data: ".to_vec();
    write_json(&mut frame, data);
    frame.into()
}

/// A line that parsers skip.
pub(crate) fn comment_ping() -> Bytes {
    Bytes::from_static(b": ping\n\n")
}

fn write_json(frame: &mut Vec<u8>, data: &impl Serialize) {
    serde_json::to_writer(&mut *frame, data).expect("wire types serialise");
    frame.extend_from_slice(b"\n\n");
}

/// Events of all prompts, each with the prompt's index.
type Source = BoxStream<'static, (usize, GenerateEvent)>;

struct Pump<E> {
    source: Source,
    encoder: E,
    frames: Frames,
    num_running: usize,
    ended: bool,
    ping_interval: Duration,
    interrupt: Pin<Box<dyn Future<Output = ApiError> + Send>>,
    _slot: OwnedSemaphorePermit,
}

/// The response that streams `sources`, one a prompt.
///
/// # Errors
/// The failure that came as the first event, while it can still be a plain HTTP error.
pub(crate) async fn respond<E: Encode>(
    app: &App,
    sources: Vec<GenerateStream>,
    encoder: E,
    slot: OwnedSemaphorePermit,
) -> Result<Response, ApiError> {
    let mut pump = Pump {
        num_running: sources.len(),
        source: merge(sources),
        encoder,
        frames: Frames::new(),
        ended: false,
        ping_interval: app.config.ping_interval,
        interrupt: interruption(app),
        _slot: slot,
    };
    if let Ok(first) = tokio::time::timeout(FIRST_EVENT_WAIT.min(pump.ping_interval), pump.source.next()).await {
        if let Some((_, GenerateEvent::Failed(error))) = first {
            return Err(error.into());
        }
        pump.advance(first);
    }
    let frames = stream::unfold(pump, |mut pump| async move { pump.next_frame().await.map(|frame| (Ok::<_, Infallible>(frame), pump)) });
    Ok(event_stream(frames))
}

fn event_stream(frames: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn merge(sources: Vec<GenerateStream>) -> Source {
    let numbered = sources.into_iter().enumerate().map(|(idx, events)| events.map(move |event| (idx, event)).boxed());
    stream::select_all(numbered).boxed()
}

/// Completes when the stream must end before its time.
fn interruption(app: &App) -> Pin<Box<dyn Future<Output = ApiError> + Send>> {
    let (limit, stopping) = (app.config.request_timeout, app.stopping());
    Box::pin(async move {
        tokio::select! {
            () = deadline(limit) => deadline_error(),
            () = stopping => stopping_error(),
        }
    })
}

impl<E: Encode> Pump<E> {
    async fn next_frame(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                event = self.source.next() => self.advance(event),
                error = &mut self.interrupt => self.fail(error),
                () = tokio::time::sleep(self.ping_interval) => self.frames.push_back(self.encoder.ping()),
            }
        }
    }

    fn advance(&mut self, event: Option<(usize, GenerateEvent)>) {
        match event {
            Some((_, GenerateEvent::Failed(error))) => self.fail(error.into()),
            Some((prompt_idx, event)) => {
                let is_done = matches!(event, GenerateEvent::Done(_));
                self.encoder.event(prompt_idx, event, &mut self.frames);
                self.num_running -= usize::from(is_done);
                if self.num_running == 0 {
                    self.encoder.end(&mut self.frames);
                    self.close();
                }
            }
            None => self.fail(BackendError::Internal("the backend's stream ended without a final event".into()).into()),
        }
    }

    fn fail(&mut self, error: ApiError) {
        self.encoder.error(&error, &mut self.frames);
        self.close();
    }

    /// Lets go of the backend at once; the frames left are sent as the client reads.
    fn close(&mut self) {
        self.source = stream::empty().boxed();
        self.ended = true;
    }
}

/// What a choice that the backend aborted is reported as.
pub(crate) fn aborted_error() -> ApiError {
    ApiError::new(ErrorKind::Unavailable, "the request was aborted by the server")
}
