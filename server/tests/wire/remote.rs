//! pagoda in front of pagoda: a front server whose backend is another server, over both APIs.

use std::sync::Arc;
use std::time::Duration;

use pagoda_backends::registry::BackendKind;
use pagoda_backends::remote::{BreakerPolicy, RemoteService, RemoteSettings, RetryPolicy};
use pagoda_backends::{BackendError, GenerateEvent, Prompt, StopReason, ToolChoice, Usage};
use pagoda_server::{ModelSource, ServedModel, ServerConfig};
use serde_json::{Value, json};

use crate::client::Server;
use crate::scripted::{Reply, Scripted, Step, WINDOW};

const KEY: &str = "sk-upstream";

/// Both servers; the backend of the rear one does as the test says.
struct Pair {
    rear: Server,
    front: Server,
}

impl Pair {
    async fn start(kind: BackendKind) -> Pair {
        Pair::with(kind, KEY).await
    }

    async fn with(kind: BackendKind, key: &str) -> Pair {
        let rear = Server::with(ServerConfig { api_keys: vec![KEY.into()], ..ServerConfig::default() }).await;
        let usual = RetryPolicy::default();
        let breaker = BreakerPolicy { max_failures: 100, ..usual.breaker };
        let policy = RetryPolicy { base_wait: Duration::from_millis(1), breaker, ..usual };
        let settings =
            RemoteSettings { api_key: Some(key.into()), policy, ..RemoteSettings::new(kind, format!("http://{}", rear.address)) };
        let backend = Arc::new(RemoteService::new(&settings).unwrap().model("org/model", Some(WINDOW)));
        let model = ServedModel { name: "m".into(), aliases: Vec::new(), backend, created: 1_704_067_200 };
        let front = Server::over(ServerConfig::default(), ModelSource::ready(vec![model]), Arc::new(Scripted::default())).await;
        Pair { rear, front }
    }

    /// Answers of both servers to the same request, without what differs from answer to answer.
    async fn both(&self, path: &str, body: &Value) -> (Value, Value) {
        let key = format!("Bearer {KEY}");
        let direct = self.rear.request("POST", path, &[("authorization", &key)], body.to_string().as_bytes()).await;
        let through = self.front.post(path, body).await;
        assert_eq!((direct.status, direct.header("content-type")), (through.status, through.header("content-type")), "{path} {body}");
        let strip = |text: &str| -> Value { serde_json::from_str(&crate::client::redacted(text).replace("org/model", "m")).unwrap() };
        (strip(direct.text()), strip(through.text()))
    }
}

fn merged(mut body: Value, extra: &Value) -> Value {
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// Requests in both dialects; streamed ones once more.
fn bodies() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "naïve question, STOP here"}]);
    let anthropic = json!({"model": "m", "max_tokens": 100, "messages": messages});
    let chat = json!({"model": "m", "max_tokens": 100, "messages": messages});
    let completion = json!({"model": "m", "max_tokens": 30, "prompt": "some text to echo"});
    let mut bodies = Vec::new();
    for extra in [
        json!({}),
        json!({"stop_sequences": ["STOP"]}),
        json!({"max_tokens": 5, "temperature": 0}),
        json!({"max_tokens": 32000, "system": [{"type": "text", "text": "x-anthropic-billing-header: a"}, {"type": "text", "text": "Be brief."}]}),
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        json!({"metadata": {"user_id": "u"}, "top_k": 3, "top_p": 0.5, "seed": -4}),
    ] {
        bodies.push(("/v1/messages", merged(anthropic.clone(), &extra)));
    }
    for extra in [
        json!({}),
        json!({"stop": "STOP", "n": 2}),
        json!({"max_tokens": 3}),
        json!({"max_tokens": null}),
        json!({"logprobs": true, "top_logprobs": 2}),
        json!({"return_token_ids": true}),
        json!({"logprobs": true, "return_tokens_as_token_ids": true}),
    ] {
        bodies.push(("/v1/chat/completions", merged(chat.clone(), &extra)));
    }
    for extra in [
        json!({}),
        json!({"prompt": [97, 98, 99], "logprobs": 2}),
        json!({"prompt": ["one", "two"], "n": 2}),
        json!({"echo": true, "logprobs": 1}),
        json!({"return_token_ids": true}),
    ] {
        bodies.push(("/v1/completions", merged(completion.clone(), &extra)));
    }
    bodies
}

#[tokio::test]
async fn answers_are_the_same_through_a_server_in_front() {
    for kind in [BackendKind::VllmRemote, BackendKind::RemoteOpenai] {
        let pair = Pair::start(kind).await;
        for (path, body) in bodies() {
            // The first fills the cache of prefixes, so that both others find the same.
            pair.both(path, &body).await;
            let (direct, through) = pair.both(path, &body).await;
            assert_eq!(direct, through, "{kind:?} {path} {body}");
        }
    }
}

/// Text, stop reason and counts of an Anthropic stream; checks its order.
fn anthropic_events(text: &str) -> (String, Value, Value) {
    let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).filter(|name| *name != "ping").collect();
    assert_eq!((names[0], names[names.len() - 1], names[names.len() - 2]), ("message_start", "message_stop", "message_delta"));
    let text = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    let end = &events[events.len() - 2];
    (text, end["delta"].clone(), end["usage"].clone())
}

#[tokio::test]
async fn streams_say_what_whole_answers_say() {
    let pair = Pair::start(BackendKind::VllmRemote).await;
    for (path, body) in bodies().into_iter().filter(|(_, body)| body["echo"].is_null()) {
        pair.front.post(path, &body).await;
        let whole = pair.front.post(path, &body).await.json();
        let streamed = pair.front.post(path, &merged(body.clone(), &json!({"stream": true}))).await;
        if path == "/v1/messages" {
            let (text, delta, usage) = anthropic_events(streamed.text());
            assert_eq!(text, whole["content"][0]["text"].as_str().unwrap(), "{body}");
            assert_eq!((&delta["stop_reason"], &delta["stop_sequence"]), (&whole["stop_reason"], &whole["stop_sequence"]), "{body}");
            assert_eq!(usage, whole["usage"], "{body}");
            let start = streamed.text().lines().nth(1).unwrap();
            let input = format!("\"input_tokens\":{}", whole["usage"]["input_tokens"]);
            assert!(start.contains(&input), "counts at the start: {start}");
        } else {
            let chunks: Vec<Value> =
                streamed.text().lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
            for choice in whole["choices"].as_array().unwrap() {
                let of_choice =
                    || chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()).filter(|part| part["index"] == choice["index"]);
                let text: String = of_choice().filter_map(|part| part["delta"]["content"].as_str().or(part["text"].as_str())).collect();
                assert_eq!(text, choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap(), "{body}");
                let reasons: Vec<&str> = of_choice().filter_map(|part| part["finish_reason"].as_str()).collect();
                assert_eq!(reasons, [choice["finish_reason"].as_str().unwrap()], "{body}");
            }
            assert!(streamed.text().ends_with("data: [DONE]\n\n"));
        }
    }
}

#[tokio::test]
async fn conversations_with_tools_arrive_whole() {
    let pair = Pair::start(BackendKind::VllmRemote).await;
    let body = json!({
        "model": "m", "max_tokens": 50, "system": "Be brief.", "metadata": {"user_id": "someone"},
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": true},
        "messages": [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": [{"type": "text", "text": "so"}, {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [
                {"type": "text", "text": "and?"},
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "broken", "is_error": true, "cache_control": {"type": "ephemeral"}},
            ]},
        ],
    });
    // The rear model calls in its text; the rear server finds the call, the front passes it on.
    let calls = "Yes.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 2}}\n</tool_call>";
    for stream in [false, true] {
        pair.rear.backend.play(vec![
            GenerateEvent::Started { prompt_tokens: 2, cached_tokens: 1, prompt_token_ids: vec![1, 2] },
            GenerateEvent::Delta { choice: 0, text: calls.into(), tokens: Vec::new() },
            GenerateEvent::Finished { choice: 0, reason: StopReason::EndOfTurn },
            GenerateEvent::Done(Usage { prompt_tokens: 2, cached_tokens: 1, completion_tokens: 9 }),
        ]);
        let answer = pair.front.post("/v1/messages", &merged(body.clone(), &json!({"stream": stream}))).await;
        let Prompt::Chat(prompt) = pair.rear.backend.last().prompt else { panic!("a chat") };
        let roles: Vec<(&str, &str)> = prompt.messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
        assert_eq!(roles, [("system", "Be brief."), ("user", "go"), ("assistant", "so"), ("tool", "Error: broken"), ("user", "and?")]);
        assert_eq!(prompt.messages[2].tool_calls[0]["function"], json!({"name": "f", "arguments": {"a": 1}}));
        assert_eq!(
            (prompt.messages[2].tool_calls[0]["id"].as_str(), prompt.messages[3].tool_call_id.as_deref()),
            (Some("toolu_1"), Some("toolu_1"))
        );
        assert_eq!((prompt.tools.len(), prompt.single_tool_call, &prompt.tool_choice), (1, true, &ToolChoice::Auto));
        assert!(!prompt.tools[0].to_string().contains("cache_control"));
        assert_eq!(pair.rear.backend.last().config.user.as_deref(), Some("someone"));
        if stream {
            let (text, delta, usage) = anthropic_events(answer.text());
            assert_eq!((text.as_str(), &delta["stop_reason"], &usage["output_tokens"]), ("Yes.", &json!("tool_use"), &json!(9)));
            assert!(answer.text().contains("\"id\":\"call_"), "the id of the service is kept: {}", answer.text());
        } else {
            let content = &answer.json()["content"];
            assert_eq!((&content[0]["text"], &content[1]["name"], &content[1]["input"]), (&json!("Yes."), &json!("f"), &json!({"a": 2})));
            assert!(content[1]["id"].as_str().unwrap().starts_with("call_"));
        }
    }
}

#[tokio::test]
async fn faults_of_the_rear_server_are_told_in_the_clients_words() {
    let pair = Pair::start(BackendKind::RemoteOpenai).await;
    let message = |content: &str| json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": content}]});
    for (error, num_requests, status, kind, retry_after) in [
        (BackendError::Overloaded { message: "busy".into(), retry_after_s: 9 }, 1, 429, "rate_limit_error", Some("9")),
        (BackendError::Internal("engine died".into()), 3, 502, "api_error", None),
        (BackendError::InvalidRequest { param: Some("n".into()), message: "n is odd".into() }, 1, 400, "invalid_request_error", None),
    ] {
        for stream in [false, true] {
            let before = pair.rear.backend.requests().len();
            (0..num_requests).for_each(|_| pair.rear.backend.push(Reply::Refuse(error.clone())));
            let answer = pair.front.post("/v1/messages", &merged(message("hi"), &json!({"stream": stream}))).await;
            let body = answer.json();
            assert_eq!(
                (answer.status, body["error"]["type"].as_str(), body["type"].as_str()),
                (status, Some(kind), Some("error")),
                "{body}"
            );
            assert_eq!(answer.header("retry-after"), retry_after);
            assert_eq!(pair.rear.backend.requests().len() - before, num_requests);
        }
    }
    let long = pair.front.post("/v1/messages", &message(&"x".repeat(WINDOW))).await;
    let text = long.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(long.status == 400 && text.starts_with("prompt is too long: ") && text.ends_with("tokens > 4095 maximum"), "{text}");

    // In the middle of a stream: an error event, and no end.
    for (path, last) in [("/v1/messages", "message_stop"), ("/v1/chat/completions", "\"finish_reason\":\"stop\"")] {
        pair.rear.backend.push(Reply::Play(vec![
            Step::Event(GenerateEvent::Started { prompt_tokens: 1, cached_tokens: 0, prompt_token_ids: vec![1] }),
            Step::Event(GenerateEvent::Delta { choice: 0, text: "so far".into(), tokens: Vec::new() }),
            Step::Event(GenerateEvent::Failed(BackendError::Internal("out of luck".into()))),
        ]));
        let before = pair.rear.backend.requests().len();
        let answer = pair.front.post(path, &merged(message("hi"), &json!({"stream": true}))).await;
        assert_eq!((answer.status, pair.rear.backend.requests().len() - before), (200, 1), "no second try");
        assert_eq!(answer.text().matches("so far").count(), 1, "{}", answer.text());
        assert!(
            answer.text().contains("out of luck") && answer.text().contains("\"error\"") && !answer.text().contains(last),
            "{}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn a_wrong_key_for_the_rear_server_is_our_fault() {
    let pair = Pair::with(BackendKind::VllmRemote, "sk-wrong-key").await;
    let body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    for path in ["/v1/messages", "/v1/chat/completions"] {
        let answer = pair.front.post(path, &body).await;
        assert_eq!(answer.status, 500);
        assert!(answer.text().contains("refused this server's key") && !answer.text().contains("sk-"), "{}", answer.text());
    }
    let kind = pair.front.post("/v1/messages", &body).await.json()["error"]["type"].clone();
    assert_eq!(kind, "api_error");
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_request_in_the_rear_server() {
    let pair = Pair::start(BackendKind::VllmRemote).await;
    for stream in [true, false] {
        pair.rear.backend.push(Reply::Play(vec![
            Step::Event(GenerateEvent::Started { prompt_tokens: 1, cached_tokens: 0, prompt_token_ids: vec![1] }),
            Step::Event(GenerateEvent::Delta { choice: 0, text: "a".into(), tokens: Vec::new() }),
            Step::Hang,
        ]));
        let mut client = pair.front.connect().await;
        client
            .post(
                "/v1/messages",
                &json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": stream}),
            )
            .await;
        if stream {
            assert_eq!(client.head().await.status, 200);
        }
        pair.rear.backend.live(1).await;
        drop(client);
        let left = tokio::time::timeout(Duration::from_secs(10), pair.rear.backend.live(0)).await;
        left.expect("the rear server stops");
    }
}

#[tokio::test]
async fn tokens_and_counts_come_from_the_rear_server() {
    let pair = Pair::start(BackendKind::RemoteOpenai).await;
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": "count me"}]});
    for (path, body) in [
        ("/v1/messages/count_tokens", chat.clone()),
        ("/tokenize", chat.clone()),
        ("/tokenize", json!({"model": "m", "prompt": "abc", "return_token_strs": true})),
        ("/detokenize", json!({"model": "m", "tokens": [97, 98]})),
    ] {
        let (direct, through) = pair.both(path, &body).await;
        assert_eq!(direct, through);
    }
    let answer = pair.front.post("/detokenize", &json!({"model": "m", "tokens": [4_000_000_000u32]})).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let entry = pair.front.get("/v1/models/m").await.json();
    assert_eq!((&entry["max_model_len"], &entry["capabilities"]["tool_calling"]), (&json!(WINDOW), &json!(true)));
}
