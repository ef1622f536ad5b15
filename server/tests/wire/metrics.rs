//! `/metrics`: what moves, and by how much.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pagoda_backends::{BackendError, GenerateEvent, StopReason, Usage};
use pagoda_server::ModelSource;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::client::{PATIENCE, Server};
use crate::exposition::Scrape;
use crate::scripted::{Reply, Scripted, Step};

async fn scrape(server: &Server) -> Scrape {
    let answer = server.get("/metrics").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    Scrape::parse(answer.text())
}

/// Waits until the requests that ended so come to `count`.
async fn until_ended(server: &Server, reason: &str, count: f64) {
    let reached = async {
        while scrape(server).await.of("vllm:request_success_total", &[("finished_reason", reason)]) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{count} requests end with {reason}"));
}

#[tokio::test]
async fn every_name_is_there() {
    let server = Server::start().await;
    let scrape = scrape(&server).await;
    let names = scrape.names();
    for name in ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"] {
        assert!(names.contains(&format!("vllm:{name}")), "{name}");
    }
    for name in ["prompt_tokens", "generation_tokens", "request_success", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits"] {
        assert_eq!(scrape.of("vllm:num_preemptions_total", &[]), 0.0);
        assert!(names.contains(&format!("vllm:{name}_total")), "{name}");
    }
    let histograms = [
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "iteration_tokens_total",
    ];
    for name in histograms {
        assert!(["bucket", "sum", "count"].iter().all(|part| names.contains(&format!("vllm:{name}_{part}"))), "{name}");
    }
}

#[tokio::test]
async fn a_server_without_models_answers() {
    let server = Server::over(Default::default(), ModelSource::loading(), Arc::<Scripted>::default()).await;
    assert!(scrape(&server).await.names().contains("pagoda_info"));
}

/// What one request of the load is, and the usage it was told.
async fn ask(server: &Server, idx: usize) -> (f64, f64, &'static str) {
    let text = "word ".repeat(idx % 7 + 1);
    let messages = json!([{"role": "user", "content": text}]);
    let max_tokens = if idx.is_multiple_of(3) { 3 } else { 100 };
    let ending = if idx.is_multiple_of(3) { "length" } else { "stop" };
    let usage = |usage: &Value, prompt: &str, output: &str| (usage[prompt].as_f64().unwrap(), usage[output].as_f64().unwrap());
    let streamed = |text: &str| -> Vec<Value> {
        let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    };
    let (prompt, output) = match idx % 5 {
        0 => {
            let body = json!({"model": "m", "max_tokens": max_tokens, "messages": messages});
            let usage = server.post("/v1/messages", &body).await.json()["usage"].clone();
            let cached = usage["cache_read_input_tokens"].as_f64().unwrap();
            (usage["input_tokens"].as_f64().unwrap() + cached, usage["output_tokens"].as_f64().unwrap())
        }
        1 => {
            let body = json!({"model": "other", "max_tokens": max_tokens, "messages": messages, "stream": true});
            let answer = server.post("/v1/messages", &body).await;
            let events = streamed(answer.text());
            let end = events.iter().find(|event| event["type"] == "message_delta").unwrap()["usage"].clone();
            let cached = end["cache_read_input_tokens"].as_f64().unwrap();
            (end["input_tokens"].as_f64().unwrap() + cached, end["output_tokens"].as_f64().unwrap())
        }
        2 => {
            let body = json!({"model": "m", "max_tokens": max_tokens, "messages": messages, "n": 3});
            usage(&server.post("/v1/chat/completions", &body).await.json()["usage"], "prompt_tokens", "completion_tokens")
        }
        3 => {
            let options = json!({"include_usage": true});
            let body = json!({"model": "m", "max_tokens": max_tokens, "messages": messages, "stream": true, "stream_options": options});
            let answer = server.post("/v1/chat/completions", &body).await;
            usage(&streamed(answer.text()).last().unwrap()["usage"], "prompt_tokens", "completion_tokens")
        }
        _ => {
            let body = json!({"model": "m", "max_tokens": max_tokens, "prompt": text});
            usage(&server.post("/v1/completions", &body).await.json()["usage"], "prompt_tokens", "completion_tokens")
        }
    };
    (prompt, output, ending)
}

#[tokio::test]
async fn counters_move_by_the_usage_of_finished_requests() {
    const NUM_REQUESTS: usize = 60;
    let server = Server::start().await;
    let told = join_all((0..NUM_REQUESTS).map(|idx| ask(&server, idx))).await;
    let after = scrape(&server).await;
    let sum = |part: fn(&(f64, f64, &str)) -> f64| told.iter().map(part).sum::<f64>();
    let num_ended = |reason| told.iter().filter(|told| told.2 == reason).count() as f64;
    let (prompt, output) = (sum(|told| told.0), sum(|told| told.1));
    assert!(prompt > 0.0 && output > 0.0);
    assert_eq!(after.of("vllm:prompt_tokens_total", &[]), prompt);
    assert_eq!(after.of("vllm:generation_tokens_total", &[]), output);
    assert_eq!(after.of("vllm:request_prompt_tokens_sum", &[]), prompt);
    assert_eq!(after.of("vllm:request_generation_tokens_sum", &[]), output);
    for reason in ["stop", "length", "abort", "error"] {
        assert_eq!(after.of("vllm:request_success_total", &[("finished_reason", reason)]), num_ended(reason), "{reason}");
    }
    for name in ["time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds", "request_decode_time_seconds"]
    {
        assert_eq!(after.of(&format!("vllm:{name}_count"), &[]), NUM_REQUESTS as f64, "{name}");
    }
    // Every token but the first of each of an answer's choices came after another one.
    let num_choices: f64 = (0..NUM_REQUESTS).map(|idx| if idx % 5 == 2 { 3.0 } else { 1.0 }).sum();
    assert_eq!(after.of("vllm:inter_token_latency_seconds_count", &[]), output - num_choices);
    assert_eq!(after.of("vllm:request_params_n_sum", &[]), num_choices);
}

#[tokio::test]
async fn aborts_errors_and_refusals_have_their_own_counters() {
    let server = Server::start().await;
    let started = || Step::Event(GenerateEvent::Started { prompt_tokens: 3, prompt_token_ids: vec![1, 2, 3], cached_tokens: 0 });
    let piece = || Step::Event(GenerateEvent::Delta { choice: 0, text: "a".into(), tokens: Vec::new() });
    let body = |stream: bool| json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": stream});

    // The client of a stream goes away, then one that waits for a whole answer.
    for stream in [true, false] {
        server.backend.push(Reply::Play(vec![started(), piece(), Step::Hang]));
        let mut client = server.connect().await;
        client.post("/v1/messages", &body(stream)).await;
        server.backend.live(1).await;
        drop(client);
    }
    until_ended(&server, "abort", 2.0).await;
    // The backend ends it.
    let finished = Step::Event(GenerateEvent::Finished { choice: 0, reason: StopReason::Aborted });
    let done = Step::Event(GenerateEvent::Done(Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 1 }));
    server.backend.push(Reply::Play(vec![started(), piece(), finished, done]));
    server.post("/v1/messages", &body(true)).await;
    until_ended(&server, "abort", 3.0).await;
    // It fails in the middle.
    let failed = || Step::Event(GenerateEvent::Failed(BackendError::Internal("broken".into())));
    server.backend.push(Reply::Play(vec![started(), piece(), failed()]));
    server.post("/v1/chat/completions", &body(true)).await;
    // It is not taken, at once or as the first event.
    server.backend.push(Reply::Refuse(BackendError::Overloaded { message: "full".into(), retry_after_s: 1 }));
    server.backend.push(Reply::Refuse(BackendError::PromptTooLong { prompt_tokens: 9, max_tokens: 8 }));
    server.backend.push(Reply::Play(vec![Step::Event(GenerateEvent::Failed(BackendError::Unavailable("ending".into())))]));
    for _ in 0..3 {
        assert_ne!(server.post("/v1/messages", &body(false)).await.status, 200);
    }
    let after = scrape(&server).await;
    for (reason, count) in [("stop", 0.0), ("length", 0.0), ("abort", 3.0), ("error", 1.0)] {
        assert_eq!(after.of("vllm:request_success_total", &[("finished_reason", reason)]), count, "{reason}");
    }
    for (reason, count) in [("invalid", 0.0), ("too_long", 1.0), ("overloaded", 1.0), ("unavailable", 1.0), ("failed", 0.0)] {
        assert_eq!(after.of("pagoda_requests_refused_total", &[("reason", reason)]), count, "{reason}");
    }
    for name in ["prompt_tokens_total", "generation_tokens_total", "e2e_request_latency_seconds_count"] {
        assert_eq!(after.of(&format!("vllm:{name}"), &[]), 0.0, "{name}");
    }
}

#[tokio::test]
async fn times_are_those_of_the_events() {
    const PAUSE: Duration = Duration::from_millis(60);
    let server = Server::start().await;
    let (queued, prefilled, decoded) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let piece = || Step::Event(GenerateEvent::Delta { choice: 0, text: "a".into(), tokens: Vec::new() });
    server.backend.push(Reply::Play(vec![
        Step::Wait(Arc::clone(&queued)),
        Step::Event(GenerateEvent::Started { prompt_tokens: 1, prompt_token_ids: vec![1], cached_tokens: 0 }),
        Step::Wait(Arc::clone(&prefilled)),
        piece(),
        Step::Wait(Arc::clone(&decoded)),
        piece(),
        Step::Event(GenerateEvent::Finished { choice: 0, reason: StopReason::EndOfTurn }),
        Step::Event(GenerateEvent::Done(Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2 })),
    ]));
    let body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    let release = async {
        for stage in [&queued, &prefilled, &decoded] {
            tokio::time::sleep(PAUSE).await;
            stage.notify_one();
        }
    };
    tokio::join!(server.post("/v1/messages", &body), release);
    let after = scrape(&server).await;
    let sum = |name: &str| after.of(&format!("vllm:{name}_seconds_sum"), &[]);
    let (queue, prefill, decode) = (sum("request_queue_time"), sum("request_prefill_time"), sum("request_decode_time"));
    for time in [queue, prefill, decode] {
        assert!(time > PAUSE.as_secs_f64() * 0.5, "{queue} {prefill} {decode}");
    }
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-4, "{a} {b}");
    close(sum("time_to_first_token"), queue + prefill);
    close(sum("inter_token_latency"), decode);
    assert!(sum("e2e_request_latency") >= queue + prefill + decode - 1e-4);
}
