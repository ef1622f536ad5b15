//! `ServerConfig`: what the front end can be told. The binary resolves it from options, environment and file.

use std::path::PathBuf;
use std::time::Duration;

/// Options of the server.
#[derive(Clone)]
pub struct ServerConfig {
    /// Keys that open the API; empty: no key is asked for.
    pub api_keys: Vec<String>,
    /// Largest request body, bytes.
    pub max_body_bytes: usize,
    /// Requests that generate at the same time; one more is told to come back later.
    pub max_concurrent_requests: usize,
    /// Pages that may call the API from a browser.
    pub cors_origins: CorsOrigins,
    /// Longest time a request may take; None: as long as it needs.
    pub request_timeout: Option<Duration>,
    /// Longest time for a request's headers to arrive, also the longest idle time of a kept connection.
    pub header_timeout: Duration,
    /// Longest time that running requests get to finish after shutdown began.
    pub drain_timeout: Duration,
    /// Silence on a stream after which a ping is sent; clients expect 15 s at most.
    pub ping_interval: Duration,
    /// Folder of `/v1/messages/batches`; None: the server keeps no batches.
    pub batch_dir: Option<PathBuf>,
    /// Served at `/version`.
    pub version: String,
}

/// With its keys counted, not shown.
impl std::fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("ServerConfig");
        shown.field("num_api_keys", &self.api_keys.len()).field("max_body_bytes", &self.max_body_bytes);
        shown.field("max_concurrent_requests", &self.max_concurrent_requests).field("cors_origins", &self.cors_origins);
        shown.field("request_timeout", &self.request_timeout).field("header_timeout", &self.header_timeout);
        shown.field("drain_timeout", &self.drain_timeout).field("ping_interval", &self.ping_interval);
        shown.field("batch_dir", &self.batch_dir).field("version", &self.version).finish()
    }
}

impl Default for ServerConfig {
    /// No key, 32 MB bodies, any origin.
    fn default() -> Self {
        ServerConfig {
            api_keys: Vec::new(),
            max_body_bytes: 32 << 20,
            max_concurrent_requests: 1024,
            cors_origins: CorsOrigins::Any,
            request_timeout: None,
            header_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(10),
            batch_dir: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Origins that a browser may call from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CorsOrigins {
    /// Every page.
    #[default]
    Any,
    /// These, as `scheme://host[:port]`.
    List(Vec<String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_shown() {
        let config = ServerConfig { api_keys: vec!["sesame".to_owned(), "open".to_owned()], ..ServerConfig::default() };
        let shown = format!("{config:?}");
        assert!(!shown.contains("sesame") && shown.contains("num_api_keys: 2"), "{shown}");
    }
}
