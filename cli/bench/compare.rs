//! `pagoda bench MODEL --compare KIND,KIND`: one model on several kinds of backend, one after another in one run, and how many times faster
//! each is than the first. Every kind is measured as the server uses it: through `InferenceBackend`.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pagoda_backends::config::Config;
use pagoda_backends::registry::BackendKind;
use pagoda_backends::{InferenceBackend, factory};
use serde_json::json;

use super::figures::Figures;
use super::measure::{self, Target};
use super::report::Report;
use super::workload::{Arrival, Prompts, Workload};
use super::{RunArguments, warm_ups};
use crate::cli::progress::Progress;
use crate::cli::{context, models};

/// One kind's figures, a workload each.
type Measured = (BackendKind, Vec<Figures>);

/// Loads and measures the model on each kind of `names`.
///
/// # Errors
/// A kind that runs no files, or one that does not run this model.
pub fn run(arguments: &RunArguments, names: &[String], config: &Config, workloads: &[Workload]) -> Result<()> {
    let kinds = names.iter().map(|name| kind(name)).collect::<Result<Vec<_>>>()?;
    ensure!(workloads.iter().all(|workload| !workload.is_json), "--compare: json64 is for the engine alone");
    let target = models::target_for(config, arguments.model.as_deref())?;
    let mut progress = Progress::new();
    let located = target.locate(&context::hub()?, &mut progress)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = Report::new(arguments.format, Figures::HEADER);
    let mut measured: Vec<Measured> = Vec::new();
    for kind in kinds {
        let loaded = factory::create(kind, &located.path, target.entry.as_ref(), config, &mut |_| {});
        let backend = loaded.with_context(|| format!("--compare: {}", kind.as_str()))?;
        let figures = runtime.block_on(measure_kind(arguments, kind, &backend, workloads, &mut report))?;
        // The next kind gets the whole machine.
        backend.unload();
        measured.push((kind, figures));
    }
    let table = ratios(&measured, workloads);
    for (kind, workload, ratio) in &table {
        report.line(&json!({ "label": format!("ratio-{}-{}", kind.as_str(), workload), "ratio": (ratio * 100.0).round() / 100.0 }), "")?;
    }
    let lines: Vec<String> =
        table.iter().map(|(kind, workload, ratio)| format!("{:<25} {ratio:.2}x", format!("{}-{workload}", kind.as_str()))).collect();
    report.end(&format!("{}, out tok/s against {}", located.name, measured[0].0.as_str()), &lines.join("\n"))
}

fn kind(name: &str) -> Result<BackendKind> {
    let local = BackendKind::parse(name).filter(|kind| !factory::is_remote(*kind));
    local.with_context(|| format!("--compare: `{name}`: expected some of huggingface, vllm_local"))
}

async fn measure_kind(
    arguments: &RunArguments,
    kind: BackendKind,
    backend: &Arc<dyn InferenceBackend>,
    workloads: &[Workload],
    report: &mut Report,
) -> Result<Vec<Figures>> {
    let vocab = (0..u32::MAX).find(|id| backend.token_str(*id).is_none()).unwrap_or(0);
    ensure!(vocab > 0, "{} has an empty vocabulary", kind.as_str());
    let mut prompts = Prompts::of_vocab(arguments.seed, vocab);
    let target = Target::Backend(backend.clone());
    for workload in warm_ups(workloads) {
        // One request at a time gains nothing from a full batch of them.
        let requests = workload.requests.min(2);
        measure::run(&target, &Workload { requests, ..workload }, Arrival::Together, &mut prompts).await?;
    }
    let mut figures = Vec::with_capacity(workloads.len());
    for workload in workloads {
        let label = format!("{}-{}", kind.as_str(), workload.name);
        let mut runs = Vec::with_capacity(arguments.repeat);
        for _ in 0..arguments.repeat.max(1) {
            runs.push(measure::run(&target, workload, Arrival::Together, &mut prompts).await.with_context(|| label.clone())?);
        }
        let of_workload = Figures::new(*workload, runs);
        report.line(&of_workload.json(&label), &of_workload.row(&label))?;
        figures.push(of_workload);
    }
    Ok(figures)
}

/// Output rates of every kind and workload in units of the first kind's.
fn ratios(measured: &[Measured], workloads: &[Workload]) -> Vec<(BackendKind, &'static str, f64)> {
    let Some((_, first)) = measured.first() else { return Vec::new() };
    let of_kind = |(kind, figures): &Measured| {
        let pairs = figures.iter().zip(first).zip(workloads);
        pairs.map(|((figures, first), workload)| (*kind, workload.name, figures.out_tok_s() / first.out_tok_s())).collect::<Vec<_>>()
    };
    measured.iter().flat_map(of_kind).collect()
}
