//! One run of one workload, against the embedded engine or a server over HTTP.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use pagoda_backends::{GenerateEvent, GenerateRequest, GenerationConfig, InferenceBackend, Prompt};
use pagoda_engine::core::{EngineHandle, RequestStream};
use pagoda_engine::grammar::{Compiler, Format, Grammar, Limits};
use pagoda_engine::loader::LoadedModel;
use pagoda_engine::request::{Event, Request};
use pagoda_engine::sampling::SamplingParams;

use super::figures::{Run, Timing};
use super::http::{Completion, HttpClient};
use super::workload::{Arrival, Prompts, Workload, schema};

/// What is measured.
pub enum Target {
    /// An engine in this process, and the grammar of `workload::schema` where a workload asks for it.
    Engine(EngineHandle, Option<Grammar>),
    /// A server.
    Http(HttpClient),
    /// A backend in this process, whatever runs it.
    Backend(Arc<dyn InferenceBackend>),
}

/// Sends all requests as `arrival` says, greedy and without an early end, and waits for all.
///
/// # Errors
/// A request failed inside the embedded engine. Failures over HTTP are counted instead.
pub async fn run(target: &Target, workload: &Workload, arrival: Arrival, prompts: &mut Prompts) -> Result<Run> {
    let delays = prompts.arrivals(workload.requests, arrival);
    let prompts = prompts.draw(workload);
    let stats = || match target {
        Target::Engine(handle, _) => Some(handle.stats()),
        Target::Http(_) | Target::Backend(_) => None,
    };
    let before = stats();
    let started = Instant::now();
    let requests = prompts.into_iter().zip(delays).map(|(prompt, delay)| async move {
        if !delay.is_zero() {
            tokio::time::sleep_until((started + delay).into()).await;
        }
        match target {
            Target::Engine(handle, grammar) => in_process(handle, prompt, workload, grammar.as_ref()).await,
            Target::Http(client) => over_http(client, prompt, workload).await,
            Target::Backend(backend) => in_backend(&**backend, prompt, workload).await,
        }
    });
    let outcomes = join_all(requests).await;
    let mut run = Run { wall_s: started.elapsed().as_secs_f64(), stats: before.zip(stats()), ..Run::default() };
    for outcome in outcomes {
        match outcome {
            Ok(timing) => run.timings.push(timing),
            Err(error) if matches!(target, Target::Http(_)) => run.errors.push(format!("{error:#}")),
            Err(error) => return Err(error),
        }
    }
    Ok(run)
}

async fn in_process(handle: &EngineHandle, prompt: Vec<u32>, workload: &Workload, grammar: Option<&Grammar>) -> Result<Timing> {
    let max_tokens = u32::try_from(workload.output_len)?;
    let grammar = grammar.filter(|_| workload.is_json).cloned();
    let sampling = SamplingParams { max_tokens, ignore_eos: true, grammar, ..SamplingParams::default() };
    let started = Instant::now();
    let stream = handle.submit(Request { prompt, sampling, priority: 0, cache_salt: 0 })?;
    follow(stream, handle, started).await
}

async fn follow(mut stream: RequestStream, handle: &EngineHandle, started: Instant) -> Result<Timing> {
    let mut timing = Timing::default();
    while let Some(event) = stream.next().await {
        match event {
            Event::Started { cached_tokens } => timing.cached_tokens = cached_tokens,
            Event::Token { .. } => {
                timing.total_s = started.elapsed().as_secs_f64();
                if timing.num_tokens == 0 {
                    timing.ttft_s = timing.total_s;
                    timing.num_running = handle.stats().num_running;
                }
                timing.num_tokens += 1;
            }
            Event::Done(_) => return Ok(timing),
            Event::Failed { message, .. } | Event::Refused { message } => bail!(message),
            Event::PromptLogprobs(_) | Event::Finished { .. } => {}
        }
    }
    bail!("a request ended without a final event")
}

async fn in_backend(backend: &dyn InferenceBackend, prompt: Vec<u32>, workload: &Workload) -> Result<Timing> {
    let max_tokens = Some(u32::try_from(workload.output_len)?);
    let config = GenerationConfig { max_tokens, temperature: 0.0, top_p: 1.0, ignore_eos: true, ..GenerationConfig::default() };
    let started = Instant::now();
    let mut events = backend.generate_stream(GenerateRequest { prompt: Prompt::Tokens(prompt), config }).await?;
    let mut timing = Timing::default();
    while let Some(event) = events.next().await {
        match event {
            GenerateEvent::Started { cached_tokens, .. } => timing.cached_tokens = cached_tokens,
            GenerateEvent::Delta { tokens, .. } | GenerateEvent::Reasoning { tokens, .. } if !tokens.is_empty() => {
                timing.total_s = started.elapsed().as_secs_f64();
                if timing.num_tokens == 0 {
                    timing.ttft_s = timing.total_s;
                    timing.num_running = backend.stats().num_running;
                }
                timing.num_tokens += tokens.len();
            }
            GenerateEvent::Done(_) => return Ok(timing),
            GenerateEvent::Failed(error) => return Err(error.into()),
            _ => {}
        }
    }
    bail!("a request ended without a final event")
}

/// The grammar of `workload::schema` for a loaded model.
///
/// # Errors
/// A model without an end token.
pub fn json_grammar(model: &LoadedModel) -> Result<Grammar> {
    let tokenizer = model.tokenizer.clone();
    let text = move |id: u32| (!tokenizer.is_special(id)).then(|| tokenizer.token_bytes(id)).filter(|bytes| !bytes.is_empty());
    let compiler = Compiler::new(Limits::default(), model.config.vocab_size, &model.config.eos_token_ids, text);
    Ok(compiler.compile(&Format::JsonSchema(schema()).into())?)
}

async fn over_http(client: &HttpClient, prompt: Vec<u32>, workload: &Workload) -> Result<Timing> {
    let schema = workload.is_json.then(schema);
    let completion = Completion { prompt, max_tokens: workload.output_len, temperature: 0.0, schema, give_up_after: None };
    client.complete(&completion).await
}
