//! `pagoda eval ppl FILE [MODEL]`: perplexity of a text, to compare formats of one model.
//!
//! The tokens of the text are cut into windows without overlap. Every token of a window but the first (the first too where the tokeniser
//! puts a beginning-of-sequence token in front) counts with its logprob given those before it in its window.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use pagoda_engine::core::RequestStream;
use pagoda_engine::loader::LoadedModel;
use pagoda_engine::request::{Event, Request};
use pagoda_engine::sampling::SamplingParams;

use super::{context, flags::Flags, models, terminal};

/// Windows in flight.
const IN_FLIGHT: usize = 16;

/// Arguments of `pagoda eval`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

/// What to measure.
#[derive(clap::Subcommand)]
enum What {
    /// Perplexity of a text file
    Ppl(Perplexity),
}

/// Arguments of `pagoda eval ppl`.
#[derive(clap::Args)]
struct Perplexity {
    /// Text in UTF-8
    file: PathBuf,
    /// Folder, .gguf file, hub id or alias; none: the default model
    model: Option<String>,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512)]
    window: usize,
    /// Windows at most; none: the whole text
    #[arg(long, value_name = "N")]
    max_windows: Option<usize>,
    #[command(flatten)]
    flags: Flags<false>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, file: Option<&Path>) -> Result<()> {
    let What::Ppl(arguments) = &arguments.what;
    let config = context::quiet_config(&arguments.flags.values, file)?;
    ensure!(arguments.window >= 2, "--window: `{}`: expected at least 2", arguments.window);
    let text = std::fs::read_to_string(&arguments.file).with_context(|| arguments.file.display().to_string())?;
    let model = models::load_engine(&config, arguments.model.as_deref(), "eval", |options| {
        options.max_model_len = options.max_model_len.or(Some(arguments.window + 2));
        options.prefix_caching = false;
    })?;
    let windows = windows(&model, &text, arguments)?;
    let started = Instant::now();
    let sum = measure(&model, &windows)?;
    let seconds = started.elapsed().as_secs_f64();
    let perplexity = (-sum.logprob / sum.tokens as f64).exp();
    terminal::print(&format!("{perplexity:.4}\n"))?;
    let rate = sum.tokens as f64 / seconds.max(1e-9);
    let window = arguments.window;
    terminal::note(&format!(
        "perplexity {perplexity:.4} over {} tokens in {} windows of {window}, {rate:.0} tokens/s on {}",
        sum.tokens,
        windows.len(),
        model.device
    ));
    Ok(())
}

/// The tokens of each window.
fn windows(model: &LoadedModel, text: &str, arguments: &Perplexity) -> Result<Vec<Vec<u32>>> {
    let front = model.tokenizer.encode("", true)?;
    let tokens = model.tokenizer.encode(text, false)?;
    let chunk = arguments.window.saturating_sub(front.len()).max(1);
    let whole = tokens.chunks(chunk).map(|chunk| [front.as_slice(), chunk].concat()).filter(|window| window.len() >= 2);
    let windows: Vec<Vec<u32>> = whole.take(arguments.max_windows.unwrap_or(usize::MAX)).collect();
    ensure!(!windows.is_empty(), "{}: {} tokens, too few to measure", arguments.file.display(), tokens.len());
    Ok(windows)
}

#[derive(Default)]
struct Sum {
    logprob: f64,
    tokens: usize,
}

fn measure(model: &LoadedModel, windows: &[Vec<u32>]) -> Result<Sum> {
    let mut sum = Sum::default();
    let mut in_flight: VecDeque<RequestStream> = VecDeque::new();
    for window in windows {
        if in_flight.len() == IN_FLIGHT {
            let stream = in_flight.pop_front().context("a window is in flight")?;
            collect(stream, &mut sum)?;
        }
        let sampling = SamplingParams { max_tokens: 1, ignore_eos: true, prompt_logprobs: Some(0), ..SamplingParams::default() };
        in_flight.push_back(model.handle.submit(Request { prompt: window.clone(), sampling, priority: 0, cache_salt: 0 })?);
    }
    in_flight.into_iter().try_for_each(|stream| collect(stream, &mut sum))?;
    Ok(sum)
}

fn collect(mut stream: RequestStream, sum: &mut Sum) -> Result<()> {
    while let Some(event) = stream.next_blocking() {
        match event {
            Event::PromptLogprobs(entries) => {
                sum.tokens += entries.len();
                sum.logprob += entries.iter().map(|entry| f64::from(entry.logprob)).sum::<f64>();
            }
            Event::Done(_) => return Ok(()),
            Event::Failed { message, .. } | Event::Refused { message } => bail!(message),
            _ => {}
        }
    }
    bail!("the engine ended")
}
