//! `pagoda serve [MODEL]`: opens the port, loads, serves until a signal, drains.

use std::future::Future;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pagoda_backends::ModelType;
use pagoda_backends::config::{Config, ServerOptions};
use pagoda_server::{CorsOrigins, ModelSource, ServedModel, ServerConfig};
use tokio::sync::oneshot;
use tracing::info;

use super::models::{self, Running, Target};
use super::{context, flags::Flags, machine, progress::Progress, terminal, try_out};

/// How often a served engine is asked whether it lives.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Arguments of `pagoda serve`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folder, .gguf file, hub id or alias; none: the configured models, else the default model
    model: Option<String>,
    /// Ask this when ready, show the answer, go on serving
    #[arg(long = "try", value_name = "QUESTION")]
    question: Option<String>,
    #[command(flatten)]
    flags: Flags<true>,
}

/// The engine died while serving: a new process may do better, which an exit code of its own tells whoever started this one.
#[derive(Debug, thiserror::Error)]
#[error("the engine ended: {0}")]
pub struct EngineEnded(String);

/// Runs the command.
pub fn run(arguments: &Arguments, file: Option<&Path>) -> Result<()> {
    let config = context::config(&arguments.flags.values, file)?;
    let targets = models::targets(&config, arguments.model.as_deref())?;
    ensure!(
        targets.len() == 1 || config.server.served_model_names.is_empty(),
        "--served-model-name: only for one model; the configuration has {} (their names and aliases are served)",
        targets.len()
    );
    let server = server_config(&config.server)?;
    let listener = bind(&config.server)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(http_threads()).enable_all().build()?;
    let outcome = runtime.block_on(serve(listener, server, targets, config, arguments.question.clone()));
    // A load cannot be interrupted; a signal does not wait for it.
    runtime.shutdown_background();
    outcome
}

/// Threads for connections: few, since a CPU device computes on all cores; some more where there are many.
fn http_threads() -> usize {
    (machine::cores() / 4).clamp(2, 8)
}

async fn serve(listener: TcpListener, server: ServerConfig, targets: Vec<Target>, config: Config, question: Option<String>) -> Result<()> {
    let address = listener.local_addr()?;
    let api_key = server.api_keys.first().cloned();
    let models = ModelSource::loading();
    let (stop, stopped) = oneshot::channel::<()>();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut http = tokio::spawn(pagoda_server::run(listener, server, models.clone(), async {
        // An error means that the sender is gone: stop as well.
        let _ = stopped.await;
    }));
    let names = config.server.served_model_names.clone();
    let mut loading = tokio::task::spawn_blocking(move || load(&targets, &config, &names));
    let mut signal = std::pin::pin!(signal());
    let running = tokio::select! {
        running = &mut loading => running.context("loading failed")??,
        () = &mut signal => return Ok(()),
        outcome = &mut http => return ended(outcome),
    };
    models.set_ready(running.iter().map(served).collect());
    ready(address, &running, api_key.is_some());
    if let Some(question) = question {
        ensure!(running[0].backend.model_type() == ModelType::CausalLm, "--try: `{}` generates no text", running[0].name);
        try_out::spawn(address, running[0].name.clone(), api_key, question);
    }
    let death = tokio::select! {
        () = &mut signal => None,
        reason = death(&running) => Some(reason),
        outcome = &mut http => return ended(outcome),
    };
    tokio::spawn(async {
        // Asked twice, it ends at once.
        self::signal().await;
        std::process::exit(1);
    });
    let _ = stop.send(());
    ended(http.await)?;
    match death {
        Some(reason) => bail!(EngineEnded(reason)),
        None => {
            info!("stopped");
            Ok(())
        }
    }
}

fn ended(outcome: Result<Result<(), pagoda_server::ServerError>, tokio::task::JoinError>) -> Result<()> {
    Ok(outcome.context("the server failed")??)
}

fn load(targets: &[Target], config: &Config, served_names: &[String]) -> Result<Vec<Running>> {
    let hub = context::hub()?;
    let mut progress = Progress::new();
    let mut running = models::load_all(targets, &hub, config, &mut progress)?;
    ensure!(
        running.len() == 1 || served_names.is_empty(),
        "--served-model-name: only for one model; the service lists {}: choose one with --vllm-remote-model or --remote-openai-model",
        running.len()
    );
    if let [only] = running.as_mut_slice()
        && let Some((first, rest)) = served_names.split_first()
    {
        only.name.clone_from(first);
        only.aliases.extend_from_slice(rest);
    }
    Ok(running)
}

fn served(running: &Running) -> ServedModel {
    ServedModel { name: running.name.clone(), aliases: running.aliases.clone(), backend: running.backend.clone(), created: running.created }
}

/// Waits for SIGTERM or SIGINT.
async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            }
            _ => std::future::pending().await,
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}

/// Waits until an engine is dead; says why.
fn death(running: &[Running]) -> impl Future<Output = String> {
    let backends: Vec<_> = running.iter().map(|running| running.backend.clone()).collect();
    async move {
        loop {
            if let Some(reason) = backends.iter().find_map(|backend| backend.health().err()) {
                return reason;
            }
            tokio::time::sleep(HEALTH_INTERVAL).await;
        }
    }
}

fn bind(options: &ServerOptions) -> Result<TcpListener> {
    let host = if options.host == "localhost" { "127.0.0.1" } else { &options.host };
    let address = SocketAddr::new(host.parse::<IpAddr>()?, options.port);
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => anyhow!("--port: {address} is in use; end the other server or choose another port"),
        ErrorKind::PermissionDenied => anyhow!("--port: {address} may not be opened by this user; choose a port above 1023"),
        ErrorKind::AddrNotAvailable => anyhow!("--host: {address} is no address of this machine"),
        _ => anyhow!("{address}: {error}"),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn server_config(options: &ServerOptions) -> Result<ServerConfig> {
    let mut api_keys = options.api_keys.clone();
    if let Some(path) = &options.api_key_file {
        let text = std::fs::read_to_string(path).map_err(|error| anyhow!("--api-key-file: {}: {error}", path.display()))?;
        let before = api_keys.len();
        api_keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_string));
        ensure!(api_keys.len() > before, "--api-key-file: {}: holds no key; expected one a line", path.display());
    }
    Ok(ServerConfig {
        api_keys,
        max_body_bytes: options.max_body_bytes,
        max_concurrent_requests: options.max_concurrent_requests,
        cors_origins: match options.cors_origins.as_slice() {
            [] => CorsOrigins::Any,
            origins => CorsOrigins::List(origins.to_vec()),
        },
        batch_dir: options.batch_dir.clone().or_else(default_batch_dir),
        drain_timeout: options.shutdown_timeout,
        version: env!("CARGO_PKG_VERSION").into(),
        ..ServerConfig::default()
    })
}

/// Where batches are kept unless the user says so; a cache that cannot be written is no reason not to serve.
fn default_batch_dir() -> Option<PathBuf> {
    let folder = context::hub().ok()?.cache.join("batches");
    std::fs::create_dir_all(&folder).ok().map(|()| folder)
}

/// A request that the model can answer: its route and body.
fn example(running: &Running) -> (&'static str, String) {
    let name = &running.name;
    match running.backend.model_type() {
        ModelType::CausalLm => {
            let messages = r#"[{"role":"user","content":"What is the capital of France?"}]"#;
            ("/v1/messages", format!(r#"{{"model":"{name}","max_tokens":100,"stream":true,"messages":{messages}}}"#))
        }
        ModelType::Embedding => ("/v1/embeddings", format!(r#"{{"model":"{name}","input":["The cat sits on the mat.","A dog barks."]}}"#)),
        ModelType::Reranker => {
            let documents = r#"["Paris is the capital of France.","Berlin is a city."]"#;
            ("/v1/rerank", format!(r#"{{"model":"{name}","query":"What is the capital of France?","documents":{documents}}}"#))
        }
    }
}

/// Says where the server is and what to try, on stdout.
fn ready(address: SocketAddr, running: &[Running], needs_key: bool) {
    let url = try_out::url(address);
    let names: Vec<&str> = running.iter().map(|running| running.name.as_str()).collect();
    let key = if needs_key { " -H \"x-api-key: $API_KEY\"" } else { "" };
    let (route, body) = example(&running[0]);
    // A server whose stdout is closed serves all the same.
    let _ = terminal::print(&format!(
        "serving {} at {url}\ntry it:\n\n  curl -N {url}{route} -H 'content-type: application/json'{key} -d '{body}'\n\n",
        names.join(", ")
    ));
}
