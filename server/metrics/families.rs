//! The table of families: names, kinds, help, and where each value comes from.

use std::sync::Arc;

use pagoda_backends::{BackendStats, STEP_SIZE_BOUNDS};

use super::exposition::{Exposition, Label};
use super::histogram::{Histogram, Snapshot, cumulative};
use super::meter::Meter;
use crate::model_source::Model;

/// Which of several engines of one model a number belongs to; there is one.
const ENGINE: Label = ("engine", "0");

/// A number of a backend: name, kind, help, value.
type StatsFamily = (&'static str, &'static str, &'static str, fn(&BackendStats) -> f64);
/// A number of a meter: name, help, value.
type CounterFamily = (&'static str, &'static str, fn(&Meter) -> f64);
/// A histogram of a meter: name, help, values.
type HistogramFamily = (&'static str, &'static str, fn(&Meter) -> &Histogram);

#[rustfmt::skip]
const STATS: [StatsFamily; 14] = [
    ("vllm:num_requests_running", "gauge", "Sequences in the running batch.", |s| s.num_running as f64),
    ("vllm:num_requests_waiting", "gauge", "Sequences that wait to run.", |s| s.num_waiting as f64),
    ("vllm:kv_cache_usage_perc", "gauge", "Share of the KV cache in use, 0 to 1.", usage),
    ("vllm:gpu_cache_usage_perc", "gauge", "Older name of vllm:kv_cache_usage_perc.", usage),
    ("vllm:num_preemptions_total", "counter", "Sequences that lost their blocks and were computed again.", |s| s.num_preemptions as f64),
    ("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", |s| s.prefix_queries as f64),
    ("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.", |s| s.prefix_hits as f64),
    ("vllm:gpu_prefix_cache_queries_total", "counter", "Older name of vllm:prefix_cache_queries_total.", |s| s.prefix_queries as f64),
    ("vllm:gpu_prefix_cache_hits_total", "counter", "Older name of vllm:prefix_cache_hits_total.", |s| s.prefix_hits as f64),
    ("vllm:gpu_prefix_cache_hit_rate", "gauge", "Share of prompt tokens found in the prefix cache, since the start.", hit_rate),
    ("pagoda_steps_total", "counter", "Steps of the engine.", |s| s.num_steps as f64),
    ("pagoda_computed_tokens_total", "counter", "Tokens that went through the model, as they do so.", |s| s.step_sizes.num_tokens as f64),
    ("pagoda_kv_waste_ratio", "gauge", "Share of allocated KV slots that held no token.", |s| f64::from(s.kv_waste)),
    ("pagoda_step_sequences_max", "gauge", "Most sequences ever seen in one step.", |s| s.max_running as f64),
];

#[rustfmt::skip]
const COUNTERS: [CounterFamily; 3] = [
    ("vllm:prompt_tokens_total", "Prompt tokens of finished requests.", |m| m.prompt_tokens.get()),
    ("vllm:generation_tokens_total", "Generated tokens of finished requests.", |m| m.generation_tokens.get()),
    ("vllm:prompt_tokens_cached_total", "Prompt tokens of finished requests that came from the prefix cache.", |m| m.cached_tokens.get()),
];

#[rustfmt::skip]
const HISTOGRAMS: [HistogramFamily; 11] = [
    ("vllm:time_to_first_token_seconds", "From a request's arrival to its first token.", |m| &m.first_token_s),
    ("vllm:inter_token_latency_seconds", "Between two tokens of an answer.", |m| &m.inter_token_s),
    ("vllm:time_per_output_token_seconds", "Older name of vllm:inter_token_latency_seconds.", |m| &m.inter_token_s),
    ("vllm:e2e_request_latency_seconds", "From a request's arrival to its end.", |m| &m.request_s),
    ("vllm:request_queue_time_seconds", "From a request's arrival until it ran.", |m| &m.queue_s),
    ("vllm:request_prefill_time_seconds", "From the time a request ran to its first token.", |m| &m.prefill_s),
    ("vllm:request_decode_time_seconds", "From the first token of a request to its last.", |m| &m.decode_s),
    ("vllm:request_prompt_tokens", "Prompt tokens of a finished request.", |m| &m.prompt_lens),
    ("vllm:request_generation_tokens", "Generated tokens of a finished request.", |m| &m.generation_lens),
    ("vllm:request_params_max_tokens", "max_tokens of a request that sets it.", |m| &m.max_tokens),
    ("vllm:request_params_n", "n of a request.", |m| &m.choices),
];

/// Bounds of `vllm:iteration_tokens_total`.
const STEP_SIZES: [f64; STEP_SIZE_BOUNDS.len()] = {
    let mut bounds = [0.0; STEP_SIZE_BOUNDS.len()];
    let mut idx = 0;
    while idx < bounds.len() {
        bounds[idx] = STEP_SIZE_BOUNDS[idx] as f64;
        idx += 1;
    }
    bounds
};

fn usage(stats: &BackendStats) -> f64 {
    stats.num_used_blocks as f64 / stats.num_blocks.max(1) as f64
}

fn hit_rate(stats: &BackendStats) -> f64 {
    stats.prefix_hits as f64 / stats.prefix_queries.max(1) as f64
}

/// All families of all models.
pub(super) fn render(models: &[Arc<Model>], num_in_flight: usize, version: &str) -> String {
    let mut text = Exposition::default();
    text.family("pagoda_info", "gauge", "The running version.");
    text.sample("pagoda_info", &[("version", version)], 1.0);
    text.family("pagoda_http_requests_in_flight", "gauge", "HTTP requests being answered, this one included.");
    text.sample("pagoda_http_requests_in_flight", &[], num_in_flight as f64);
    let stats: Vec<(&str, BackendStats)> = models.iter().map(|model| (model.name.as_str(), model.backend.stats())).collect();
    for (name, kind, help, value) in STATS {
        text.family(name, kind, help);
        stats.iter().for_each(|(model, stats)| text.sample(name, &labels(model), value(stats)));
    }
    cache_config(&mut text, &stats);
    step_sizes(&mut text, &stats);
    for (name, help, value) in COUNTERS {
        text.family(name, "counter", help);
        models.iter().for_each(|model| text.sample(name, &labels(&model.name), value(&model.meter)));
    }
    for (name, help, values) in HISTOGRAMS {
        text.family(name, "histogram", help);
        models.iter().for_each(|model| text.histogram(name, &labels(&model.name), &values(&model.meter).snapshot()));
    }
    by_reason(&mut text, models);
    text.into_text()
}

fn labels(model: &str) -> [Label<'_>; 2] {
    [ENGINE, ("model_name", model)]
}

/// Sizes of the cache, as labels.
fn cache_config(text: &mut Exposition, stats: &[(&str, BackendStats)]) {
    let name = "vllm:cache_config_info";
    text.family(name, "gauge", "Sizes of the KV cache.");
    for (model, stats) in stats {
        let (block_size, num_blocks) = (stats.block_size.to_string(), stats.num_blocks.to_string());
        let sizes: [Label; 2] = [("block_size", &block_size), ("num_gpu_blocks", &num_blocks)];
        text.sample(name, &[&labels(model)[..], &sizes].concat(), 1.0);
    }
}

fn step_sizes(text: &mut Exposition, stats: &[(&str, BackendStats)]) {
    let name = "vllm:iteration_tokens_total";
    text.family(name, "histogram", "Tokens of a step.");
    for (model, stats) in stats {
        let (cumulative, sum) = (cumulative(&stats.step_sizes.counts), stats.step_sizes.num_tokens as f64);
        text.histogram(name, &labels(model), &Snapshot { bounds: &STEP_SIZES, cumulative, sum });
    }
}

fn by_reason(text: &mut Exposition, models: &[Arc<Model>]) {
    text.family("vllm:request_success_total", "counter", "Requests that ended, by how.");
    for model in models {
        for (ending, count) in model.meter.endings() {
            text.sample("vllm:request_success_total", &[&labels(&model.name)[..], &[("finished_reason", ending)]].concat(), count);
        }
    }
    text.family("pagoda_requests_refused_total", "counter", "Requests that the backend did not take, by why.");
    for model in models {
        for (reason, count) in model.meter.refusals() {
            text.sample("pagoda_requests_refused_total", &[&labels(&model.name)[..], &[("reason", reason)]].concat(), count);
        }
    }
}
