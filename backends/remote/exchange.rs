//! `Exchange`: one request's way to a service and back, asked again only while nothing of the answer was passed on.
//!
//! Polled by whoever reads the answer; dropping it closes the connection, which ends the request there.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use http::header::CONTENT_TYPE;
use reqwest::Response;
use tokio::time::timeout;

use super::RemoteModel;
use super::answer::Answer;
use super::body::{self, Shape};
use super::estimate;
use super::fault::{Fault, Overflow};
use super::service::Running;
use super::sse::SseParser;
use crate::{BackendError, GenerateEvent, GenerateRequest};

/// How long the end of a stream is waited for, so that its connection can be used again.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// A request under way.
pub(super) struct Exchange {
    remote: Arc<RemoteModel>,
    request: GenerateRequest,
    /// Times it was sent again.
    retries: u32,
    /// Output tokens that were found to fit.
    max_tokens: Option<u32>,
    _running: Running,
}

/// The answer under way.
struct Incoming {
    exchange: Exchange,
    response: Option<Response>,
    parser: SseParser,
    answer: Answer,
    fault: Option<Fault>,
    is_over: bool,
}

impl Exchange {
    pub(super) fn new(remote: Arc<RemoteModel>, request: GenerateRequest) -> Exchange {
        let running = remote.service.start_running();
        Exchange { remote, request, retries: 0, max_tokens: None, _running: running }
    }

    /// The answer's events, once the service took the request.
    ///
    /// # Errors
    /// What the service said instead, after as many attempts as may help.
    pub(super) async fn start(mut self) -> Result<impl Stream<Item = GenerateEvent> + Send + 'static, BackendError> {
        let (response, answer) = self.open().await.map_err(|fault| fault.error)?;
        let incoming =
            Incoming { exchange: self, response: Some(response), parser: SseParser::default(), answer, fault: None, is_over: false };
        Ok(stream::unfold(incoming, |mut incoming| async move { incoming.next().await.map(|event| (event, incoming)) }))
    }

    /// Sends the request until the service takes it.
    async fn open(&mut self) -> Result<(Response, Answer), Fault> {
        let remote = Arc::clone(&self.remote);
        loop {
            let shape = Shape {
                kind: remote.service.kind(),
                model: &remote.id,
                quirks: &remote.quirks,
                window: remote.window(),
                max_tokens: self.max_tokens,
            };
            let body = body::body(&self.request, &shape).map_err(Fault::of_request)?;
            match remote.service.post(body.path, &body.json, &mut self.retries).await {
                Ok(response) => {
                    let estimate = estimate::num_tokens(&self.request.prompt);
                    let answer = Answer::new(remote.service.name(), &self.request, body.is_clamped, estimate);
                    return Ok((response, answer.reasoning_as(remote.reasoning())));
                }
                Err(fault) if self.adapts(&fault) => {}
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Whether the refusal can be answered by another way of asking.
    fn adapts(&mut self, fault: &Fault) -> bool {
        if fault.status.is_none_or(|status| status.as_u16() != 400) {
            return false;
        }
        self.remote.quirks.learn(&fault.message) || self.clamps(&fault.message)
    }

    /// Prompt and answer do not fit together, the prompt alone does: asks for what is left.
    fn clamps(&mut self, message: &str) -> bool {
        let Some(Overflow { prompt_tokens, max_tokens }) = Overflow::parse(message) else { return false };
        let room = max_tokens.saturating_sub(prompt_tokens).try_into().unwrap_or(u32::MAX);
        let wanted = self.request.config.max_tokens.unwrap_or(u32::MAX);
        let helps = room > 0 && room < wanted && self.max_tokens.is_none();
        if helps {
            self.max_tokens = Some(room);
        }
        helps
    }
}

impl Incoming {
    async fn next(&mut self) -> Option<GenerateEvent> {
        loop {
            if let Some(event) = self.answer.pop() {
                if matches!(event, GenerateEvent::Done(_)) {
                    self.finish();
                }
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            if let Some(fault) = self.fault.take() {
                self.is_over = true;
                self.response = None;
                return Some(GenerateEvent::Failed(self.exchange.remote.service.without_key(fault).error));
            }
            if let Err(fault) = self.advance().await {
                self.fault = self.again(fault).await.err();
            }
        }
    }

    /// Takes the next piece of the answer.
    async fn advance(&mut self) -> Result<(), Fault> {
        let service = &self.exchange.remote.service;
        let Some(response) = self.response.as_mut() else { return Err(Fault::cut(service.name(), "its answer is gone")) };
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.starts_with("application/json") {
            let response = self.response.take().expect("looked at just now");
            return self.answer.take_whole(&service.whole(response).await?);
        }
        if !kind.starts_with("text/event-stream") {
            return Err(Fault::nonsense(service.name(), format_args!("`{kind}` instead of events; is its address the one of an API?")));
        }
        let piece = timeout(service.limit(), response.chunk()).await.map_err(|_| Fault::timed_out(service.name(), service.limit()))?;
        match piece.map_err(|error| Fault::of_transport(service.name(), error)) {
            Ok(Some(bytes)) => {
                for data in self.parser.feed(&bytes).map_err(|error| Fault::nonsense(service.name(), error))? {
                    self.answer.take_event(&data)?;
                }
                Ok(())
            }
            Ok(None) => {
                let rest = self.parser.finish().map_err(|error| Fault::nonsense(service.name(), error))?;
                // An event that the end cut in half is the end's fault, not the event's.
                let _ = rest.map_or(Ok(()), |data| self.answer.take_event(&data));
                self.answer.end()
            }
            // Nothing is missing: how the connection ended does not matter.
            Err(fault) => self.answer.end().map_err(|_| fault),
        }
    }

    /// Asks once more when nothing was passed on and that may help.
    async fn again(&mut self, fault: Fault) -> Result<(), Fault> {
        let service = self.exchange.remote.service.clone();
        if fault.is_outage {
            service.note(&fault);
        }
        self.response = None;
        let wait = if self.answer.is_started() { None } else { service.wait(&fault, self.exchange.retries) };
        let Some(wait) = wait else { return Err(fault) };
        self.exchange.retries += 1;
        tokio::time::sleep(wait).await;
        let (response, answer) = self.exchange.open().await?;
        (self.response, self.answer, self.parser) = (Some(response), answer, SseParser::default());
        Ok(())
    }

    /// The answer is whole. What the service sends behind it is swallowed aside: an unread connection could not be used again.
    fn finish(&mut self) {
        self.is_over = true;
        if let Some(mut response) = self.response.take() {
            tokio::spawn(timeout(DRAIN_TIME, async move { while let Ok(Some(_)) = response.chunk().await {} }));
        }
    }
}
