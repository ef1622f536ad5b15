//! Serves a backend without a model, which echoes the last message: to try clients against the wire format.
//!
//! `cargo run -p pagoda-server --example scripted -- [PORT] [API_KEY]`

use std::io::Write;
use std::sync::Arc;

use pagoda_server::{ModelSource, ServedModel, ServerConfig};

#[allow(dead_code, reason = "only the echo is used here")]
#[path = "../tests/wire/scripted.rs"]
mod scripted;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().map_or(Ok(8000), |port| port.parse())?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let model = ServedModel {
        name: "scripted".into(),
        aliases: Vec::new(),
        backend: Arc::new(scripted::Scripted::default()),
        created: 1_704_067_200,
    };
    let config = ServerConfig { api_keys: arguments.collect(), ..ServerConfig::default() };
    writeln!(std::io::stdout(), "serving `scripted` on http://{}", listener.local_addr()?)?;
    let shutdown = async {
        // Without a signal handler the server runs until it is killed.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    Ok(pagoda_server::run(listener, config, ModelSource::ready(vec![model]), shutdown).await?)
}
