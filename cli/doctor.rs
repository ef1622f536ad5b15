//! `pagoda doctor [MODEL]`: this machine, the cache, the configuration with where each value came from, and what would run.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use pagoda::hub::Hub;
use pagoda_backends::config::Config;
use pagoda_backends::factory;
use pagoda_backends::settings::Origin;

use super::flags::Flags;
use super::terminal::bytes;
use super::{context, machine, models, terminal};

/// Arguments of `pagoda doctor`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Model whose memory plan to show
    model: Option<String>,
    #[command(flatten)]
    flags: Flags<true>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, file: Option<&Path>) -> Result<()> {
    let config = context::quiet_config(&arguments.flags.values, file)?;
    let hub = context::hub()?;
    let mut text = String::new();
    machine_section(&mut text)?;
    cache_section(&mut text, &hub)?;
    config_section(&mut text, &config, file)?;
    backend_section(&mut text, &hub, &config, arguments.model.as_deref())?;
    terminal::print(&text)?;
    Ok(())
}

fn machine_section(text: &mut String) -> Result<()> {
    writeln!(text, "machine")?;
    writeln!(text, "  pagoda    {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(text, "  cpu       {}, {} cores, {}", machine::cpu_name(), machine::cores(), machine::cpu_features().join(" "))?;
    match machine::memory() {
        Some((total, available)) => writeln!(text, "  memory    {} of {} available", bytes(available), bytes(total))?,
        None => writeln!(text, "  memory    unknown on this system")?,
    }
    match machine::gpus().as_slice() {
        [] => writeln!(text, "  gpu       none")?,
        gpus => writeln!(text, "  gpu       {}", gpus.join(", "))?,
    }
    let kernels = if pagoda_kernels::available() { "built in" } else { "not built in (no nvcc when pagoda was built)" };
    writeln!(text, "  cuda      kernels {kernels}")?;
    Ok(())
}

fn cache_section(text: &mut String, hub: &Hub) -> Result<()> {
    writeln!(text, "\nmodels")?;
    writeln!(text, "  cache     {}", hub.cache.display())?;
    if let Some(path) = &hub.hf_cache {
        writeln!(text, "  hf cache  {}", path.display())?;
    }
    writeln!(text, "  hub       {}{}", hub.endpoint, if hub.offline { " (offline)" } else { "" })?;
    for model in hub.list() {
        writeln!(text, "  - {} ({}), from {}: {}", model.name, bytes(model.bytes), model.from, model.path.display())?;
    }
    Ok(())
}

fn config_section(text: &mut String, config: &Config, file: Option<&Path>) -> Result<()> {
    writeln!(text, "\nconfiguration (file: {})", file.map_or_else(|| "none".into(), |path| path.display().to_string()))?;
    for setting in &config.settings {
        let origin = if setting.origin == Origin::Default { String::new() } else { format!("  <- {}", setting.origin) };
        writeln!(text, "  {:<24} {}{origin}", setting.spec.key, setting.shown())?;
    }
    for model in &config.models {
        writeln!(text, "  model {}: {:?}, {:?}", model.name, model.model_type, model.source)?;
    }
    Ok(())
}

/// Which kind of backend would run, and where the model's memory would go.
fn backend_section(text: &mut String, hub: &Hub, config: &Config, model: Option<&str>) -> Result<()> {
    writeln!(text, "\nbackend")?;
    let target = models::target_for(config, model)?;
    writeln!(text, "  kind      {} ({})", target.kind.as_str(), target.reason)?;
    let Some(path) = target.find(hub)? else {
        writeln!(text, "  model     not on this machine yet; `pagoda pull` fetches it")?;
        return Ok(());
    };
    writeln!(text, "  model     {}", path.display())?;
    let (shape, plan) = factory::plan(&path, target.entry.as_ref(), config)?;
    writeln!(text, "  family    {}, {} layers, context {}", shape.family, shape.layers.len(), shape.max_position_embeddings)?;
    for line in plan.to_string().lines() {
        writeln!(text, "  {line}")?;
    }
    Ok(())
}
