//! `pagoda estimate MODEL`: weights, KV cache, context and concurrency of a model on this machine, from headers alone; of a model that pools,
//! its weights, its longest text and what a batch takes.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use pagoda_backends::config::Config;
use pagoda_backends::factory::{self, Plan};
use pagoda_engine::memory_plan::MemoryPlan;
use pagoda_engine::models::config::ModelConfig;
use pagoda_engine::pooling::{PoolingKind, PoolingPlan};
use pagoda_engine::weights::checkpoint::Checkpoint;

use super::flags::Flags;
use super::{context, models, terminal};

/// Context lengths whose concurrency is shown, where the model has them.
const CONTEXTS: [usize; 6] = [1024, 4096, 8192, 16_384, 32_768, 131_072];

/// Arguments of `pagoda estimate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folder, .gguf file, hub id or alias; none: the default model
    model: Option<String>,
    #[command(flatten)]
    flags: Flags<false>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, file: Option<&Path>) -> Result<()> {
    let config = context::quiet_config(&arguments.flags.values, file)?;
    let target = models::target_for(&config, arguments.model.as_deref())?;
    let path = target.find(&context::hub()?)?.context("the model is not on this machine yet; `pagoda pull` fetches it")?;
    let options = factory::options_for(target.entry.as_ref(), &config);
    let plan = factory::plan(&path, target.entry.as_ref(), &config, &options)?;
    let text = match &plan {
        Plan::Generates(plan) => generating(&path, &config, &plan.0, &plan.1)?,
        Plan::Pools(plan) => pooling(&path, plan),
    };
    terminal::print(&text)?;
    Ok(())
}

fn pooling(path: &Path, plan: &PoolingPlan) -> String {
    let kind = if plan.kind == PoolingKind::Embedding { "embeddings" } else { "reranker" };
    let head = format!("model        {}\nfamily       {}, {} layers, {kind}\n", path.display(), plan.family, plan.num_layers);
    format!("{head}{plan}\n")
}

fn generating(path: &Path, config: &Config, shape: &ModelConfig, plan: &MemoryPlan) -> Result<String> {
    let checkpoint = Checkpoint::open(path)?;
    let stored = checkpoint.quantization().map_or("as stored", |quantization| quantization.method.name());
    let stored = config.native.quantization.as_deref().unwrap_or(stored);
    let mut text = String::new();
    writeln!(text, "model        {}", path.display())?;
    writeln!(text, "family       {}, {} layers, context {}", shape.family, shape.layers.len(), shape.max_position_embeddings)?;
    let values = checkpoint.weight_values();
    let bits = plan.weight_bytes as f64 * 8.0 / values.max(1) as f64;
    writeln!(text, "parameters   {:>10.3} B, {stored}, {bits:.2} bits each", values as f64 / 1e9)?;
    writeln!(text, "{plan}")?;
    write!(text, "{}", concurrency(plan))?;
    Ok(text)
}

/// Sequences that the pool holds at once, by their length.
fn concurrency(plan: &MemoryPlan) -> String {
    let lengths = CONTEXTS.into_iter().filter(|len| *len < plan.max_model_len).chain([plan.max_model_len]);
    let line = |len: usize| {
        let sequences = plan.num_blocks / len.div_ceil(plan.block_size);
        format!("concurrency  {sequences:>10} sequences of {len} tokens, {} run at once\n", sequences.min(plan.step.max_num_seqs))
    };
    lengths.map(line).collect()
}
