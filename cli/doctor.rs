//! `pagoda doctor [MODEL]`: this machine, the cache, the configuration with where each value came from, and what would run.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, bail};
use pagoda::hub::Hub;
use pagoda_backends::config::Config;
use pagoda_backends::factory::{self, Plan};
use pagoda_backends::pool::local::{LocalModel, budget_bytes, pooled_options};
use pagoda_backends::registry::BackendKind;
use pagoda_backends::settings::Origin;
use pagoda_engine::loader::{self, EngineOptions};
use pagoda_engine::pooling::{self, PoolingKind, Sequence};
use pagoda_engine::request::{Event, Request};
use pagoda_engine::sampling::SamplingParams;

use super::flags::Flags;
use super::models::Target;
use super::terminal::bytes;
use super::{context, machine, models, remote, terminal};

/// Arguments of `pagoda doctor`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Model whose memory plan to show
    model: Option<String>,
    /// Load the model too, and show what was really taken of the device's memory
    #[arg(long)]
    load: bool,
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
    backend_section(&mut text, &hub, &config, arguments)?;
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
    gpu_lines(text)?;
    let kernels = if pagoda_kernels::available() { "built in" } else { "not built in (no nvcc when pagoda was built)" };
    writeln!(text, "  cuda      kernels {kernels}")?;
    Ok(())
}

/// What the CUDA driver says; without one, what the kernel's driver shows.
fn gpu_lines(text: &mut String) -> Result<()> {
    match (pagoda_kernels::probe(), machine::gpus().as_slice()) {
        (Err(error), _) => writeln!(text, "  gpu       {error}")?,
        (Ok(gpus), []) if gpus.is_empty() => writeln!(text, "  gpu       none")?,
        (Ok(gpus), names) if gpus.is_empty() => writeln!(text, "  gpu       {}; no CUDA driver that shows it", names.join(", "))?,
        (Ok(gpus), _) => {
            for gpu in gpus {
                let ((major, minor), cuda) = (gpu.compute_capability, gpu.driver_version);
                let memory = bytes(gpu.memory_bytes as u64);
                writeln!(text, "  gpu       {}, {memory}, compute capability {major}.{minor}", gpu.name)?;
                writeln!(text, "  driver    for CUDA {}.{}", cuda / 1000, cuda % 1000 / 10)?;
            }
        }
    }
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
        writeln!(
            text,
            "  model {}: {}, {:?}",
            model.name,
            model.model_type.map_or("type by its files", |kind| kind.as_str()),
            model.source
        )?;
    }
    Ok(())
}

/// Which kind of backend would run each model, and where the memory of each would go.
fn backend_section(text: &mut String, hub: &Hub, config: &Config, arguments: &Arguments) -> Result<()> {
    writeln!(text, "\nbackend")?;
    let targets = models::targets(config, arguments.model.as_deref())?;
    let pool = pooled_models(&targets, hub, config)?;
    for target in &targets {
        if let Some(entry) = target.entry.as_ref().filter(|_| targets.len() > 1) {
            writeln!(text, "  {}", entry.name)?;
        }
        target_lines(text, hub, config, (target, &pool, arguments.load))?;
    }
    if targets.len() > 1 {
        let when = if config.native.load_at_start { "as many as fit at the start" } else { "each at its first request" };
        writeln!(text, "  together  {} for {} models, loaded {when}", bytes(budget_bytes(config)? as u64), targets.len())?;
    }
    Ok(())
}

/// Models that share their memory, as far as they are on this machine; none where only one is configured.
fn pooled_models(targets: &[Target], hub: &Hub, config: &Config) -> Result<Vec<LocalModel>> {
    let mut models = Vec::new();
    for target in targets.iter().filter(|target| targets.len() > 1 && !factory::is_remote(target.kind)) {
        let Some(path) = target.find(hub)? else { continue };
        if target.settled(config, &path)?.kind == BackendKind::VllmLocal {
            models.push(LocalModel { name: String::new(), path, entry: target.entry.clone() });
        }
    }
    Ok(models)
}

/// `pool`: the models that share the memory.
fn target_lines(text: &mut String, hub: &Hub, config: &Config, (target, pool, load): (&Target, &[LocalModel], bool)) -> Result<()> {
    let path = if factory::is_remote(target.kind) { None } else { target.find(hub)? };
    let settled = path.as_ref().map(|path| target.settled(config, path)).transpose()?;
    let target = settled.as_ref().unwrap_or(target);
    writeln!(text, "  kind      {} ({})", target.kind.as_str(), target.reason)?;
    if factory::is_remote(target.kind) {
        return remote::doctor_lines(text, target.kind, config);
    }
    let Some(path) = path else {
        writeln!(text, "  model     not on this machine yet; `pagoda pull` fetches it")?;
        return Ok(());
    };
    writeln!(text, "  model     {}", path.display())?;
    if target.kind == BackendKind::HuggingFace {
        return huggingface_lines(text, config, (target, path.as_path()), load);
    }
    let options = match pool.iter().position(|model| model.path == path && model.entry == target.entry) {
        Some(idx) => pooled_options(pool, idx, config)?,
        None => factory::options_for(target.entry.as_ref(), config),
    };
    let plan = factory::plan(&path, target.entry.as_ref(), config, &options)?;
    let lines = match &plan {
        Plan::Generates(plan) => {
            let (shape, plan) = &**plan;
            writeln!(text, "  family    {}, {} layers, context {}", shape.family, shape.layers.len(), shape.max_position_embeddings)?;
            plan.to_string()
        }
        Plan::Pools(plan) => {
            writeln!(text, "  family    {}, {} layers", plan.family, plan.num_layers)?;
            plan.to_string()
        }
    };
    for line in lines.lines() {
        writeln!(text, "  {line}")?;
    }
    match plan {
        _ if !load => Ok(()),
        Plan::Generates(_) => taken_by_engine(text, &path, &options),
        Plan::Pools(plan) => taken_by_pooling(text, &path, plan.kind, &options),
    }
}

/// Loads, runs the shortest text, and holds what was taken against the plan.
fn taken_by_pooling(text: &mut String, path: &Path, kind: PoolingKind, options: &EngineOptions) -> Result<()> {
    let model = pooling::load(path, Some(kind), options, &mut |_| {})?;
    model.handle.run_blocking(vec![Sequence { ids: vec![0], token_types: Vec::new() }])?;
    taken_line(text, model.memory.taken_bytes(), model.description.plan.total_bytes())
}

/// Where the worker is; with `load`, what it says of the model.
fn huggingface_lines(text: &mut String, config: &Config, (target, path): (&Target, &Path), load: bool) -> Result<()> {
    let settings = factory::huggingface_settings(target.entry.as_ref(), config);
    let worker = settings.worker_program();
    let presence = if worker.is_file() { "" } else { " (not there: build it, docs/backends.md)" };
    writeln!(text, "  worker    {}{presence}", worker.display())?;
    if load {
        let backend = factory::load_huggingface(path, &settings, &mut |_| {})?;
        let loaded = backend.loaded();
        let (weights, resident) = (bytes(loaded.weight_bytes as u64), bytes(loaded.resident_bytes as u64));
        writeln!(text, "  family    {}, context {}, on {}", loaded.family, loaded.max_len, loaded.device)?;
        writeln!(text, "  memory    weights {weights}, the worker holds {resident}")?;
    }
    Ok(())
}

/// Loads, makes one token, and holds what was taken against the plan.
fn taken_by_engine(text: &mut String, path: &Path, options: &EngineOptions) -> Result<()> {
    let model = loader::load(path, options, &mut |_| {})?;
    let sampling = SamplingParams { max_tokens: 1, ..SamplingParams::default() };
    let mut stream = model.handle.submit(Request { prompt: vec![0], sampling, priority: 0, cache_salt: 0 })?;
    while let Some(event) = stream.next_blocking() {
        if let Event::Failed { message, .. } | Event::Refused { message } = event {
            bail!(message);
        }
    }
    taken_line(text, model.memory.taken_bytes(), model.plan.total_bytes())
}

fn taken_line(text: &mut String, taken: Option<usize>, planned: usize) -> Result<()> {
    match taken {
        Some(taken) => {
            let share = taken as f64 / planned as f64 * 100.0;
            writeln!(text, "  taken        {:>10.1} MiB, {share:.1} % of the plan", taken as f64 / (1 << 20) as f64)?;
        }
        None => writeln!(text, "  taken        not counted: a CPU maps weights and takes the rest as it is used")?,
    }
    Ok(())
}
