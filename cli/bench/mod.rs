//! `pagoda bench [MODEL]`: named workloads against the embedded engine, or with `--url` against a server; `pagoda bench kernels`: single
//! operations of a device. One JSON line each, and a table.

mod compare;
mod figures;
mod http;
mod kernels;
mod measure;
mod report;
mod soak;
mod workload;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use pagoda_backends::config::Config;
use pagoda_engine::loader::LoadedModel;
use serde_json::json;

use super::{context, flags::Flags, models};
use figures::Figures;
use http::HttpClient;
use measure::Target;
use report::{Format, Report};
use workload::{Arrival, Prompts, WORKLOADS, Workload};

/// Arguments of `pagoda bench`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(clap::Subcommand)]
enum What {
    /// Single operations over the shapes of known models, without any model file
    Kernels(kernels::Arguments),
}

#[derive(clap::Args)]
struct RunArguments {
    /// Folder, .gguf file, hub id or alias; none: the default model
    model: Option<String>,
    /// Comma-separated: c1, c8, c64, c512, prefill, prefix, long, json64
    #[arg(long, value_name = "NAMES", default_value = "c1,c8", value_delimiter = ',')]
    workloads: Vec<String>,
    /// Begins each line's label
    #[arg(long, value_name = "TEXT", default_value = "pagoda")]
    label: String,
    /// Multiplies prompt and output lengths
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    scale: f64,
    /// Requests of each workload, instead of its own number; clients of --soak
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
    /// Prompt tokens of each request, instead of the workload's
    #[arg(long, value_name = "N")]
    input_len: Option<usize>,
    /// Output tokens of each request, instead of the workload's
    #[arg(long, value_name = "N")]
    output_len: Option<usize>,
    /// Runs of each workload; the median one is shown, and how far they spread
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: usize,
    /// Requests a second on average, at random times (Poisson), instead of all at once
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Seed of the random prompts
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Measure a server over HTTP (http://host:port) instead of the embedded engine
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Measure the model on these kinds of backend, one after another: huggingface,vllm_local; shows how many times faster each is than the
    /// first
    #[arg(long, value_name = "KINDS", value_delimiter = ',', conflicts_with = "url")]
    compare: Vec<String>,
    /// With --url: name of the model; none: the first one served
    #[arg(long, value_name = "NAME", requires = "url")]
    served_model: Option<String>,
    /// With --url: prompts are drawn from token ids below this
    #[arg(long, value_name = "N", default_value_t = 32_000, requires = "url")]
    vocab: u32,
    /// With --url: key to send
    #[arg(long, value_name = "KEY", requires = "url")]
    key: Option<String>,
    /// With --url: mixed load with random aborts for so long, then check that nothing is left
    #[arg(long, value_name = "SECONDS", requires = "url")]
    soak: Option<f64>,
    /// json: lines on stdout; table: a table there; both: the table on stderr
    #[arg(long, value_enum, default_value_t = Format::Both)]
    format: Format,
    #[command(flatten)]
    flags: Flags<false>,
}

/// Runs the command; `started` is when the process started.
pub fn run(arguments: &Arguments, file: Option<&Path>, started: Instant) -> Result<()> {
    let run = match &arguments.what {
        Some(What::Kernels(kernels)) => return kernels::run(kernels),
        None => &arguments.run,
    };
    let config = context::quiet_config(&run.flags.values, file)?;
    let workloads = workloads(run)?;
    ensure!(run.rate.is_none_or(|rate| (1e-6..=1e9).contains(&rate)), "--rate: expected a number from 0.000001 to 1e9");
    ensure!(run.soak.is_none_or(|seconds| (0.0..=1e9).contains(&seconds)), "--soak: expected seconds from 0 to 1e9");
    if !run.compare.is_empty() {
        ensure!(run.rate.is_none(), "--rate: not with --compare");
        return compare::run(run, &run.compare, &config, &workloads);
    }
    match &run.url {
        Some(url) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(measure_server(run, url, &workloads))
        }
        None => {
            let model = load(run, &config, &workloads)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(measure_engine(run, &workloads, &model, started))
        }
    }
}

fn load(arguments: &RunArguments, config: &Config, workloads: &[Workload]) -> Result<LoadedModel> {
    let most_requests = workloads.iter().map(|workload| workload.requests).max().unwrap_or(1);
    models::load_engine(config, arguments.model.as_deref(), "bench", |options| options.max_waiting = options.max_waiting.max(most_requests))
}

fn workloads(arguments: &RunArguments) -> Result<Vec<Workload>> {
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

async fn measure_engine(arguments: &RunArguments, workloads: &[Workload], model: &LoadedModel, started: Instant) -> Result<()> {
    let mut prompts = Prompts::new(arguments.seed, model)?;
    let grammar = if workloads.iter().any(|workload| workload.is_json) { Some(measure::json_grammar(model)?) } else { None };
    let target = Target::Engine(model.handle.clone(), grammar);
    // The first token ever, then short runs of the same batches.
    measure::run(&target, &Workload::plain("start", 1, 16, 1), Arrival::Together, &mut prompts).await?;
    let start_s = started.elapsed().as_secs_f64();
    for workload in warm_ups(workloads) {
        measure::run(&target, &workload, Arrival::Together, &mut prompts).await?;
    }
    let mut report = Report::new(arguments.format, Figures::HEADER);
    measure_all(arguments, workloads, &target, &mut prompts, &mut report).await?;
    let label = |name: &str| format!("{}-{name}", arguments.label);
    if let Some(taken) = model.memory.taken_bytes() {
        let planned = model.plan.total_bytes();
        report.line(&json!({ "label": label("memory"), "planned_bytes": planned, "taken_bytes": taken }), "")?;
    }
    report.line(&json!({ "label": label("start"), "s": (start_s * 1e3).round() / 1e3 }), "")?;
    let plan = &model.plan.step;
    let size = format!("{} sequences, {} tokens a step", plan.max_num_seqs, plan.max_num_batched_tokens);
    report.end(&format!("{} on {}, {size}", model.config.family, model.device), &format!("start {start_s:.2} s"))
}

async fn measure_server(arguments: &RunArguments, url: &str, workloads: &[Workload]) -> Result<()> {
    let client = HttpClient::connect(url, arguments.served_model.as_deref(), arguments.key.as_deref()).await?;
    let mut prompts = Prompts::of_vocab(arguments.seed, arguments.vocab.max(1));
    let mut report = Report::new(arguments.format, Figures::HEADER);
    if let Some(seconds) = arguments.soak {
        let clients = arguments.requests.unwrap_or(64);
        let line = soak::run(&client, clients, seconds, &mut prompts, &arguments.label).await?;
        return report.line(&line, &format!("{line}\n")).and_then(|()| report.end(url, ""));
    }
    let target = Target::Http(client);
    for workload in warm_ups(workloads) {
        measure::run(&target, &workload, Arrival::Together, &mut prompts).await?;
    }
    measure_all(arguments, workloads, &target, &mut prompts, &mut report).await?;
    report.end(url, "")
}

async fn measure_all(
    arguments: &RunArguments,
    workloads: &[Workload],
    target: &Target,
    prompts: &mut Prompts,
    report: &mut Report,
) -> Result<()> {
    let arrival = arguments.rate.map_or(Arrival::Together, Arrival::Poisson);
    for workload in workloads {
        let label = format!("{}-{}", arguments.label, workload.name);
        let mut runs = Vec::with_capacity(arguments.repeat);
        for _ in 0..arguments.repeat.max(1) {
            runs.push(measure::run(target, workload, arrival, prompts).await.with_context(|| label.clone())?);
        }
        let figures = Figures::new(*workload, runs);
        report.line(&figures.json(&label), &figures.row(&label))?;
    }
    Ok(())
}

/// Prompt tokens of one warm-up at most.
const WARM_UP_TOKENS: usize = 32 << 10;

/// Short runs that touch every path before anything is measured: each workload's batch with short prompts, and its prompts in as many
/// requests as are quickly done.
fn warm_ups(workloads: &[Workload]) -> Vec<Workload> {
    let runs = workloads.iter().flat_map(|workload| {
        let (output, few) = (workload.output_len.min(8), (WARM_UP_TOKENS / workload.input_len).clamp(1, workload.requests));
        let batch = Workload::plain("warm-up", workload.requests, workload.input_len.min(16), output);
        let batch = Workload { is_json: workload.is_json, ..batch };
        [batch, Workload { requests: few, output_len: output, ..*workload }]
    });
    runs.collect()
}
