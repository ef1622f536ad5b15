//! Tool calls on both wires: in the request, in whole and in streamed answers.

use pagoda_backends::{GenerateEvent, Prompt, StopReason, Usage};
use serde_json::{Value, json};

use crate::client::Server;

const CALLS: &str = "On it.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"ping\", \"arguments\": {}}\n</tool_call>";

/// A reply in pieces of three bytes, so that every tag is cut.
fn reply(text: &str, reason: StopReason) -> Vec<GenerateEvent> {
    let mut events = vec![GenerateEvent::Started { prompt_tokens: 2, cached_tokens: 0, prompt_token_ids: vec![1, 2] }];
    for piece in text.as_bytes().chunks(3) {
        let text = String::from_utf8(piece.to_vec()).unwrap();
        events.push(GenerateEvent::Delta { choice: 0, text, tokens: Vec::new() });
    }
    events.push(GenerateEvent::Finished { choice: 0, reason });
    events.push(GenerateEvent::Done(Usage { prompt_tokens: 2, cached_tokens: 0, completion_tokens: 5 }));
    events
}

fn weather_schema() -> Value {
    json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
}

fn anthropic(extra: Value) -> Value {
    let tools = json!([{"name": "get_weather", "description": "d", "input_schema": weather_schema()}, {"name": "ping", "input_schema": {"type": "object", "properties": {}}}]);
    merged(json!({"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], "tools": tools}), extra)
}

fn openai(extra: Value) -> Value {
    let tool = |name: &str, schema: Value| json!({"type": "function", "function": {"name": name, "parameters": schema}});
    let tools = json!([tool("get_weather", weather_schema()), tool("ping", json!({"type": "object", "properties": {}}))]);
    merged(json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": tools}), extra)
}

fn merged(mut body: Value, extra: Value) -> Value {
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// `data:` lines of a stream.
fn events(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect()
}

#[tokio::test]
async fn anthropic_calls_whole() {
    let server = Server::start().await;
    server.backend.play(reply(CALLS, StopReason::EndOfTurn));
    let answer = server.post("/v1/messages", &anthropic(json!({}))).await;
    let body: Value = serde_json::from_str(answer.text()).unwrap();
    assert_eq!(body["stop_reason"], "tool_use");
    let content = body["content"].as_array().unwrap();
    assert_eq!(content[0], json!({"type": "text", "text": "On it."}));
    assert_eq!((&content[1]["name"], &content[1]["input"]), (&json!("get_weather"), &json!({"city": "Oslo"})));
    assert_eq!((&content[2]["name"], &content[2]["input"]), (&json!("ping"), &json!({})));
    assert_ne!(content[1]["id"], content[2]["id"]);
    assert!(content[1]["id"].as_str().unwrap().starts_with("toolu_"));
    let Prompt::Chat(chat) = server.backend.last().prompt else { panic!("not a chat") };
    assert_eq!(chat.tools[0]["function"]["parameters"], weather_schema());
}

#[tokio::test]
async fn anthropic_calls_streamed() {
    let server = Server::start().await;
    server.backend.play(reply(CALLS, StopReason::EndOfTurn));
    let answer = server.post("/v1/messages", &anthropic(json!({"stream": true}))).await;
    assert!(!answer.text().contains("tool_call"), "a piece of a tag leaked: {}", answer.text());
    let (mut blocks, mut open, mut reason) = (Vec::<(Value, String)>::new(), None, Value::Null);
    for event in events(answer.text()) {
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                assert_eq!((open, event["index"].as_u64()), (None, Some(blocks.len() as u64)));
                open = event["index"].as_u64();
                blocks.push((event["content_block"].clone(), String::new()));
            }
            "content_block_delta" => {
                assert_eq!(event["index"].as_u64(), open);
                let delta = &event["delta"];
                blocks.last_mut().unwrap().1 += delta["text"].as_str().or(delta["partial_json"].as_str()).unwrap();
            }
            "content_block_stop" => assert_eq!(event["index"].as_u64(), open.take()),
            "message_delta" => reason = event["delta"]["stop_reason"].clone(),
            _ => {}
        }
    }
    assert_eq!((reason, blocks.len()), (json!("tool_use"), 3));
    assert_eq!((&blocks[0].0["type"], blocks[0].1.as_str()), (&json!("text"), "On it."));
    assert_eq!((&blocks[1].0["name"], &blocks[1].0["input"]), (&json!("get_weather"), &json!({})));
    assert_eq!(serde_json::from_str::<Value>(&blocks[1].1).unwrap(), json!({"city": "Oslo"}));
    assert_eq!(serde_json::from_str::<Value>(&blocks[2].1).unwrap(), json!({}));
}

#[tokio::test]
async fn openai_calls_whole_and_streamed() {
    let server = Server::start().await;
    server.backend.play(reply(CALLS, StopReason::EndOfTurn));
    let answer = server.post("/v1/chat/completions", &openai(json!({}))).await;
    let body: Value = serde_json::from_str(answer.text()).unwrap();
    let choice = &body["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &json!("On it.")));
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!((calls.len(), &calls[0]["function"]["name"], &calls[0]["type"]), (2, &json!("get_weather"), &json!("function")));
    assert_eq!(serde_json::from_str::<Value>(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap(), json!({"city": "Oslo"}));

    server.backend.play(reply(CALLS, StopReason::EndOfTurn));
    let answer = server.post("/v1/chat/completions", &openai(json!({"stream": true}))).await;
    let (mut content, mut reason) = (String::new(), Value::Null);
    let mut streamed: Vec<(String, String, String)> = Vec::new();
    for chunk in events(answer.text()) {
        let choice = &chunk["choices"][0];
        content += choice["delta"]["content"].as_str().unwrap_or_default();
        reason = if choice["finish_reason"].is_null() { reason } else { choice["finish_reason"].clone() };
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            if let Some(id) = call["id"].as_str() {
                assert_eq!(call["index"].as_u64(), Some(streamed.len() as u64));
                streamed.push((id.into(), call["function"]["name"].as_str().unwrap().into(), String::new()));
            }
            streamed[call["index"].as_u64().unwrap() as usize].2 += call["function"]["arguments"].as_str().unwrap();
        }
    }
    assert_eq!((content.as_str(), reason), ("On it.", json!("tool_calls")));
    assert_eq!((streamed[0].1.as_str(), streamed[1].1.as_str()), ("get_weather", "ping"));
    assert_eq!(serde_json::from_str::<Value>(&streamed[0].2).unwrap(), json!({"city": "Oslo"}));
    assert_ne!(streamed[0].0, streamed[1].0);
}

#[tokio::test]
async fn choice_none_single_calls_and_cut_answers() {
    let server = Server::start().await;
    let post = async |path: &str, body: Value, reason: StopReason| -> Value {
        server.backend.play(reply(CALLS, reason));
        serde_json::from_str(server.post(path, &body).await.text()).unwrap()
    };
    let none = post("/v1/messages", anthropic(json!({"tool_choice": {"type": "none"}})), StopReason::EndOfTurn).await;
    assert_eq!((&none["content"], &none["stop_reason"]), (&json!([{"type": "text", "text": CALLS}]), &json!("end_turn")));
    let single = json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}});
    let single = post("/v1/messages", anthropic(single), StopReason::EndOfTurn).await;
    assert_eq!(single["content"].as_array().unwrap().iter().filter(|block| block["type"] == "tool_use").count(), 1);
    let cut = post("/v1/messages", anthropic(json!({})), StopReason::MaxTokens).await;
    assert_eq!(cut["stop_reason"], "max_tokens");
    let none = post("/v1/chat/completions", openai(json!({"tool_choice": "none"})), StopReason::EndOfTurn).await;
    assert_eq!((&none["choices"][0]["message"]["content"], &none["choices"][0]["finish_reason"]), (&json!(CALLS), &json!("stop")));
    let single = post("/v1/chat/completions", openai(json!({"parallel_tool_calls": false})), StopReason::EndOfTurn).await;
    assert_eq!(single["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1);
}

/// Calls that the backend itself found: their ids and arguments pass as they are, in pieces where the answer is streamed.
#[tokio::test]
async fn found_calls_pass() {
    let server = Server::start().await;
    let call = |id: &str, name: &str, pieces: &[&str]| {
        let start = GenerateEvent::CallStarted { choice: 0, id: id.into(), name: name.into() };
        let arguments = pieces.iter().map(|text| GenerateEvent::CallArguments { choice: 0, text: text.to_string() });
        std::iter::once(start).chain(arguments).collect::<Vec<_>>()
    };
    let play = |last: &[&str], reason: StopReason| {
        // The text ends in what could have become a tag.
        let mut events = reply("On it. <tool", reason);
        let tail = events.split_off(events.len() - 2);
        events.extend(call("call_7", "get_weather", &["{\"city\":", " \"Oslo\"}"]));
        events.extend(call("call_8", "ping", last));
        events.extend(tail);
        server.backend.play(events);
    };
    play(&[], StopReason::EndOfTurn);
    let body = server.post("/v1/messages", &anthropic(json!({}))).await.json();
    let tool = |id: &str, name: &str, input: Value| json!({"type": "tool_use", "id": id, "name": name, "input": input});
    let text = json!({"type": "text", "text": "On it. <tool"});
    assert_eq!(body["content"], json!([text, tool("call_7", "get_weather", json!({"city": "Oslo"})), tool("call_8", "ping", json!({}))]));
    assert_eq!(body["stop_reason"], "tool_use");

    play(&[], StopReason::EndOfTurn);
    let answer = server.post("/v1/messages", &anthropic(json!({"stream": true}))).await;
    let seen = events(answer.text());
    let of = |kind: &str| seen.iter().filter(|event| event["type"] == kind).cloned().collect::<Vec<_>>();
    let started: Vec<Value> = of("content_block_start").iter().map(|event| event["content_block"].clone()).collect();
    assert_eq!(started[1..], [tool("call_7", "get_weather", json!({})), tool("call_8", "ping", json!({}))]);
    let deltas: Vec<Value> = of("content_block_delta").iter().map(|event| event["delta"].clone()).collect();
    let joined = |key: &str| deltas.iter().filter_map(|delta| delta[key].as_str()).collect::<String>();
    assert_eq!((joined("text"), joined("partial_json")), ("On it. <tool".into(), r#"{"city": "Oslo"}"#.into()));
    assert_eq!((of("content_block_stop").len(), of("message_delta")[0]["delta"]["stop_reason"].as_str()), (3, Some("tool_use")));

    for (stream, last) in [(false, &["{\"a"][..]), (true, &["{\"", "a"])] {
        play(last, StopReason::MaxTokens);
        let answer = server.post("/v1/chat/completions", &openai(json!({"stream": stream}))).await;
        let calls = if stream {
            let mut calls: Vec<(String, String)> = Vec::new();
            for delta in events(answer.text()).iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"][0].as_object()) {
                if let Some(id) = delta.get("id") {
                    calls.push((id.as_str().unwrap().into(), String::new()));
                }
                calls[delta["index"].as_u64().unwrap() as usize].1 += delta["function"]["arguments"].as_str().unwrap();
            }
            calls
        } else {
            let body = answer.json();
            assert_eq!(body["choices"][0]["finish_reason"], "length");
            let calls = body["choices"][0]["message"]["tool_calls"].as_array().unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            calls.iter().map(|call| (text(&call["id"]), text(&call["function"]["arguments"]))).collect()
        };
        assert_eq!(calls, [("call_7".into(), r#"{"city": "Oslo"}"#.into()), ("call_8".into(), "{\"a".to_owned())]);
    }

    // Cut arguments are no object: they stay text.
    play(&["{\"a"], StopReason::MaxTokens);
    let body = server.post("/v1/messages", &anthropic(json!({}))).await.json();
    assert_eq!((&body["content"][2], &body["stop_reason"]), (&json!({"type": "text", "text": "ping({\"a)"}), &json!("max_tokens")));
}

/// What a service behind a backend did wrong, in both families' words.
#[tokio::test]
async fn upstream_faults_have_their_own_statuses() {
    use pagoda_backends::BackendError::{RateLimited, TimedOut, Upstream};
    let server = Server::start().await;
    for (error, status, kinds, retry_after) in [
        (RateLimited { message: "slow down".into(), retry_after_s: 7 }, 429, ["rate_limit_error"; 2], Some("7")),
        (TimedOut("too late".into()), 504, ["timeout_error"; 2], None),
        (Upstream("broken".into()), 502, ["api_error", "server_error"], None),
    ] {
        for (path, kind, body) in [("/v1/messages", kinds[0], anthropic(json!({}))), ("/v1/chat/completions", kinds[1], openai(json!({})))]
        {
            server.backend.push(crate::scripted::Reply::Refuse(error.clone()));
            let answer = server.post(path, &body).await;
            assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (status, Some(kind)), "{path}");
            assert_eq!(answer.header("retry-after"), retry_after);
        }
    }
}
