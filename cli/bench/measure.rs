//! One run of one workload and its figures.

use std::time::Instant;

use anyhow::{Result, bail};
use futures_util::future::try_join_all;
use pagoda_engine::core::{EngineHandle, EngineStats, RequestStream};
use pagoda_engine::request::{Event, Request};
use pagoda_engine::sampling::SamplingParams;
use serde_json::json;

use super::workload::{Prompts, Workload};

/// What a run showed.
pub struct Figures {
    wall_s: f64,
    out_tok_s: f64,
    total_tok_s: f64,
    tpot_p50_ms: f64,
    ttft_p50_ms: f64,
    cached_tokens: usize,
    kv_waste: f64,
    max_running: usize,
    num_steps: u64,
    num_preemptions: u64,
    host_us_per_step: f64,
}

/// One request's times.
struct Timing {
    ttft_s: f64,
    total_s: f64,
    num_tokens: usize,
    cached_tokens: usize,
    max_running: usize,
}

/// Sends all requests at once, waits for all.
pub async fn run(handle: &EngineHandle, workload: &Workload, prompts: &mut Prompts) -> Result<Figures> {
    let prompts = prompts.draw(workload);
    let before = handle.stats();
    let started = Instant::now();
    let mut streams = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let max_tokens = u32::try_from(workload.output_len)?;
        let sampling = SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() };
        streams.push(handle.submit(Request { prompt, sampling, priority: 0, cache_salt: 0 })?);
    }
    let timings = try_join_all(streams.into_iter().map(|stream| follow(stream, handle, started))).await?;
    Ok(figures(workload, &timings, started.elapsed().as_secs_f64(), &before, &handle.stats()))
}

async fn follow(mut stream: RequestStream, handle: &EngineHandle, started: Instant) -> Result<Timing> {
    let mut timing = Timing { ttft_s: 0.0, total_s: 0.0, num_tokens: 0, cached_tokens: 0, max_running: 0 };
    while let Some(event) = stream.next().await {
        match event {
            Event::Started { cached_tokens } => timing.cached_tokens = cached_tokens,
            Event::Token { .. } => {
                timing.total_s = started.elapsed().as_secs_f64();
                if timing.num_tokens == 0 {
                    timing.ttft_s = timing.total_s;
                }
                timing.num_tokens += 1;
                timing.max_running = timing.max_running.max(handle.stats().num_running);
            }
            Event::Done(_) => return Ok(timing),
            Event::Failed { message, .. } | Event::Refused { message } => bail!(message),
            Event::PromptLogprobs(_) | Event::Finished { .. } => {}
        }
    }
    bail!("a request ended without a final event")
}

fn figures(workload: &Workload, timings: &[Timing], wall_s: f64, before: &EngineStats, after: &EngineStats) -> Figures {
    let num_out: usize = timings.iter().map(|timing| timing.num_tokens).sum();
    let tpots = timings.iter().filter(|timing| timing.num_tokens > 1);
    let tpots = tpots.map(|timing| (timing.total_s - timing.ttft_s) * 1e3 / (timing.num_tokens - 1) as f64).collect();
    let allocated = after.kv_slots_allocated - before.kv_slots_allocated;
    let used = after.kv_slots_used - before.kv_slots_used;
    let num_steps = after.num_steps - before.num_steps;
    Figures {
        wall_s,
        out_tok_s: num_out as f64 / wall_s,
        total_tok_s: (num_out + workload.requests * workload.input_len) as f64 / wall_s,
        tpot_p50_ms: median(tpots),
        ttft_p50_ms: median(timings.iter().map(|timing| timing.ttft_s * 1e3).collect()),
        cached_tokens: timings.iter().map(|timing| timing.cached_tokens).sum(),
        kv_waste: if allocated == 0 { 0.0 } else { 1.0 - used as f64 / allocated as f64 },
        max_running: timings.iter().map(|timing| timing.max_running).max().unwrap_or(0),
        num_steps,
        num_preemptions: after.num_preemptions - before.num_preemptions,
        host_us_per_step: (after.host_us - before.host_us) as f64 / num_steps.max(1) as f64,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl Figures {
    /// Head of the table.
    pub const HEADER: &str =
        "label                     requests    in   out   wall s   out tok/s  all tok/s  TPOT ms  TTFT ms  kv waste  running\n";

    /// One line of the table.
    pub fn row(&self, label: &str, workload: &Workload) -> String {
        format!(
            "{label:<25} {:>8} {:>5} {:>5} {:>8.2} {:>11.1} {:>10.1} {:>8.2} {:>8.1} {:>8.1}% {:>8}\n",
            workload.requests,
            workload.input_len,
            workload.output_len,
            self.wall_s,
            self.out_tok_s,
            self.total_tok_s,
            self.tpot_p50_ms,
            self.ttft_p50_ms,
            self.kv_waste * 100.0,
            self.max_running,
        )
    }

    /// The JSON line.
    pub fn json(&self, label: &str, workload: &Workload) -> serde_json::Value {
        let round = |value: f64| (value * 1e4).round() / 1e4;
        json!({
            "label": label,
            "wall_s": round(self.wall_s),
            "out_tok_s": round(self.out_tok_s),
            "total_tok_s": round(self.total_tok_s),
            "tpot_p50": round(self.tpot_p50_ms),
            "ttft_p50": round(self.ttft_p50_ms),
            "requests": workload.requests,
            "input_len": workload.input_len,
            "output_len": workload.output_len,
            "cached_tokens": self.cached_tokens,
            "kv_waste": round(self.kv_waste),
            "max_running": self.max_running,
            "num_steps": self.num_steps,
            "num_preemptions": self.num_preemptions,
            "host_us_per_step": round(self.host_us_per_step),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_computed_from_timings() {
        let timing = |ttft_s, total_s, num_tokens| Timing { ttft_s, total_s, num_tokens, cached_tokens: 8, max_running: 2 };
        let workload = Workload::plain("x", 3, 10, 5);
        let after = EngineStats { kv_slots_allocated: 100, kv_slots_used: 97, num_steps: 10, host_us: 50, ..EngineStats::default() };
        let timings = [timing(0.1, 0.5, 5), timing(0.2, 1.0, 5), timing(0.3, 2.0, 1)];
        let figures = figures(&workload, &timings, 2.0, &EngineStats::default(), &after);
        let json = figures.json("x", &workload);
        for (key, expected) in [
            ("out_tok_s", 5.5),
            ("total_tok_s", 20.5),
            ("ttft_p50", 200.0),
            ("tpot_p50", 200.0),
            ("kv_waste", 0.03),
            ("host_us_per_step", 5.0),
            ("cached_tokens", 24.0),
        ] {
            assert_eq!(json[key].as_f64(), Some(expected), "{key}: {json}");
        }
    }
}
