//! Mixed load for a while: prompts of all lengths, shared beginnings, greedy and sampled, a quarter given up midway. Then the server must be
//! as idle as before: nothing running, no block held.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::http::{Completion, HttpClient};
use super::workload::{Prompts, Workload};

/// Longest time until nothing runs any more after the last client is gone.
const IDLE_TIME: Duration = Duration::from_secs(20);
/// Pause between two looks at `/health`.
const POLL: Duration = Duration::from_millis(100);

/// What a soak brought.
#[derive(Default)]
struct Counts {
    requests: usize,
    given_up: usize,
    tokens: usize,
    errors: Vec<String>,
}

/// Keeps `num_clients` requests running for `seconds`; the JSON line of it.
///
/// # Errors
/// A request failed, or the server still holds something afterwards.
pub async fn run(client: &HttpClient, num_clients: usize, seconds: f64, prompts: &mut Prompts, label: &str) -> Result<Value> {
    let started = Instant::now();
    let end = started + Duration::from_secs_f64(seconds);
    // One beginning for all clients, so that blocks are shared.
    let shared = prompts.draw(&Workload::plain("shared", 1, 512, 1)).remove(0);
    let clients = (0..num_clients).map(|_| one_client(client, end, prompts.fork(), &shared));
    let mut counts = Counts::default();
    for done in join_all(clients).await {
        counts.requests += done.requests;
        counts.given_up += done.given_up;
        counts.tokens += done.tokens;
        counts.errors.extend(done.errors);
    }
    let wall_s = started.elapsed().as_secs_f64();
    let left = idle(client).await?;
    let line = json!({
        "label": format!("{label}-soak"), "wall_s": wall_s, "clients": num_clients, "requests": counts.requests, "given_up": counts.given_up,
        "errors": counts.errors.len(), "out_tok_s": counts.tokens as f64 / wall_s,
        "num_running": left["num_running"], "num_used_blocks": left["num_used_blocks"], "num_preemptions": left["num_preemptions"],
    });
    ensure!(counts.errors.is_empty(), "{} requests failed, the first: {}; {line}", counts.errors.len(), counts.errors[0]);
    ensure!(left["num_running"] == 0 && left["num_used_blocks"] == 0, "the server still holds something: {line}");
    Ok(line)
}

async fn one_client(client: &HttpClient, end: Instant, mut prompts: Prompts, shared: &[u32]) -> Counts {
    let mut counts = Counts::default();
    while Instant::now() < end {
        let own = 1 + prompts.below(1024);
        let mut prompt = if prompts.below(3) == 0 { shared.to_vec() } else { Vec::new() };
        prompt.extend(prompts.draw(&Workload::plain("own", 1, own, 1)).remove(0));
        let max_tokens = 1 + prompts.below(256);
        let give_up_after = (prompts.below(4) == 0).then(|| prompts.below(max_tokens));
        let temperature = if prompts.below(2) == 0 { 0.0 } else { 0.8 };
        match client.complete(&Completion { prompt, max_tokens, temperature, schema: None, give_up_after }).await {
            Ok(timing) => counts.tokens += timing.num_tokens,
            Err(error) => counts.errors.push(format!("{error:#}")),
        }
        counts.requests += 1;
        counts.given_up += usize::from(give_up_after.is_some());
    }
    counts
}

/// The server's numbers once nothing runs, or after the longest wait.
async fn idle(client: &HttpClient) -> Result<Value> {
    let started = Instant::now();
    loop {
        let health = client.get("/health").await?;
        let model = health["models"][0].clone();
        let is_idle = model["num_running"] == 0 && model["num_waiting"] == 0 && model["num_used_blocks"] == 0;
        if is_idle || started.elapsed() > IDLE_TIME {
            return Ok(model);
        }
        tokio::time::sleep(POLL).await;
    }
}
