//! `pagoda bench kernels`: times single operations of a device over the shapes of known models, through `trait Device` alone.
//!
//! Inputs are random and rotate through copies larger than the caches. On a GPU the operations of one pass are recorded once and replayed,
//! as the engine does it in a step.

mod cases;
mod inputs;
mod limits;
mod shapes;
mod timer;

use anyhow::{Context as _, Result, ensure};
use pagoda_engine::device::Device;
use pagoda_engine::device::cpu::CpuDevice;
use pagoda_engine::device::cuda::CudaDevice;
use serde_json::json;

use super::report::{Format, Report};
use cases::{Bench, Case, OPS};
use limits::Limits;
use shapes::{ModelShape, SHAPES};

/// Arguments of `pagoda bench kernels`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Comma-separated: 0.5b, 1.5b, 3b, 7b, 14b, 32b, llama-8b, tiny
    #[arg(long, value_name = "NAMES", default_value = "0.5b,7b", value_delimiter = ',')]
    models: Vec<String>,
    /// Comma-separated: linear, linear_nf4, linear_fp8, linear_q8_0, linear_q4_k, linear_q5_k, linear_q6_k,
    /// rms_norm, rope_kv, activation, decode, decode_fp8, prefill, prefill_fp8, greedy, sample
    #[arg(
        long,
        value_name = "NAMES",
        default_value = "linear,rms_norm,rope_kv,activation,decode,prefill,greedy,sample",
        value_delimiter = ','
    )]
    ops: Vec<String>,
    /// Tokens of a step, for the operations on rows
    #[arg(long, value_name = "NUMBERS", default_value = "1,8,16,32,64,256,512,2048,8192", value_delimiter = ',')]
    tokens: Vec<usize>,
    /// Sequences x context of attention over a cache
    #[arg(long, value_name = "PAIRS", default_value = "1x1024,8x1024,64x1024,256x1024,16x16384", value_delimiter = ',')]
    contexts: Vec<String>,
    /// What computes: auto, cpu or cuda
    #[arg(long, value_name = "WORD", default_value = "auto", value_parser = ["auto", "cpu", "cuda"])]
    device: String,
    /// CPU threads; unset: all cores
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Kernels, tiles and splits that do not depend on the batch
    #[arg(long)]
    deterministic: bool,
    /// Milliseconds spent on each figure, about
    #[arg(long, value_name = "N", default_value_t = 20.0)]
    ms: f64,
    /// Begins each line's label
    #[arg(long, value_name = "TEXT", default_value = "kernels")]
    label: String,
    /// json: lines on stdout; table: a table there; both: the table on stderr
    #[arg(long, value_enum, default_value_t = Format::Both)]
    format: Format,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let chosen = Chosen::new(arguments)?;
    let is_cuda = match arguments.device.as_str() {
        "cpu" => false,
        "cuda" => true,
        _ => !CudaDevice::available().is_empty(),
    };
    if !is_cuda {
        let device = CpuDevice::new(arguments.threads)?;
        let limits = Limits::measure_cpu(device.threads(), arguments.ms);
        return measure(&device, limits, arguments, &chosen);
    }
    let device = CudaDevice::new(0)?;
    let device = if arguments.deterministic { device.deterministic() } else { device };
    let limits = Limits::measure_gpu(&device, arguments.ms)?;
    measure(&device, limits, arguments, &chosen)
}

/// Arguments, checked.
struct Chosen {
    models: Vec<ModelShape>,
    contexts: Vec<(usize, usize)>,
}

impl Chosen {
    fn new(arguments: &Arguments) -> Result<Chosen> {
        let known = |names: Vec<&str>| names.join(", ");
        let mut models = Vec::new();
        for name in &arguments.models {
            let shape = SHAPES.iter().find(|shape| shape.name == name);
            let names = || known(SHAPES.iter().map(|shape| shape.name).collect());
            models.push(*shape.with_context(|| format!("--models: `{name}`: expected some of {}", names()))?);
        }
        for op in &arguments.ops {
            ensure!(OPS.contains(&op.as_str()), "--ops: `{op}`: expected some of {}", known(OPS.to_vec()));
        }
        ensure!(arguments.tokens.iter().all(|tokens| (1..=65_536).contains(tokens)), "--tokens: expected numbers from 1 to 65536");
        ensure!(arguments.ms > 0.0 && arguments.ms.is_finite(), "--ms: expected a number above 0");
        let mut contexts = Vec::new();
        for pair in &arguments.contexts {
            let parts = pair.split_once('x').and_then(|(seqs, len)| Some((seqs.parse().ok()?, len.parse().ok()?)));
            let (seqs, len): (usize, usize) = parts.with_context(|| format!("--contexts: `{pair}`: expected SEQUENCESxCONTEXT"))?;
            ensure!(seqs > 0 && len > 0 && seqs * len <= 1 << 22, "--contexts: `{pair}`: expected 1 to 4194304 tokens in all");
            contexts.push((seqs, len));
        }
        Ok(Chosen { models, contexts })
    }
}

fn measure<D: Device>(device: &D, limits: Limits, arguments: &Arguments, chosen: &Chosen) -> Result<()> {
    const HEADER: &str = "model     op                   shape                    us       GB/s    TFLOP/s   share\n";
    let mut report = Report::new(arguments.format, HEADER);
    for model in &chosen.models {
        let bench = Bench { device, model: *model, tokens: &arguments.tokens, contexts: &chosen.contexts };
        for op in OPS.iter().filter(|op| arguments.ops.iter().any(|wanted| wanted == *op)) {
            bench.each_case(op, &mut |case: &mut Case<'_>| {
                let seconds = timer::time(device, arguments.ms / 1e3, case)?;
                line(&mut report, &limits, arguments, model.name, case, seconds)
            })?;
        }
    }
    report.end(&format!("{}: {}", device.name(), limits.words()), "")
}

fn line(report: &mut Report, limits: &Limits, arguments: &Arguments, model: &str, case: &Case<'_>, seconds: f64) -> Result<()> {
    let (gb_s, tflop_s) = (case.bytes / seconds / 1e9, case.flops / seconds / 1e12);
    let share = limits.share(gb_s, tflop_s);
    let round = |value: f64| (value * 1e3).round() / 1e3;
    let json = json!({
        "label": arguments.label, "model": model, "op": case.op, "shape": case.shape, "us": round(seconds * 1e6),
        "gb_s": round(gb_s), "tflop_s": round(tflop_s), "share": round(share),
    });
    let (us, share) = (seconds * 1e6, share * 100.0);
    report.line(&json, &format!("{model:<9} {:<20} {:<18} {us:>10.2} {gb_s:>10.1} {tflop_s:>10.2} {share:>6.1}%\n", case.op, case.shape))
}
