//! `Service`: one OpenAI-compatible service elsewhere. Sends requests over pooled connections, again where that may help, and keeps
//! its key out of every message.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use reqwest::{Client, Response, Url};
use tokio::time::timeout;

use super::breaker::{Breaker, Permit};
use super::fault::Fault;
use super::retry::{RetryPolicy, retry_after};
use super::{RemoteError, RemoteSettings};
use crate::registry::BackendKind;
use crate::{BackendError, Json};

/// Longest error body that is read.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Longest whole answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A service. Clones share connections, breaker and counts.
#[derive(Clone)]
pub(super) struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    kind: BackendKind,
    client: Client,
    /// Ends in `/`; what is below `/v1/`.
    api: Url,
    /// Ends in `/`; `/tokenize` and the like.
    root: Url,
    api_key: Option<String>,
    /// Longest silence.
    limit: Duration,
    policy: RetryPolicy,
    breaker: Breaker,
    num_running: AtomicUsize,
}

/// Counts a request until it is dropped.
pub(super) struct Running(Service);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.inner.num_running.fetch_sub(1, Relaxed);
    }
}

impl Service {
    /// Prepares connections; opens none.
    ///
    /// # Errors
    /// An address or a key that cannot be used.
    pub(super) fn new(settings: &RemoteSettings) -> Result<Service, RemoteError> {
        let (root, api) = addresses(settings)?;
        let client = client(settings, api.scheme() == "https")?;
        let inner = Inner {
            kind: settings.kind,
            client,
            api,
            root,
            api_key: settings.api_key.clone(),
            limit: settings.timeout,
            policy: settings.policy,
            breaker: Breaker::new(settings.policy.breaker),
            num_running: AtomicUsize::new(0),
        };
        Ok(Service { inner: Arc::new(inner) })
    }

    /// Its kind.
    pub(super) fn kind(&self) -> BackendKind {
        self.inner.kind
    }

    /// What it is called in messages: no address, no key.
    pub(super) fn name(&self) -> &'static str {
        match self.inner.kind {
            BackendKind::VllmRemote => "the vLLM server behind this model",
            _ => "the service behind this model",
        }
    }

    /// Requests in flight.
    pub(super) fn num_running(&self) -> usize {
        self.inner.num_running.load(Relaxed)
    }

    /// Counts a request.
    pub(super) fn start_running(&self) -> Running {
        self.inner.num_running.fetch_add(1, Relaxed);
        Running(self.clone())
    }

    /// Longest silence of a stream.
    pub(super) fn limit(&self) -> Duration {
        self.inner.limit
    }

    /// Posts below `/v1/`.
    pub(super) async fn post(&self, path: &str, body: &Json, retries: &mut u32) -> Result<Response, Fault> {
        self.send(self.inner.api.join(path).expect("our paths are relative"), Some(body), retries).await
    }

    /// Posts beside `/v1/`; the JSON answer.
    pub(super) async fn post_root(&self, path: &str, body: &Json) -> Result<Json, Fault> {
        let response = self.send(self.inner.root.join(path).expect("our paths are relative"), Some(body), &mut 0).await?;
        self.json(response).await
    }

    /// Reads below `/v1/`; the JSON answer.
    pub(super) async fn get(&self, path: &str) -> Result<Json, Fault> {
        let response = self.send(self.inner.api.join(path).expect("our paths are relative"), None, &mut 0).await?;
        self.json(response).await
    }

    /// Sends until an answer with a good status comes, or asking again is of no use.
    async fn send(&self, url: Url, body: Option<&Json>, retries: &mut u32) -> Result<Response, Fault> {
        loop {
            let permit = self.inner.breaker.enter(Instant::now()).map_err(|wait| Fault::held_back(self.name(), wait))?;
            let fault = match self.attempt(url.clone(), body).await {
                Ok(response) => {
                    permit.succeeded();
                    return Ok(response);
                }
                Err(fault) => fault,
            };
            verdict(permit, &fault);
            let wait = fault.is_retryable.then(|| self.inner.policy.wait(*retries, fault.retry_after)).flatten();
            let Some(wait) = wait else { return Err(self.without_key(fault)) };
            tracing::debug!(reason = %self.redacted(&fault.error.to_string()), wait_ms = wait.as_millis() as u64, "asking again");
            *retries += 1;
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, url: Url, body: Option<&Json>) -> Result<Response, Fault> {
        let inner = &self.inner;
        let request = match body {
            Some(body) => inner.client.post(url).header(CONTENT_TYPE, "application/json").body(body.to_string()),
            None => inner.client.get(url),
        };
        let answer = timeout(inner.limit, request.send()).await.map_err(|_| Fault::timed_out(self.name(), inner.limit))?;
        let response = answer.map_err(|error| Fault::of_transport(self.name(), error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait = retry_after(response.headers());
        let body = self.bytes(response, MAX_ERROR_BYTES, true).await.unwrap_or_default();
        Err(Fault::of_status(self.name(), status, wait, &String::from_utf8_lossy(&body)))
    }

    /// A whole answer as JSON.
    pub(super) async fn json(&self, response: Response) -> Result<Json, Fault> {
        let body = self.bytes(response, MAX_ANSWER_BYTES, false).await?;
        serde_json::from_slice(&body).map_err(|_| Fault::nonsense(self.name(), "an answer that is no JSON"))
    }

    /// A whole answer.
    pub(super) async fn whole(&self, response: Response) -> Result<Vec<u8>, Fault> {
        self.bytes(response, MAX_ANSWER_BYTES, false).await
    }

    /// A body of at most `max` bytes; one that is longer is cut or refused.
    async fn bytes(&self, mut response: Response, max: usize, cut: bool) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        loop {
            let piece = timeout(self.inner.limit, response.chunk()).await.map_err(|_| Fault::timed_out(self.name(), self.inner.limit))?;
            let Some(piece) = piece.map_err(|error| Fault::of_transport(self.name(), error))? else { return Ok(body) };
            body.extend_from_slice(&piece);
            if body.len() > max {
                if cut {
                    body.truncate(max);
                    return Ok(body);
                }
                return Err(Fault::nonsense(self.name(), format_args!("more than {max} bytes")));
            }
        }
    }

    /// A stream that failed after its head counts against the service too.
    pub(super) fn note(&self, fault: &Fault) {
        if let Ok(permit) = self.inner.breaker.enter(Instant::now()) {
            verdict(permit, fault);
        }
    }

    /// How long to wait before asking once more; None: not again.
    pub(super) fn wait(&self, fault: &Fault, retries: u32) -> Option<Duration> {
        fault.is_retryable.then(|| self.inner.policy.wait(retries, fault.retry_after)).flatten()
    }

    /// The fault without the key, should the service have quoted it.
    pub(super) fn without_key(&self, mut fault: Fault) -> Fault {
        use BackendError::{Internal, InvalidRequest, Overloaded, RateLimited, TimedOut, Upstream};
        match &mut fault.error {
            InvalidRequest { message, .. } | Overloaded { message, .. } | RateLimited { message, .. } => *message = self.redacted(message),
            TimedOut(message) | Upstream(message) | Internal(message) => *message = self.redacted(message),
            _ => {}
        }
        fault.message = self.redacted(&fault.message);
        fault
    }

    fn redacted(&self, text: &str) -> String {
        match self.inner.api_key.as_deref().filter(|key| !key.is_empty()) {
            Some(key) => text.replace(key, "***"),
            None => text.to_owned(),
        }
    }
}

fn verdict(permit: Permit, fault: &Fault) {
    if fault.is_outage { permit.failed(Instant::now()) } else { permit.succeeded() }
}

/// The addresses of a service, with and without `/v1/`.
fn addresses(settings: &RemoteSettings) -> Result<(Url, Url), RemoteError> {
    let wrong = |reason: &str| RemoteError::Address { option: settings.option("url"), reason: reason.to_owned() };
    let mut root = Url::parse(settings.url.trim()).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(root.scheme(), "http" | "https") || root.host_str().is_none() {
        return Err(wrong("expected http://HOST[:PORT][/PATH] or https://..."));
    }
    if !root.username().is_empty() || root.password().is_some() {
        return Err(wrong("a user or password in an address would show in logs; use the option for the key"));
    }
    if root.query().is_some() || root.fragment().is_some() {
        return Err(wrong("expected no `?` and no `#`"));
    }
    let path = root.path().trim_end_matches('/').to_owned();
    let below = path.strip_suffix("/v1").unwrap_or(&path);
    root.set_path(&format!("{below}/"));
    let mut api = root.clone();
    // Some services have another version, or the API at the top of a path of their own: only a bare host gets `/v1`.
    let has_own_path = !path.is_empty() && !path.ends_with("/v1") && settings.kind == BackendKind::RemoteOpenai;
    api.set_path(&if has_own_path { format!("{path}/") } else { format!("{below}/v1/") });
    Ok((root, api))
}

fn client(settings: &RemoteSettings, is_https: bool) -> Result<Client, RemoteError> {
    // An error means that this process has a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("pagoda/", env!("CARGO_PKG_VERSION"))));
    if let Some(key) = &settings.api_key {
        let value = HeaderValue::from_str(&format!("Bearer {key}"));
        let mut value = value.map_err(|_| RemoteError::Key { option: settings.option("api_key") })?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let builder = Client::builder()
        .default_headers(headers)
        .connect_timeout(settings.policy.connect_timeout.min(settings.timeout))
        .tcp_nodelay(true)
        .pool_idle_timeout(Duration::from_secs(60))
        // A redirect could carry key and prompts to another host.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    // The system's certificates; where nothing is encrypted, none are needed, and some images have none.
    let builder = if is_https { builder } else { builder.tls_certs_only([]) };
    builder.build().map_err(|error| RemoteError::Address { option: settings.option("url"), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_a_version() {
        let of = |kind, url: &str| {
            let settings = RemoteSettings { url: url.into(), ..RemoteSettings::new(kind, url) };
            addresses(&settings).map(|(root, api)| (root.to_string(), api.to_string())).map_err(|error| error.to_string())
        };
        let both = |root: &str, api: &str| Ok((root.to_owned(), api.to_owned()));
        for kind in [BackendKind::VllmRemote, BackendKind::RemoteOpenai] {
            for url in ["http://h:1", "http://h:1/", "http://h:1/v1", " http://h:1/v1/ "] {
                assert_eq!(of(kind, url), both("http://h:1/", "http://h:1/v1/"), "{url}");
            }
            assert_eq!(of(kind, "https://h/a/v1"), both("https://h/a/", "https://h/a/v1/"));
            for url in ["h:1", "ftp://h", "http://u:p@h", "http://h/v1?key=1", "", "http://"] {
                let error = of(kind, url).expect_err(url);
                assert!(
                    error.starts_with(if kind == BackendKind::VllmRemote { "--vllm-remote-url: " } else { "--remote-openai-url: " }),
                    "{error}"
                );
                assert!(!error.contains("u:p"), "{error}");
            }
        }
        assert_eq!(of(BackendKind::VllmRemote, "http://h/a"), both("http://h/a/", "http://h/a/v1/"));
        assert_eq!(of(BackendKind::RemoteOpenai, "https://h/v3/openai"), both("https://h/v3/openai/", "https://h/v3/openai/"));
    }
}
