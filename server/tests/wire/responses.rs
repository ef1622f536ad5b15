//! `/v1/responses`: how bodies become prompts, and what comes back, whole and streamed.

use pagoda_backends::{BackendError, GenerateEvent, Prompt, StopReason, Usage};
use serde_json::{Value, json};

use crate::client::{Server, redacted};
use crate::scripted::Reply;

fn delta(text: &str) -> GenerateEvent {
    GenerateEvent::Delta { choice: 0, text: text.into(), tokens: Vec::new() }
}

fn thought(text: &str) -> GenerateEvent {
    GenerateEvent::Reasoning { choice: 0, text: text.into(), tokens: Vec::new() }
}

fn events(rest: Vec<GenerateEvent>, reason: StopReason) -> Vec<GenerateEvent> {
    let mut events = vec![GenerateEvent::Started { prompt_tokens: 40, prompt_token_ids: Vec::new(), cached_tokens: 32 }];
    events.extend(rest);
    events.push(GenerateEvent::Finished { choice: 0, reason });
    events.push(GenerateEvent::Done(Usage { prompt_tokens: 40, cached_tokens: 32, completion_tokens: 5 }));
    events
}

fn body(stream: bool) -> Value {
    let tool =
        json!({"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}});
    json!({"model": "m", "input": "hi", "stream": stream, "tools": [tool], "temperature": 0.5})
}

#[tokio::test]
async fn transcripts() {
    let call = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
    let found = vec![
        GenerateEvent::CallStarted { choice: 0, id: "call_9".into(), name: "get_weather".into() },
        GenerateEvent::CallArguments { choice: 0, text: "{\"city\":".into() },
        GenerateEvent::CallArguments { choice: 0, text: "\"Oslo\"}".into() },
    ];
    let cases = [
        ("text", vec![delta("Hel"), delta("lo")], StopReason::EndOfTurn),
        ("thought_and_call", vec![thought("Hm"), delta("Let me look."), delta(call)], StopReason::EndOfTurn),
        ("found_call", found, StopReason::EndOfTurn),
        ("cut", vec![delta("Hel")], StopReason::MaxTokens),
        ("nothing", vec![], StopReason::EndOfTurn),
        ("aborted", vec![delta("Hel")], StopReason::Aborted),
    ];
    let server = Server::start().await;
    for (name, rest, reason) in cases {
        server.backend.play(events(rest.clone(), reason.clone()));
        let streamed = server.post("/v1/responses", &body(true)).await;
        assert_eq!((streamed.status, streamed.header("content-type")), (200, Some("text/event-stream")));
        server.backend.play(events(rest, reason));
        let whole = server.post("/v1/responses", &body(false)).await;
        insta::assert_snapshot!(format!("responses_{name}"), redacted(&format!("{}\n{}\n", streamed.text(), whole.text())));
    }
}

/// Events are in order, and the last one holds what the whole answer would have.
#[tokio::test]
async fn streamed_and_whole_agree() {
    let server = Server::start().await;
    let server = &server;
    let answers = [false, true].map(|stream| async move {
        let answer = server.post("/v1/responses", &json!({"model": "m", "input": "some words", "stream": stream})).await;
        answer.text().to_owned()
    });
    let [whole, streamed] = futures_util::future::join_all(answers).await.try_into().unwrap();
    let whole: Value = serde_json::from_str(&whole).unwrap();
    let mut last = Value::Null;
    for (number, frame) in streamed.split("\n\n").filter(|frame| !frame.is_empty()).enumerate() {
        let (name, data) = frame.split_once('\n').unwrap();
        last = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!((name.strip_prefix("event: "), last["sequence_number"].as_u64()), (last["type"].as_str(), Some(number as u64)));
    }
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.completed"), &json!("completed")));
    assert_eq!(last["response"]["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(last["response"]["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
}

#[tokio::test]
async fn bodies_become_prompts() {
    let server = Server::start().await;
    let body = json!({
        "model": "m", "instructions": "be brief", "max_output_tokens": 50, "top_p": 0.5, "store": true, "metadata": {"a": "b"},
        "reasoning": {"effort": "none"}, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "include": [], "service_tier": "auto",
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}],
        "input": [
            {"role": "developer", "content": "more rules"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Calling.", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"x\": 1}"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
            {"role": "assistant", "content": "First."}, {"role": "assistant", "content": "Second."},
            {"role": "user", "content": "and?"}]});
    let answer = server.post("/v1/responses", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let repeated = answer.json();
    assert_eq!((&repeated["instructions"], &repeated["metadata"]), (&json!("be brief"), &json!({"a": "b"})));
    let request = server.backend.last();
    assert_eq!((request.config.max_tokens, request.config.top_p), (Some(50), 0.5));
    let Prompt::Chat(chat) = request.prompt else { panic!("a chat") };
    let outline: Vec<(&str, &str)> = chat.messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
    let expected = [
        ("system", "be brief"),
        ("system", "more rules"),
        ("user", "a\nb"),
        ("assistant", "Calling."),
        ("tool", "one"),
        ("tool", "two"),
        ("assistant", "First."),
        ("assistant", "Second."),
        ("user", "and?"),
    ];
    assert_eq!(outline, expected);
    assert_eq!(chat.messages[3].reasoning.as_deref(), Some("hm"));
    let calls: Vec<&Value> = chat.messages[3].tool_calls.iter().map(|call| &call["function"]["arguments"]).collect();
    assert_eq!(calls, [&json!({"x": 1}), &json!({})]);
    assert_eq!(chat.tools[0]["function"]["name"], json!("f"));
    assert_eq!((&chat.template_kwargs["reasoning_effort"], &chat.template_kwargs["enable_thinking"]), (&json!("none"), &json!(false)));
}

#[tokio::test]
async fn wrong_bodies_name_the_field() {
    let server = Server::start().await;
    for (field, value, param) in [
        ("input", json!(null), "input"),
        ("input", json!([]), "input"),
        ("input", json!([{"role": "tool", "content": "x"}]), "input[0].role"),
        ("input", json!([{"type": "item_reference", "id": "x"}]), "input[0].type"),
        ("input", json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]), "input[0].content[0].type"),
        ("max_output_tokens", json!(0), "max_output_tokens"),
        ("temperature", json!(3), "temperature"),
        ("previous_response_id", json!("resp_1"), "previous_response_id"),
        ("background", json!(true), "background"),
        ("tools", json!([{"type": "web_search"}]), "tools[0].type"),
        ("text", json!({"format": {"type": "xml"}}), "text.format.type"),
        ("reasoning", json!({"effort": 3}), "reasoning.effort"),
        ("truncation", json!("half"), "truncation"),
    ] {
        let mut body = json!({"model": "m", "input": "x"});
        body[field] = value.clone();
        let answer = server.post("/v1/responses", &body).await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{field} {value}: {error}");
        assert!(error["message"].as_str().unwrap().starts_with(param), "{error}");
    }
    server.backend.push(Reply::Refuse(BackendError::PromptTooLong { prompt_tokens: 9, max_tokens: 8 }));
    let answer = server.post("/v1/responses", &json!({"model": "m", "input": "x"})).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert_eq!(server.post("/v1/responses", &json!({"model": "none", "input": "x"})).await.status, 404);
    assert_eq!(server.get("/v1/responses/resp_1").await.status, 404);
}
