//! Loading, overload, deadlines, pings, dead backends and the way out.

use std::sync::Arc;
use std::time::Duration;

use pagoda_backends::{GenerateEvent, StopReason, Usage};
use pagoda_server::{ModelSource, ServerConfig};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::client::{Server, redacted, served};
use crate::scripted::{Reply, Scripted, Step};

fn body(stream: bool) -> Value {
    json!({"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], "stream": stream})
}

fn started() -> Step {
    Step::Event(GenerateEvent::Started { prompt_tokens: 1, cached_tokens: 0, prompt_token_ids: vec![1] })
}

fn text(text: &str) -> Step {
    Step::Event(GenerateEvent::Delta { choice: 0, text: text.into(), tokens: Vec::new() })
}

fn finished() -> [Step; 2] {
    [
        Step::Event(GenerateEvent::Finished { choice: 0, reason: StopReason::EndOfTurn }),
        Step::Event(GenerateEvent::Done(Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2 })),
    ]
}

/// A reply that says `a`, waits for the notify, says `b` and ends.
fn gated(gate: &Arc<Notify>) -> Reply {
    let [finished, done] = finished();
    Reply::Play(vec![started(), text("a"), Step::Wait(Arc::clone(gate)), text("b"), finished, done])
}

#[tokio::test]
async fn the_port_is_open_while_models_load() {
    let backend = Arc::new(Scripted::default());
    let server = Server::over(ServerConfig::default(), ModelSource::loading(), Arc::clone(&backend)).await;
    for (answer, kind) in [
        (server.post("/v1/messages", &body(false)).await, "overloaded_error"),
        (server.post("/v1/chat/completions", &body(true)).await, "overloaded_error"),
        (server.get("/v1/models").await, "overloaded_error"),
    ] {
        assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (503, Some(kind)));
        assert!(answer.header("retry-after").is_some());
        assert_eq!(answer.json()["error"]["message"], json!("model is loading"));
    }
    let health = server.get("/health").await;
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("loading")));
    assert_eq!(server.get("/version").await.status, 200);
    server.models.set_ready(served(&backend));
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.post("/v1/messages", &body(false)).await.status, 200);
}

#[tokio::test]
async fn a_failed_load_says_why() {
    let server = Server::over(ServerConfig::default(), ModelSource::loading(), Arc::default()).await;
    server.models.set_failed("disk on fire");
    let answer = server.post("/v1/messages", &body(false)).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("disk on fire"));
}

#[tokio::test]
async fn a_dead_backend_shows_in_health() {
    let server = Server::start().await;
    assert_eq!(server.get("/health").await.json()["models"][0]["name"], json!("m"));
    server.backend.die("engine thread panicked");
    let health = server.get("/health").await;
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("dead")));
    assert!(health.text().contains("engine thread panicked"));
}

#[tokio::test]
async fn a_full_server_asks_to_come_back() {
    let server = Server::with(ServerConfig { max_concurrent_requests: 1, ..ServerConfig::default() }).await;
    let gate = Arc::new(Notify::new());
    server.backend.push(gated(&gate));
    let mut first = server.connect().await;
    first.post("/v1/messages", &body(true)).await;
    assert_eq!(first.head().await.status, 200);
    for (path, status, kind) in [("/v1/messages", 529, "overloaded_error"), ("/v1/chat/completions", 429, "rate_limit_error")] {
        let answer = server.post(path, &body(true)).await;
        assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (status, Some(kind)));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    let count = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(server.post("/v1/messages/count_tokens", &count).await.status, 200, "counting needs no slot");
    gate.notify_one();
    while first.chunk().await.is_some() {}
    server.backend.live(0).await;
    assert_eq!(server.post("/v1/messages", &body(false)).await.status, 200);
}

#[tokio::test]
async fn deadlines() {
    let server = Server::with(ServerConfig { request_timeout: Some(Duration::from_millis(100)), ..ServerConfig::default() }).await;
    for path in ["/v1/messages", "/v1/chat/completions"] {
        server.backend.push(Reply::Play(vec![started(), text("a"), Step::Hang]));
        let answer = server.post(path, &body(false)).await;
        assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (504, Some("timeout_error")));
        server.backend.push(Reply::Play(vec![started(), text("a"), Step::Hang]));
        let answer = server.post(path, &body(true)).await;
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("timeout_error") && !answer.text().contains("message_stop"), "{}", answer.text());
    }
    server.backend.live(0).await;
}

#[tokio::test]
async fn pings_while_nothing_comes() {
    let server = Server::with(ServerConfig { ping_interval: Duration::from_millis(50), ..ServerConfig::default() }).await;
    for (path, ping) in [("/v1/messages", "event: ping\ndata: {\"type\":\"ping\"}\n\n"), ("/v1/chat/completions", ": ping\n\n")] {
        let (start, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let [finished, done] = finished();
        let steps = vec![Step::Wait(Arc::clone(&start)), started(), text("a"), Step::Wait(Arc::clone(&go_on)), finished, done];
        server.backend.push(Reply::Play(steps));
        let mut client = server.connect().await;
        client.post(path, &body(true)).await;
        assert_eq!(client.head().await.status, 200);
        // message_start has to be the first event, so pings before it are comments.
        assert_eq!(client.chunk().await.as_deref(), Some(": ping\n\n"));
        start.notify_one();
        let mut seen = String::new();
        while !seen.ends_with(ping) || !seen.contains("\"a\"") {
            seen.push_str(&client.chunk().await.unwrap());
        }
        go_on.notify_one();
        while client.chunk().await.is_some() {}
    }
}

#[tokio::test]
async fn shutdown_lets_streams_finish() {
    let mut server = Server::start().await;
    let gate = Arc::new(Notify::new());
    server.backend.push(gated(&gate));
    let mut streaming = server.connect().await;
    streaming.post("/v1/messages", &body(true)).await;
    assert_eq!(streaming.head().await.status, 200);
    let mut idle = server.connect().await;
    idle.send("GET", "/health", &[], b"").await;
    assert_eq!(idle.answer().await.status, 200);

    server.shut_down();
    // New connections are refused once the listener is closed.
    while TcpStream::connect(&server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    idle.send("GET", "/health", &[], b"").await;
    let health = idle.answer().await;
    assert_eq!((health.status, health.header("connection")), (503, Some("close")));
    assert_eq!(health.json()["status"], json!("draining"));
    assert!(idle.is_closed().await);

    gate.notify_one();
    let mut transcript = String::new();
    while let Some(chunk) = streaming.chunk().await {
        transcript.push_str(&chunk);
    }
    assert!(transcript.ends_with("data: {\"type\":\"message_stop\"}\n\n"), "{transcript}");
    assert!(streaming.is_closed().await);
    server.ended().await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let mut server = Server::with(ServerConfig { drain_timeout: Duration::from_millis(100), ..ServerConfig::default() }).await;
    server.backend.push(Reply::Play(vec![started(), text("a"), Step::Hang]));
    let mut streaming = server.connect().await;
    streaming.post("/v1/messages", &body(true)).await;
    assert_eq!(streaming.head().await.status, 200);
    server.backend.push(Reply::Play(vec![started(), Step::Hang]));
    let mut waiting = server.connect().await;
    waiting.post("/v1/messages", &body(false)).await;
    server.backend.live(2).await;

    server.shut_down();
    let mut transcript = String::new();
    while let Some(chunk) = streaming.chunk().await {
        transcript.push_str(&chunk);
    }
    insta::assert_snapshot!("stopped_stream", redacted(&transcript));
    assert_eq!(waiting.answer().await.status, 503);
    server.ended().await;
    server.backend.live(0).await;
}

#[tokio::test]
async fn options_are_checked() {
    for config in [
        ServerConfig { max_body_bytes: 0, ..ServerConfig::default() },
        ServerConfig { max_concurrent_requests: 0, ..ServerConfig::default() },
        ServerConfig { ping_interval: Duration::from_secs(16), ..ServerConfig::default() },
        ServerConfig { api_keys: vec![String::new()], ..ServerConfig::default() },
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert!(pagoda_server::run(listener, config, ModelSource::loading(), std::future::pending()).await.is_err());
    }
}
