//! `/v1/messages` and `count_tokens`.

use pagoda_backends::{BackendError, GenerateEvent, Prompt, StopReason, Usage};
use serde_json::{Value, json};

use crate::client::{Server, redacted};
use crate::scripted::{Reply, Step};

fn delta(text: &str) -> GenerateEvent {
    GenerateEvent::Delta { choice: 0, text: text.into(), tokens: Vec::new() }
}

fn started() -> GenerateEvent {
    GenerateEvent::Started { prompt_tokens: 40, cached_tokens: 32, prompt_token_ids: (0..40).collect() }
}

fn reply(texts: &[&str], reason: StopReason) -> Vec<GenerateEvent> {
    let mut events = vec![started()];
    events.extend(texts.iter().map(|text| delta(text)));
    events.push(GenerateEvent::Finished { choice: 0, reason });
    events.push(GenerateEvent::Done(Usage { prompt_tokens: 40, cached_tokens: 32, completion_tokens: 5 }));
    events
}

fn body(stream: bool) -> Value {
    json!({"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], "stream": stream})
}

#[tokio::test]
async fn transcripts() {
    let cases = [
        ("text", vec!["Hel", "", "lo ", "wörld\n"], StopReason::EndOfTurn),
        ("stop_sequence", vec!["a"], StopReason::StopSequence("END".into())),
        ("max_tokens", vec!["a"], StopReason::MaxTokens),
        ("context_full", vec!["a"], StopReason::ContextFull),
        ("nothing", vec![], StopReason::EndOfTurn),
        ("aborted", vec!["a"], StopReason::Aborted),
    ];
    let server = Server::start().await;
    for (name, texts, reason) in cases {
        server.backend.play(reply(&texts, reason.clone()));
        let streamed = server.post("/v1/messages", &body(true)).await;
        assert_eq!(streamed.status, 200);
        assert_eq!(streamed.header("content-type"), Some("text/event-stream"));
        assert_eq!(streamed.header("cache-control"), Some("no-cache"));
        assert_eq!(streamed.header("content-length"), None);
        assert!(streamed.chunks.iter().all(|chunk| chunk.ends_with("\n\n") && chunk.matches("\ndata: ").count() == 1));
        server.backend.play(reply(&texts, reason));
        let whole = server.post("/v1/messages", &body(false)).await;
        insta::assert_snapshot!(format!("messages_{name}"), redacted(&format!("{}\n{}\n", streamed.text(), whole.text())));
    }
}

#[tokio::test]
async fn faults() {
    let refusals = [
        BackendError::InvalidRequest { param: Some("seed".into()), message: "seed: no".into() },
        BackendError::PromptTooLong { prompt_tokens: 40961, max_tokens: 32768 },
        BackendError::Overloaded { message: "queue is full".into(), retry_after_s: 7 },
        BackendError::Unavailable("the engine is shutting down".into()),
        BackendError::ModelNotFound("m".into()),
        BackendError::Unsupported("seed".into()),
        BackendError::Internal("engine died".into()),
    ];
    let server = Server::start().await;
    let mut table = String::new();
    for path in ["/v1/messages", "/v1/chat/completions", "/v1/completions"] {
        for error in &refusals {
            let mut bodies = Vec::new();
            for stream in [false, true] {
                server.backend.push(Reply::Refuse(error.clone()));
                server.backend.push(Reply::Play(vec![Step::Event(GenerateEvent::Failed(error.clone()))]));
                for _ in 0..2 {
                    let mut body = body(stream);
                    body["prompt"] = "x".into();
                    let answer = server.post(path, &body).await;
                    assert_eq!(answer.header("content-type"), Some("application/json"));
                    let retry = answer.header("retry-after").unwrap_or("-");
                    bodies.push(redacted(&format!("{} {retry} {}", answer.status, answer.text())));
                }
            }
            assert!(bodies.iter().all(|body| *body == bodies[0]), "stream or not, first event or refusal: {bodies:#?}");
            table.push_str(&format!("{path} {}\n", bodies[0]));
        }
    }
    insta::assert_snapshot!("faults", table);
}

#[tokio::test]
async fn faults_in_the_middle() {
    let server = Server::start().await;
    let mut transcript = String::new();
    for path in ["/v1/messages", "/v1/chat/completions", "/v1/completions"] {
        let mut body = body(true);
        body["prompt"] = "x".into();
        let fault = GenerateEvent::Failed(BackendError::Internal("engine died".into()));
        server.backend.play(vec![started(), delta("a"), fault]);
        transcript.push_str(&format!("{path}\n{}\n", server.post(path, &body).await.text()));
        server.backend.play(vec![started(), delta("a")]);
        transcript.push_str(&format!("{path}, cut\n{}\n", server.post(path, &body).await.text()));
    }
    insta::assert_snapshot!("faults_in_the_middle", redacted(&transcript));
}

/// The prompt and config a body becomes.
async fn converted(server: &Server, body: Value) -> pagoda_backends::ChatPrompt {
    let answer = server.post("/v1/messages", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    match server.backend.last().prompt {
        Prompt::Chat(chat) => chat,
        other => panic!("{other:?}"),
    }
}

fn outline(chat: &pagoda_backends::ChatPrompt) -> Vec<(String, String)> {
    chat.messages.iter().map(|message| (message.role.clone(), message.content.clone())).collect()
}

#[tokio::test]
async fn claude_code_bodies() {
    let server = Server::start().await;
    let body = json!({
        "model": "m", "max_tokens": 32000, "stream": false, "metadata": {"user_id": "{\"device\":\"x\"}"},
        "thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {"effort": "high"}, "tools": [],
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330.f41; cc_entrypoint=sdk-cli;"},
            {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Rules.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "run it"}]},
            {"role": "system", "content": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "AA"},
                {"type": "text", "text": "Running."}, {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}]},
            {"role": "user", "content": [
                {"type": "text", "text": "here"},
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "hello", "is_error": false, "cache_control": {"type": "ephemeral"}},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": [{"type": "text", "text": "no"}], "is_error": true}]},
            {"role": "user", "content": "more"},
            {"role": "system", "content": "be kind"}]});
    let answer =
        server.request("POST", "/v1/messages?beta=true", &[("anthropic-version", "2023-06-01")], body.to_string().as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let Prompt::Chat(chat) = server.backend.last().prompt else { panic!("not a chat") };
    let expected = [
        ("system", "You are an agent.\nRules."),
        ("user", "<reminder>\nrun it"),
        ("system", "be brief"),
        ("assistant", "Running."),
        ("tool", "hello"),
        ("tool", "Error: no"),
        ("user", "here\nmore"),
        ("system", "be kind"),
    ];
    assert_eq!(outline(&chat), expected.map(|(role, content)| (role.to_owned(), content.to_owned())));
    assert_eq!(chat.messages[3].reasoning.as_deref(), Some("hm"));
    assert_eq!(
        chat.messages[3].tool_calls,
        [json!({"id": "toolu_1", "type": "function", "function": {"name": "Bash", "arguments": {"command": "ls"}}})]
    );
    assert_eq!((chat.messages[4].tool_call_id.as_deref(), chat.messages[4].name.as_deref()), (Some("toolu_1"), Some("Bash")));
    assert!(chat.add_generation_prompt && !chat.continue_final_message);
}

#[tokio::test]
async fn prefill_is_continued() {
    let server = Server::start().await;
    let messages = |prefill: &str| json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": prefill}]);
    let chat = converted(&server, json!({"model": "m", "max_tokens": 5, "messages": messages("The answer")})).await;
    assert!(!chat.add_generation_prompt && chat.continue_final_message);
    let chat = converted(&server, json!({"model": "m", "max_tokens": 5, "messages": messages("")})).await;
    assert!(chat.add_generation_prompt && !chat.continue_final_message && chat.messages.len() == 1);
}

#[tokio::test]
async fn system_as_string_and_block_are_the_same() {
    let server = Server::start().await;
    let mut body = body(false);
    body["system"] = "Be brief.".into();
    let string = outline(&converted(&server, body.clone()).await);
    body["system"] = json!([{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]);
    assert_eq!(string, outline(&converted(&server, body).await));
}

#[tokio::test]
async fn counts_equal_usage() {
    let server = Server::start().await;
    let prefix = "a long prefix ".repeat(20);
    let mut body = body(false);
    body["system"] = prefix.into();
    let mut counted = body.clone();
    counted.as_object_mut().unwrap().remove("max_tokens");
    let count = server.post("/v1/messages/count_tokens", &counted).await.json()["input_tokens"].as_u64().unwrap();
    let mut cached = Vec::new();
    for _ in 0..2 {
        let usage = server.post("/v1/messages", &body).await.json()["usage"].clone();
        let field = |name: &str| usage[name].as_u64().unwrap();
        let sum = field("input_tokens") + field("cache_read_input_tokens") + field("cache_creation_input_tokens");
        assert_eq!(sum, count);
        cached.push(field("cache_read_input_tokens"));
    }
    assert!(cached[0] == 0 && cached[1] > 200, "{cached:?}");
    assert_eq!(server.backend.requests().len(), 2, "counting generates nothing");

    counted["tools"] =
        json!([{"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}]);
    let with_tool = server.post("/v1/messages/count_tokens", &counted).await.json()["input_tokens"].as_u64().unwrap();
    let rendered = r#"{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"}}}"#;
    assert_eq!(with_tool, count + rendered.len() as u64 + 1);
}

#[tokio::test]
async fn extras_reach_the_backend() {
    let server = Server::start().await;
    let mut body = body(false);
    for (name, value) in [
        ("temperature", json!(0)),
        ("top_p", json!(0.5)),
        ("top_k", json!(-1)),
        ("seed", json!(-1)),
        ("min_p", json!(0.25)),
        ("repetition_penalty", json!(1.5)),
        ("ignore_eos", json!(true)),
        ("min_tokens", json!(2)),
        ("stop_sequences", json!(["x", " \n"])),
        ("chat_template_kwargs", json!({"enable_thinking": false})),
        ("max_tokens", json!(9_000_000_000_i64)),
        ("cache_salt", json!("tenant")),
    ] {
        body[name] = value;
    }
    let chat = converted(&server, body).await;
    assert_eq!(chat.template_kwargs["enable_thinking"], json!(false));
    let config = server.backend.last().config;
    assert_eq!((config.temperature, config.top_p, config.top_k, config.min_p), (0.0, 0.5, None, 0.25));
    assert_eq!((config.seed, config.repetition_penalty, config.ignore_eos, config.min_tokens), (Some(u64::MAX), 1.5, true, 2));
    assert_eq!((config.stop_sequences, config.max_tokens), (vec!["x".to_owned(), " \n".to_owned()], Some(u32::MAX)));
    assert_ne!(config.cache_salt, 0);
}

#[tokio::test]
async fn thinking() {
    let server = Server::start().await;
    let thought = |text: &str| GenerateEvent::Reasoning { choice: 0, text: text.into(), tokens: Vec::new() };
    let events = |rest: Vec<GenerateEvent>| {
        let end = [
            GenerateEvent::Finished { choice: 0, reason: StopReason::EndOfTurn },
            GenerateEvent::Done(Usage { prompt_tokens: 40, cached_tokens: 32, completion_tokens: 5 }),
        ];
        [vec![started()], rest, end.to_vec()].concat()
    };
    let mut transcript = String::new();
    for (name, rest) in [
        ("thought and answered", vec![thought("Let"), thought(""), thought(" me see."), delta("Four"), delta(".")]),
        ("only thought", vec![thought("Hm")]),
    ] {
        for path in ["/v1/messages", "/v1/chat/completions"] {
            for stream in [true, false] {
                server.backend.play(events(rest.clone()));
                transcript.push_str(&format!("{name}, {path}\n{}\n", server.post(path, &body(stream)).await.text()));
            }
        }
    }
    insta::assert_snapshot!("thinking", redacted(&transcript));
}

#[tokio::test]
async fn thinking_is_a_switch_of_the_template() {
    let server = Server::start().await;
    let cases = [
        (json!({}), false),
        (json!({"thinking": {"type": "disabled"}}), false),
        (json!({"thinking": {"type": "adaptive", "display": "omitted"}}), true),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}), true),
        (json!({"thinking": {"type": "adaptive"}, "chat_template_kwargs": {"enable_thinking": false, "thinking": false}}), false),
    ];
    for (extra, wanted) in cases {
        let mut body = body(false);
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let kwargs = converted(&server, body).await.template_kwargs;
        assert_eq!((&kwargs["enable_thinking"], &kwargs["thinking"]), (&json!(wanted), &json!(wanted)), "{extra}");
    }
}
