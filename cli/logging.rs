//! Logs: tracing to stderr, as text or JSON lines.

use std::io::IsTerminal;

use anyhow::{Result, anyhow};
use tracing_subscriber::EnvFilter;

/// Starts logging with a level or filter.
///
/// # Errors
/// A filter that cannot be parsed.
pub fn start(filter: &str, json: bool) -> Result<()> {
    let parsed = EnvFilter::try_new(filter).map_err(|_| {
        anyhow!("--log-level: `{filter}`: expected error, warn, info, debug, trace or a filter such as pagoda_server=debug,info")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    // A second start (tests) keeps the first subscriber.
    let _ = match json {
        true => builder.json().try_init(),
        false => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).compact().try_init(),
    };
    Ok(())
}
