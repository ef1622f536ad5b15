//! What every route does: keys, limits, connections, CORS, ids, error families.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pagoda_backends::GenerateEvent;
use pagoda_server::{CorsOrigins, ServerConfig};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use crate::client::{Client, PATIENCE, Server, redacted};
use crate::scripted::{Reply, Step};

fn message_body(stream: bool) -> Value {
    json!({"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], "stream": stream})
}

fn started() -> Step {
    Step::Event(GenerateEvent::Started { prompt_tokens: 1, cached_tokens: 0, prompt_token_ids: vec![1] })
}

fn text(text: &str) -> Step {
    Step::Event(GenerateEvent::Delta { choice: 0, text: text.into(), tokens: Vec::new() })
}

#[tokio::test]
async fn keys() {
    let server = Server::with(ServerConfig { api_keys: vec!["k1".into(), "k2".into()], ..ServerConfig::default() }).await;
    let routes = [
        ("POST", "/v1/messages", true),
        ("POST", "/v1/messages/count_tokens", true),
        ("POST", "/v1/chat/completions", true),
        ("POST", "/v1/completions", true),
        ("GET", "/v1/models", true),
        ("GET", "/v1/models/m", true),
        ("GET", "/v1/nowhere", true),
        ("POST", "/api/embed", true),
        ("POST", "/v1/embeddings", true),
        ("POST", "/rerank", true),
        ("POST", "/score", true),
        ("DELETE", "/v1/messages", true),
        ("POST", "/tokenize", true),
        ("GET", "/health", false),
        ("HEAD", "/health", false),
        ("GET", "/version", false),
        ("GET", "/", false),
        ("OPTIONS", "/v1/messages", false),
    ];
    for (method, path, guarded) in routes {
        for (headers, opens) in [
            (&[][..], false),
            (&[("x-api-key", "")], false),
            (&[("x-api-key", "wrong")], false),
            (&[("authorization", "Bearer wrong")], false),
            (&[("x-api-key", "k1")], true),
            (&[("authorization", "bearer k2")], true),
        ] {
            // The body is not even JSON: a wrong key is found first.
            let mut client = server.connect().await;
            client.send(method, path, headers, if method == "POST" { b"{" } else { b"" }).await;
            let answer = if method == "HEAD" { client.head().await } else { client.answer().await };
            assert_eq!(answer.status == 401, guarded && !opens, "{method} {path} {headers:?}: {}", answer.status);
            if answer.status == 401 {
                assert!(!answer.text().contains("wrong"), "the key is not echoed");
                if path == "/api/embed" {
                    assert!(answer.json()["error"].is_string(), "Ollama's clients read a string");
                    continue;
                }
                let anthropic = path.starts_with("/v1/messages");
                let kind = if anthropic { answer.json()["error"]["type"].clone() } else { answer.json()["error"]["code"].clone() };
                assert_eq!(kind, if anthropic { json!("authentication_error") } else { json!("invalid_api_key") });
            }
        }
    }
}

#[tokio::test]
async fn errors_come_in_the_family_of_the_route() {
    let server = Server::start().await;
    let version = ("anthropic-version", "2023-06-01");
    let mut table = String::new();
    for (method, path, headers) in [
        ("GET", "/v1/nowhere", &[][..]),
        ("GET", "/v1/nowhere", &[version]),
        ("GET", "/nowhere", &[]),
        ("GET", "/v1/messages", &[]),
        ("GET", "/v1/messages/batches", &[]),
        ("GET", "/v1/chat/completions", &[version]),
        ("POST", "/v1/models", &[]),
        ("GET", "/v1/models/none", &[]),
        ("GET", "/v1/models/none", &[version]),
        ("POST", "/v1/messages", &[]),
        ("POST", "/v1/completions", &[version]),
        ("POST", "/health", &[]),
    ] {
        let answer = server.request(method, path, headers, b"").await;
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let allow = answer.header("allow").map_or(String::new(), |allow| format!(" allow: {allow}"));
        table.push_str(&format!("{method} {path} {}{allow} {}\n", answer.status, redacted(answer.text())));
    }
    insta::assert_snapshot!("families", table);
    let mut client = server.connect().await;
    client.send("HEAD", "/health", &[], b"").await;
    assert_eq!(client.head().await.status, 200);
    client.send("GET", "/version", &[], b"").await;
    assert_eq!(client.answer().await.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
}

#[tokio::test]
async fn every_response_has_an_id_of_its_own() {
    let server = Server::start().await;
    let mut ids = HashSet::new();
    let mut num_answers = 0;
    let body = message_body(true).to_string();
    for (method, path, body) in [
        ("GET", "/health", ""),
        ("GET", "/nowhere", ""),
        ("DELETE", "/v1/messages", ""),
        ("POST", "/v1/messages", "{"),
        ("POST", "/v1/messages", &body),
        ("OPTIONS", "/v1/messages", ""),
    ] {
        for _ in 0..3 {
            let answer = server.request(method, path, &[("x-request-id", "mine")], body.as_bytes()).await;
            let id = answer.header("request-id").unwrap();
            assert!(id.starts_with("req_"));
            assert_eq!(answer.header("x-request-id"), Some(id));
            if path == "/v1/messages" && method != "OPTIONS" && answer.status >= 400 {
                assert_eq!(answer.json()["request_id"], json!(id));
            }
            ids.insert(id.to_owned());
            num_answers += 1;
        }
    }
    assert_eq!(ids.len(), num_answers);
}

#[tokio::test]
async fn large_bodies_are_refused_and_the_refusal_is_readable() {
    let server = Server::with(ServerConfig { max_body_bytes: 1000, ..ServerConfig::default() }).await;
    for path in ["/v1/messages", "/v1/chat/completions"] {
        // Declared: answered before the body is sent.
        let mut client = server.connect().await;
        client.send("POST", path, &[("content-length", "1001")], b"").await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 413);
        answer.json();
        // By a client that sends everything before it reads.
        let mut client = server.connect().await;
        let body = vec![b' '; 8 << 20];
        client.send("POST", path, &[("content-length", &body.len().to_string())], &body).await;
        assert_eq!(client.answer().await.status, 413);
        // Chunked, without an end.
        let mut client = server.connect().await;
        client.send("POST", path, &[("transfer-encoding", "chunked")], b"").await;
        let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat();
        for _ in 0..64 {
            client.raw(&chunk).await;
        }
        assert_eq!(client.answer().await.status, 413);
    }
    let exact = vec![b' '; 1000];
    assert_eq!(server.request("POST", "/v1/messages", &[], &exact).await.status, 400);
}

#[tokio::test]
async fn a_refused_key_is_readable_by_a_client_still_sending() {
    let server = Server::with(ServerConfig { api_keys: vec!["k".into()], ..ServerConfig::default() }).await;
    let mut client = server.connect().await;
    let body = vec![b'x'; 8 << 20];
    client.send("POST", "/v1/messages", &[], &body).await;
    assert_eq!(client.answer().await.status, 401);
    client.send("GET", "/health", &[], b"").await;
    assert_eq!(client.answer().await.status, 200, "the connection lives on");
}

#[tokio::test]
async fn connections_are_kept_and_pipelined() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for stream in [false, true, false] {
        client.post("/v1/messages", &message_body(stream)).await;
        assert_eq!(client.answer().await.status, 200);
    }
    let request = "GET /version HTTP/1.1\r\nhost: x\r\n\r\n";
    client.raw(request.repeat(5).as_bytes()).await;
    for _ in 0..5 {
        assert_eq!(client.answer().await.status, 200);
    }
    client.send("GET", "/version", &[("connection", "close")], b"").await;
    assert_eq!(client.answer().await.status, 200);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn clients_that_wait_for_100_continue() {
    let server = Server::with(ServerConfig { max_body_bytes: 1000, ..ServerConfig::default() }).await;
    let body = message_body(false).to_string();
    let mut client = server.connect().await;
    client.send("POST", "/v1/messages", &[("expect", "100-continue"), ("content-length", &body.len().to_string())], b"").await;
    assert_eq!(client.head().await.status, 100);
    client.raw(body.as_bytes()).await;
    assert_eq!(client.answer().await.status, 200);
    let mut client = server.connect().await;
    client.send("POST", "/v1/messages", &[("expect", "100-continue"), ("content-length", "5000")], b"").await;
    assert_eq!(client.answer().await.status, 413);
}

#[tokio::test]
async fn incomplete_headers_are_cut_off() {
    let config = ServerConfig { header_timeout: Duration::from_millis(100), ..ServerConfig::default() };
    let server = Server::with(config).await;
    let mut client = server.connect().await;
    client.raw(b"GET /health HTTP/1.1\r\nhost:").await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn clients_that_shut_their_sending_side_are_answered() {
    let server = Server::start().await;
    for stream in [false, true] {
        let mut client = server.connect().await;
        client.post("/v1/messages", &message_body(stream)).await;
        client.stream.get_mut().shutdown().await.unwrap();
        let answer = client.answer().await;
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("end_turn"));
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn a_client_that_is_gone_aborts_its_request() {
    let server = Server::start().await;
    for path in ["/v1/messages", "/v1/chat/completions", "/v1/completions"] {
        for stream in [false, true] {
            server.backend.push(Reply::Play(vec![started(), text("a"), Step::Hang]));
            let mut client = server.connect().await;
            let mut body = message_body(stream);
            body["prompt"] = "x".into();
            client.post(path, &body).await;
            if stream {
                assert_eq!(client.head().await.status, 200);
                client.chunk().await.unwrap();
            }
            server.backend.live(1).await;
            let gone = Instant::now();
            drop(client);
            timeout(PATIENCE, server.backend.live(0)).await.expect("the stream is dropped");
            assert!(gone.elapsed() < Duration::from_secs(2), "{path} {stream}: {:?}", gone.elapsed());
        }
    }
}

#[tokio::test]
async fn a_reader_that_stalls_blocks_nobody() {
    let server = Server::start().await;
    let mut steps = vec![started()];
    steps.extend((0..2000).map(|_| text(&"x".repeat(10_000))));
    steps.push(Step::Hang);
    server.backend.push(Reply::Play(steps));
    let mut stalled = server.connect().await;
    stalled.post("/v1/messages", &message_body(true)).await;
    server.backend.live(1).await;
    for _ in 0..3 {
        assert_eq!(server.post("/v1/messages", &message_body(false)).await.status, 200);
    }
}

#[tokio::test]
async fn a_panic_is_a_500_and_no_more() {
    let server = Server::start().await;
    let mut client: Client = server.connect().await;
    for (path, kind) in [("/v1/messages", "api_error"), ("/v1/chat/completions", "server_error")] {
        server.backend.push(Reply::Panic);
        client.post(path, &message_body(true)).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (500, Some(kind)));
    }
    client.post("/v1/messages", &message_body(false)).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn pages_of_any_origin_may_call() {
    let server = Server::with(ServerConfig { api_keys: vec!["k".into()], ..ServerConfig::default() }).await;
    let asked =
        [("origin", "http://page"), ("access-control-request-method", "POST"), ("access-control-request-headers", "X-Api-Key, X-New")];
    let answer = server.request("OPTIONS", "/v1/messages", &asked, b"").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, Some("*")));
    assert!(answer.header("access-control-allow-methods").unwrap().contains("POST"));
    let allowed = answer.header("access-control-allow-headers").unwrap();
    for name in ["authorization", "x-api-key", "content-type", "anthropic-version", "X-New"] {
        assert!(allowed.split(", ").any(|known| known == name), "{name}");
    }
    for (headers, status) in [(&[("x-api-key", "k")][..], 200), (&[], 401)] {
        let answer = server.request("GET", "/v1/models", headers, b"").await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (status, Some("*")));
    }
}

#[tokio::test]
async fn origins_can_be_listed() {
    let config = ServerConfig { cors_origins: CorsOrigins::List(vec!["http://a".into()]), ..ServerConfig::default() };
    let server = Server::with(config).await;
    for (origin, expected) in [("http://a", Some("http://a")), ("http://b", None)] {
        let answer = server.request("GET", "/health", &[("origin", origin)], b"").await;
        assert_eq!(answer.header("access-control-allow-origin"), expected);
        assert_eq!(answer.header("vary"), Some("origin"));
    }
}

#[tokio::test]
async fn many_connections_at_once() {
    let server = Arc::new(Server::start().await);
    let tasks: Vec<_> = (0..64)
        .map(|idx| {
            let server = Arc::clone(&server);
            tokio::spawn(async move { server.post("/v1/messages", &message_body(idx % 2 == 0)).await.status })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 200);
    }
    server.backend.live(0).await;
}
