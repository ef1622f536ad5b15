//! `pagoda bench [MODEL]`: named workloads against the embedded engine, no HTTP. One JSON line each on stdout, a table on stderr.

mod measure;
mod workload;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use pagoda_backends::factory;
use pagoda_backends::registry::BackendKind;
use pagoda_engine::loader::{self, LoadProgress, LoadedModel};
use serde_json::json;

use super::{context, flags::Flags, models, progress::Progress, terminal};
use measure::Figures;
use pagoda::hub::Report;
use workload::{Prompts, WORKLOADS, Workload};

/// Arguments of `pagoda bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folder, .gguf file, hub id or alias; none: the default model
    model: Option<String>,
    /// Comma-separated: c1, c8, c64, c512, prefill, prefix, long
    #[arg(long, value_name = "NAMES", default_value = "c1,c8", value_delimiter = ',')]
    workloads: Vec<String>,
    /// Begins each line's label
    #[arg(long, value_name = "TEXT", default_value = "pagoda")]
    label: String,
    /// Multiplies prompt and output lengths
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    scale: f64,
    /// Requests of each workload, instead of its own number
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
    /// Prompt tokens of each request, instead of the workload's
    #[arg(long, value_name = "N")]
    input_len: Option<usize>,
    /// Output tokens of each request, instead of the workload's
    #[arg(long, value_name = "N")]
    output_len: Option<usize>,
    /// Runs of each workload
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: usize,
    /// Seed of the random prompts
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    flags: Flags<false>,
}

/// Runs the command; `started` is when the process started.
pub fn run(arguments: &Arguments, file: Option<&Path>, started: Instant) -> Result<()> {
    let config = context::quiet_config(&arguments.flags.values, file)?;
    let workloads = workloads(arguments)?;
    let target = models::target_for(&config, arguments.model.as_deref())?;
    ensure!(target.kind == BackendKind::VllmLocal, "--backend: `{}`: bench measures vllm_local", target.kind.as_str());
    let mut progress = Progress::new();
    let located = target.locate(&context::hub()?, &mut progress)?;
    let mut options = factory::options_for(target.entry.as_ref(), &config);
    options.max_waiting = options.max_waiting.max(workloads.iter().map(|workload| workload.requests).max().unwrap_or(1));
    let mut is_first = true;
    let model = loader::load(&located.path, &options, &mut |load: LoadProgress| {
        if std::mem::take(&mut is_first) {
            progress.start(&format!("loading {}", located.name), Some(load.total_bytes as u64));
        }
        progress.advance(load.done_bytes as u64);
    })?;
    progress.finish();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure_all(arguments, &workloads, &model, started))
}

fn workloads(arguments: &Arguments) -> Result<Vec<Workload>> {
    ensure!(arguments.scale > 0.0 && arguments.scale.is_finite(), "--scale: `{}`: expected a number above 0", arguments.scale);
    let mut chosen = Vec::with_capacity(arguments.workloads.len());
    for name in &arguments.workloads {
        let known = || WORKLOADS.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
        let workload = WORKLOADS.iter().find(|workload| workload.name == name);
        let workload = workload.with_context(|| format!("--workloads: `{name}`: expected some of {}", known()))?;
        let workload = workload.scaled(arguments.scale).with(arguments.requests, arguments.input_len, arguments.output_len);
        ensure!(
            workload.requests > 0 && workload.input_len > 0 && workload.output_len > 0,
            "--requests, --input-len and --output-len must be at least 1"
        );
        chosen.push(workload);
    }
    Ok(chosen)
}

async fn measure_all(arguments: &Arguments, workloads: &[Workload], model: &LoadedModel, started: Instant) -> Result<()> {
    let mut prompts = Prompts::new(arguments.seed, model)?;
    // The first token ever, then a short run that touches every path.
    measure::run(&model.handle, &Workload::plain("start", 1, 16, 1), &mut prompts).await?;
    let start_s = started.elapsed().as_secs_f64();
    measure::run(&model.handle, &Workload::plain("warm-up", 4, 64, 16), &mut prompts).await?;
    let mut table = String::from(Figures::HEADER);
    for workload in workloads {
        for _ in 0..arguments.repeat.max(1) {
            let label = format!("{}-{}", arguments.label, workload.name);
            let figures = measure::run(&model.handle, workload, &mut prompts).await.with_context(|| label.clone())?;
            terminal::print(&format!("{}\n", figures.json(&label, workload)))?;
            table.push_str(&figures.row(&label, workload));
        }
    }
    let start = json!({ "label": format!("{}-start", arguments.label), "s": (start_s * 1e3).round() / 1e3 });
    terminal::print(&format!("{start}\n"))?;
    terminal::note(&format!("\n{} on {}\n{table}start {start_s:.2} s", model.config.family, model.device));
    Ok(())
}
