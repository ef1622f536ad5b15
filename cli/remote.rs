//! Models that run elsewhere: which of them a command serves, and what `pagoda doctor` says about the service.

use std::fmt::Write as _;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Result;
use pagoda_backends::config::Config;
use pagoda_backends::factory;
use pagoda_backends::registry::BackendKind;
use pagoda_backends::remote::serving::{ServedRemote, Wanted};
use pagoda_backends::remote::{RemoteService, RemoteSettings, RetryPolicy};
use tokio::runtime::Handle;

/// How long `pagoda doctor` waits for a service.
const DOCTOR_PATIENCE: Duration = Duration::from_secs(5);
/// Models that `pagoda doctor` names.
const MAX_NAMED: usize = 8;

/// The models that a remote kind serves.
pub fn load(kind: BackendKind, wanted: Wanted<'_>, config: &Config) -> Result<Vec<ServedRemote>> {
    Ok(wait_for(factory::remote_models(kind, wanted, config))??)
}

/// Waits on a thread that may: in a runtime's blocking pool, or without any runtime.
fn wait_for<T>(work: impl Future<Output = T>) -> Result<T> {
    match Handle::try_current() {
        Ok(handle) => Ok(handle.block_on(work)),
        Err(_) => Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)),
    }
}

/// Where the service is, whether it answers, and what it lists.
pub fn doctor_lines(text: &mut String, kind: BackendKind, config: &Config) -> Result<()> {
    let settings = factory::remote_settings(kind, config)?;
    let settings = RemoteSettings {
        timeout: settings.timeout.min(DOCTOR_PATIENCE),
        policy: RetryPolicy { max_retries: 0, ..RetryPolicy::default() },
        ..settings
    };
    writeln!(text, "  service   {}", settings.url)?;
    let service = RemoteService::new(&settings)?;
    let started = Instant::now();
    match wait_for(service.models())? {
        Ok(models) => {
            writeln!(text, "  answers   in {:.0} ms, {} models", started.elapsed().as_secs_f64() * 1e3, models.len())?;
            for model in models.iter().take(MAX_NAMED) {
                let window = model.max_model_len.map_or_else(|| "not told".into(), |window| window.to_string());
                writeln!(text, "  - {}, context {window}", model.id)?;
            }
            if models.len() > MAX_NAMED {
                writeln!(text, "  - and {} more", models.len() - MAX_NAMED)?;
            }
        }
        Err(error) => writeln!(text, "  answers   no: {error}")?,
    }
    Ok(())
}
