//! Request and response bodies with a duty at their end: unread uploads are drained so that an early answer can be read, and a response
//! holds its in-flight guard until its last byte is handed over.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::future::poll_fn;
use http::{HeaderMap, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// How long the rest of an unread upload is swallowed. Closing a socket with unread bytes resets it, and a client that is still
/// sending would lose the answer.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A request's body; what a handler leaves unread is swallowed for a while when it is dropped.
pub(crate) struct RequestBody {
    inner: Option<Incoming>,
    /// The client waits for `100 Continue`, which reading the body sends; an unread body of such a client is not on its way.
    held_back: bool,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, headers: &HeaderMap) -> Self {
        RequestBody { inner: Some(inner), held_back: headers.contains_key(header::EXPECT) }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.held_back = false;
        match &mut self.inner {
            Some(body) => Pin::new(body).poll_frame(task),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(body) = self.inner.take() else { return };
        if self.held_back || body.is_end_stream() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(DRAIN_TIME, drain(body)));
        }
    }
}

async fn drain(mut body: Incoming) {
    while let Some(Ok(_)) = poll_fn(|task| Pin::new(&mut body).poll_frame(task)).await {}
}

/// A response's body that keeps `guard` until it is dropped.
pub(crate) struct GuardedBody<G> {
    inner: Body,
    _guard: G,
}

impl<G> GuardedBody<G> {
    pub(crate) fn new(inner: Body, guard: G) -> Self {
        GuardedBody { inner, _guard: guard }
    }
}

impl<G: Unpin> HttpBody for GuardedBody<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(task)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
