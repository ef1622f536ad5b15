//! Overload, failure, silence, broken and nonsensical answers, keys, clients that leave.

use std::time::Duration;

use futures_util::StreamExt;
use pagoda_backends::registry::BackendKind;
use pagoda_backends::remote::{BreakerPolicy, RemoteService, RemoteSettings};
use pagoda_backends::{BackendError, InferenceBackend};
use serde_json::json;
use tokio::net::TcpListener;

use crate::upstream::{KEY, Piece, Reply, Upstream, event, finish, remote, settings, text, usage};
use crate::{ask, question, stream};

fn answer(status: u16, headers: &'static str) -> Reply {
    Reply::Answer(status, headers, json!({"error": {"message": format!("because of {status}")}}).to_string())
}

fn good(upstream: &Upstream) {
    upstream.play(&[text("fine"), finish("stop"), usage(3, 0, 2)]);
}

#[tokio::test]
async fn overload_and_failures_are_retried() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    for replies in [
        vec![answer(429, "retry-after: 0\r\n")],
        vec![answer(429, ""), answer(500, "")],
        vec![answer(503, "retry-after-ms: 20\r\n"), Reply::Close],
        vec![answer(529, ""), answer(408, "")],
        vec![Reply::Stream(vec![Piece::Cut])],
        vec![Reply::Stream(vec![]), Reply::Stream(vec![Piece::Chunk("data: {\"cho".into()), Piece::Cut])],
    ] {
        let before = upstream.seen().len();
        let num_replies = replies.len();
        replies.into_iter().for_each(|reply| upstream.push(reply));
        good(&upstream);
        let output = ask(&remote).await.unwrap();
        assert_eq!((output.choices[0].text.as_str(), output.usage.completion_tokens), ("fine", 2));
        assert_eq!(upstream.seen().len() - before, num_replies + 1);
    }
}

#[tokio::test]
async fn retries_end_with_the_services_own_status() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    let message = |status: u16| format!("the vLLM server behind this model answered HTTP {status}: because of {status}");
    for (status, headers, num_requests, expected) in [
        (429, "", 3, BackendError::RateLimited { message: message(429), retry_after_s: 1 }),
        (429, "retry-after: 17\r\n", 1, BackendError::RateLimited { message: message(429), retry_after_s: 17 }),
        (503, "retry-after: 2.5\r\n", 1, BackendError::Overloaded { message: message(503), retry_after_s: 3 }),
        (500, "", 3, BackendError::Upstream(message(500))),
        (504, "", 3, BackendError::TimedOut(message(504))),
        (404, "", 1, BackendError::Upstream(message(404))),
        (400, "", 1, BackendError::InvalidRequest { param: None, message: "because of 400".into() }),
        (302, "location: http://127.0.0.1:9/\r\n", 1, BackendError::Upstream(message(302))),
    ] {
        let before = upstream.seen().len();
        (0..num_requests).for_each(|_| upstream.push(answer(status, headers)));
        assert_eq!(ask(&remote).await.unwrap_err(), expected);
        assert_eq!(upstream.seen().len() - before, num_requests, "{status} {headers}");
    }
}

#[tokio::test]
async fn a_refused_connection_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let remote = RemoteService::new(&settings(BackendKind::RemoteOpenai, &url)).unwrap().model("up", None);
    let Err(BackendError::Upstream(message)) = ask(&remote).await else { panic!("no answer can come") };
    assert!(message.starts_with("the service behind this model cannot be reached: ") && message.contains("refused"), "{message}");
    assert!(!message.contains("127.0.0.1"), "{message}");
}

#[tokio::test]
async fn silence_is_a_timeout_and_is_not_retried() {
    let upstream = Upstream::start().await;
    let impatient = RemoteSettings { timeout: Duration::from_millis(150), ..settings(BackendKind::VllmRemote, &upstream.url) };
    let remote = RemoteService::new(&impatient).unwrap().model("up", Some(4096));
    for reply in [Reply::Hang, Reply::Stream(vec![Piece::Hang]), Reply::Stream(vec![event(&text("so far")), Piece::Hang])] {
        upstream.push(reply);
        let Err(BackendError::TimedOut(message)) = ask(&remote).await else { panic!("nothing came") };
        assert_eq!(message, "the vLLM server behind this model sent nothing for 0.15 s");
    }
    assert_eq!(upstream.seen().len(), 3);
    upstream.gone(3).await;
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_never_replayed() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    for end in [vec![Piece::Cut], vec![], vec![Piece::Chunk("data: {\"choi".into())], vec![Piece::Chunk("data: [DONE]\n\n".into())]] {
        let before = upstream.seen().len();
        upstream.push(Reply::Stream([event(&text("so ")), event(&text("far"))].into_iter().chain(end).collect()));
        let (text, error) = stream(&remote).await;
        assert_eq!(text, "so far");
        assert!(matches!(&error, Some(BackendError::Upstream(message)) if message.contains("broke off")), "{error:?}");
        assert_eq!(upstream.seen().len() - before, 1);
    }
    // Once every choice has ended, nothing is missing.
    for end in [vec![Piece::Cut], vec![]] {
        upstream.push(Reply::Stream([event(&text("all")), event(&finish("stop"))].into_iter().chain(end).collect()));
        assert_eq!(stream(&remote).await, ("all".into(), None));
    }
}

#[tokio::test]
async fn nonsense_is_told_apart() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    let error = |message: &str| json!({"error": {"message": message, "type": "server_error"}});
    for (chunk, expected) in [
        ("data: no json\n\n".to_owned(), "sent an event that is no JSON"),
        ("data: {\"choices\":[{\"index\":7,\"delta\":{}}]}\n\n".into(), "sent a choice that was not asked for"),
        (format!("data: {}\n\n", error("out of memory")), "failed: out of memory"),
        (format!("data: {}", "x".repeat(17 << 20)), "sent an event of more than"),
    ] {
        let before = upstream.seen().len();
        upstream.push(Reply::Stream(vec![event(&text("a")), Piece::Chunk(chunk), Piece::Hang]));
        let (text, error) = stream(&remote).await;
        let message = error.expect("a fault").to_string();
        assert!(text == "a" && message.contains(expected), "{text}, {message}");
        assert_eq!(upstream.seen().len() - before, 1);
    }
    upstream.push(Reply::Answer(200, "", "<html>".into()));
    assert!(ask(&remote).await.unwrap_err().to_string().contains("no JSON"));
    // Events of any size below the bound pass, in pieces of any size.
    let long = "long ".repeat(1 << 18);
    upstream.play(&[text(&long), finish("stop"), usage(1, 0, 1)]);
    assert_eq!(stream(&remote).await, (long, None));
}

#[tokio::test]
async fn the_key_is_sent_and_never_shown() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    let leak = json!({"error": {"message": format!("wrong key {KEY}"), "param": null}}).to_string();
    for status in [400, 401, 403, 404, 429, 500] {
        (0..3).for_each(|_| upstream.push(Reply::Answer(status, "", leak.clone())));
        let before = upstream.seen().len();
        let error = ask(&remote).await.unwrap_err();
        assert!(!error.to_string().contains(KEY), "{error}");
        assert_eq!(matches!(error, BackendError::Internal(_)), matches!(status, 401 | 403), "{error}");
        // What is left of the prepared replies.
        for _ in upstream.seen().len() - before..3 {
            let _ = ask(&remote).await;
        }
    }
    upstream.push(Reply::Stream(vec![event(&text("a")), Piece::Chunk(format!("data: {leak}\n\n"))]));
    let (_, error) = stream(&remote).await;
    let message = error.expect("a fault").to_string();
    assert!(message.contains("wrong key ***"), "{message}");
    assert!(upstream.seen().iter().all(|seen| seen.headers.contains(&format!("Bearer {KEY}"))));
    assert!(!format!("{:?}", settings(BackendKind::VllmRemote, &upstream.url)).contains(KEY));
    let unusable = RemoteSettings { api_key: Some(format!("{KEY}\n")), ..settings(BackendKind::VllmRemote, &upstream.url) };
    let Err(error) = RemoteService::new(&unusable) else { panic!("no header holds it") };
    let message = error.to_string();
    assert!(message.starts_with("--vllm-remote-api-key: ") && !message.contains(KEY), "{message}");
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_request() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    upstream.push(Reply::Stream(vec![event(&text("a")), Piece::Hang]));
    let mut events = remote.generate_stream(question(&remote)).await.unwrap();
    events.next().await.expect("started");
    assert_eq!(remote.stats().num_running, 1);
    drop(events);
    upstream.gone(1).await;
    assert_eq!(remote.stats().num_running, 0);
    // Before the service took it.
    upstream.push(Reply::Hang);
    let waited = tokio::time::timeout(Duration::from_millis(100), remote.generate_stream(question(&remote))).await;
    assert!(waited.is_err());
    upstream.gone(2).await;
    assert_eq!(remote.stats().num_running, 0);
}

#[tokio::test]
async fn connections_are_used_again() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    for _ in 0..5 {
        good(&upstream);
        ask(&remote).await.unwrap();
        // The end of the last stream is read aside.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((upstream.seen().len(), upstream.num_connections()), (5, 1));
}

#[tokio::test]
async fn a_service_that_keeps_failing_is_left_alone_for_a_while() {
    let upstream = Upstream::start().await;
    let mut settings = settings(BackendKind::VllmRemote, &upstream.url);
    let ms = Duration::from_millis;
    settings.policy.max_retries = 0;
    settings.policy.breaker = BreakerPolicy { max_failures: 2, cooldown: ms(300), max_cooldown: ms(300) };
    let remote = RemoteService::new(&settings).unwrap().model("up", Some(4096));
    for _ in 0..3 {
        upstream.push(answer(400, ""));
        ask(&remote).await.unwrap_err();
    }
    (0..2).for_each(|_| upstream.push(answer(500, "")));
    for _ in 0..2 {
        assert!(matches!(ask(&remote).await, Err(BackendError::Upstream(_))), "refusals do not count");
    }
    let Err(BackendError::Overloaded { message, retry_after_s: 1 }) = ask(&remote).await else { panic!("held back") };
    assert!(message.contains("failed several times in a row"), "{message}");
    assert_eq!(upstream.seen().len(), 5, "nothing was sent");
    tokio::time::sleep(ms(320)).await;
    upstream.push(answer(500, ""));
    assert!(matches!(ask(&remote).await, Err(BackendError::Upstream(_))), "the probe");
    assert!(matches!(ask(&remote).await, Err(BackendError::Overloaded { .. })));
    tokio::time::sleep(ms(320)).await;
    for _ in 0..2 {
        good(&upstream);
        ask(&remote).await.unwrap();
    }
}
