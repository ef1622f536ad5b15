//! `run`: accepts connections, serves each in a task of its own, and ends in order: stop accepting, let running requests finish, close.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::anthropic::batches::{self, Batches, NoBatches};
use crate::app::{self, App, Phase, SharedApp};
use crate::config::ServerConfig;
use crate::connection::{ClientSocket, NumBusy};
use crate::front;
use crate::model_source::ModelSource;

/// Open connections at most; further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 16_384;
/// Pause after a failed accept (no descriptors left, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time for connections to say goodbye after the last request ended or the drain timed out.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Why a server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An option is out of range.
    #[error("option {option}: {reason}")]
    Option {
        /// Name of the field of `ServerConfig`.
        option: &'static str,
        /// Value and allowed range.
        reason: String,
    },
    /// The folder of batches cannot be used.
    #[error("option batch_dir: {}: {source}", folder.display())]
    BatchDir {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The listener is not usable.
    #[error("listener: {0}")]
    Listener(#[from] io::Error),
}

/// Serves `models` on `listener` until `shutdown` completes and running requests have ended or `drain_timeout` has passed.
///
/// # Errors
/// A config out of range, or a listener that has no address. Errors of single connections end those connections only.
pub async fn run(
    listener: TcpListener,
    config: ServerConfig,
    models: ModelSource,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    check(&config)?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let batches = config.batch_dir.as_deref().map_or(Ok(Err(NoBatches::NoFolder)), open_batches)?;
    let app = Arc::new(App::new(config, models, batches));
    batches::resume(&app);
    let router = app::router(Arc::clone(&app));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, Arc::clone(&app), router.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    drain(&app, connections).await;
    Ok(())
}

fn open_batches(folder: &Path) -> Result<Result<Batches, NoBatches>, ServerError> {
    match Batches::open(folder) {
        Ok(batches) => Ok(Ok(batches)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let (folder, process) = (folder.display(), Batches::holder(folder));
            const MEND: &str = "end that server, or start this one with another --batch-dir";
            tracing::warn!(%folder, process, "another server keeps its message batches here: this one keeps none; {MEND}");
            Ok(Err(NoBatches::Taken))
        }
        Err(source) => Err(ServerError::BatchDir { folder: folder.to_owned(), source }),
    }
}

fn check(config: &ServerConfig) -> Result<(), ServerError> {
    let out_of_range = |option, reason: &str| Err(ServerError::Option { option, reason: reason.to_owned() });
    if config.max_body_bytes == 0 {
        return out_of_range("max_body_bytes", "0, expected at least 1");
    }
    if config.max_concurrent_requests == 0 {
        return out_of_range("max_concurrent_requests", "0, expected at least 1");
    }
    if config.ping_interval.is_zero() || config.ping_interval > Duration::from_secs(15) {
        return out_of_range("ping_interval", "expected more than 0 and at most 15 s");
    }
    if config.header_timeout.is_zero() {
        return out_of_range("header_timeout", "0, expected more than 0");
    }
    if config.api_keys.iter().any(|key| key.trim().is_empty()) {
        return out_of_range("api_keys", "an empty key, expected none or non-empty ones");
    }
    Ok(())
}

async fn drain(app: &App, mut connections: JoinSet<()>) {
    tracing::info!(num_requests = app.num_in_flight(), "draining");
    app.enter(Phase::Draining);
    if tokio::time::timeout(app.config.drain_timeout, app.idle()).await.is_err() {
        tracing::warn!(num_requests = app.num_in_flight(), "drain timed out");
    }
    app.enter(Phase::Stopping);
    let closed = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(CLOSE_TIME, closed).await;
    connections.shutdown().await;
}

async fn serve_connection(stream: TcpStream, app: SharedApp, router: Router) {
    let num_busy = NumBusy::default();
    let socket = TokioIo::new(ClientSocket::new(stream, Arc::clone(&num_busy)));
    let service = service_fn(|request| {
        let (app, router, in_flight) = (Arc::clone(&app), router.clone(), app.in_flight(&num_busy));
        async move { Ok::<_, Infallible>(front::answer(&app, router, in_flight, request).await) }
    });
    let connection =
        http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(app.config.header_timeout).serve_connection(socket, service);
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        () = app.stopping() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended early");
    }
}
