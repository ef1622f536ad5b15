//! Wrong fields: one row, one body; each must be a 400 that names the field, on every route that knows it.

use serde_json::{Value, json};

use crate::client::Server;

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// (route, field, value, start of the message)
fn rows() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let mut rows = Vec::new();
    let generating = [MESSAGES, CHAT, COMPLETIONS];
    for (field, value) in shared() {
        rows.extend(generating.map(|route| (route, field, value.clone(), field)));
    }
    rows.extend(anthropic().into_iter().map(|(field, value, message)| (MESSAGES, field, value, message)));
    for (field, value, message) in prompts() {
        rows.push((MESSAGES, field, value.clone(), message));
        rows.push((COUNT, field, value, message));
    }
    for (field, value) in openai() {
        rows.extend([CHAT, COMPLETIONS].map(|route| (route, field, value.clone(), field)));
    }
    rows.extend(chat().into_iter().map(|(field, value, message)| (CHAT, field, value, message)));
    rows.extend(completions().into_iter().map(|(field, value)| (COMPLETIONS, field, value, field)));
    rows
}

fn shared() -> Vec<(&'static str, Value)> {
    vec![
        ("model", json!(5)),
        ("model", json!("")),
        ("model", json!(null)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(true)),
        ("max_tokens", json!("10")),
        ("max_tokens", json!(5.0)),
        ("max_tokens", json!(18_446_744_073_709_551_615_u64)),
        ("temperature", json!("hot")),
        ("temperature", json!(-0.1)),
        ("temperature", json!(3)),
        ("temperature", json!(true)),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_p", json!([])),
        ("top_k", json!(-2)),
        ("top_k", json!(1.5)),
        ("min_p", json!(-0.5)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        ("repetition_penalty", json!("x")),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-3)),
        ("seed", json!("x")),
        ("seed", json!(1.5)),
        ("seed", json!(9_223_372_036_854_775_808_u64)),
        ("min_tokens", json!(-1)),
        ("min_tokens", json!(1_000_000)),
        ("ignore_eos", json!("yes")),
        ("stop_token_ids", json!([-1])),
        ("stop_token_ids", json!([4_294_967_296_u64])),
        ("stop_token_ids", json!("x")),
        ("bad_words", json!([""])),
        ("bad_words", json!("x")),
        ("priority", json!("high")),
        ("cache_salt", json!("")),
        ("cache_salt", json!(5)),
        ("include_stop_str_in_output", json!(1)),
        ("skip_special_tokens", json!(0)),
        ("stream", json!("true")),
        ("stream", json!(1)),
        ("structured_outputs", json!("json")),
        ("structured_outputs", json!({})),
        ("structured_outputs", json!({"choice": []})),
        ("structured_outputs", json!({"choice": "a"})),
        ("structured_outputs", json!({"choice": ["a", 5]})),
        ("structured_outputs", json!({"json": 5})),
        ("structured_outputs", json!({"json": "{"})),
        ("structured_outputs", json!({"regex": ""})),
        ("structured_outputs", json!({"grammar": ["a"]})),
        ("structured_outputs", json!({"json_object": "yes"})),
        ("structured_outputs", json!({"structural_tag": "no json"})),
        ("structured_outputs", json!({"regex": "a", "choice": ["a"]})),
        ("structured_outputs", json!({"regex": "a", "whitespace_pattern": " "})),
        ("structured_outputs", json!({"regex": "a", "disable_any_whitespace": "x"})),
        ("guided_json", json!([])),
        ("guided_regex", json!(5)),
        ("guided_choice", json!([""])),
        ("guided_grammar", json!({})),
        ("guided_json_object", json!(1)),
        ("guided_decoding_backend", json!(5)),
        ("guided_whitespace_pattern", json!(" ")),
        ("use_beam_search", json!(true)),
    ]
}

fn anthropic() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("max_tokens", json!(null), "max_tokens: field required"),
        ("stop_sequences", json!("x"), "stop_sequences"),
        ("stop_sequences", json!([1]), "stop_sequences[0]"),
        ("stop_sequences", json!([""]), "stop_sequences[0]"),
        ("stop_sequences", json!(vec!["x"; 129]), "stop_sequences"),
        ("metadata", json!("x"), "metadata"),
        ("metadata", json!({"user_id": 5}), "metadata.user_id"),
        ("thinking", json!({"type": "enabled"}), "thinking.budget_tokens"),
        ("thinking", json!({"type": "enabled", "budget_tokens": 1023}), "thinking.budget_tokens"),
        ("thinking", json!({"type": "enabled", "budget_tokens": 5000}), "thinking.budget_tokens"),
        ("thinking", json!({"type": "deep"}), "thinking.type"),
        ("output_config", json!({"format": {"type": "json_schema"}}), "output_config.format.schema: field required"),
        ("output_config", json!({"format": {"type": "json_schema", "schema": 5}}), "output_config.format.schema"),
        ("output_config", json!({"format": {"type": "xml"}}), "output_config.format.type"),
        ("output_config", json!({"format": "json"}), "output_config.format"),
        ("output_config", json!({"effort": 5}), "output_config.effort"),
        ("output_format", json!({"type": "json_schema"}), "output_format.schema: field required"),
        ("logit_bias", json!({"1": 1}), "logit_bias"),
        ("tool_choice", json!({"type": "any"}), "tool_choice"),
        ("tool_choice", json!({"type": "tool", "name": "f"}), "tool_choice"),
        ("tool_choice", json!({"type": "some"}), "tool_choice.type"),
        ("tool_choice", json!("auto"), "tool_choice"),
    ]
}

/// Wrong prompts, which generation and counting refuse alike.
fn prompts() -> Vec<(&'static str, Value, &'static str)> {
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let assistant = |block: Value| json!([{"role": "assistant", "content": [block]}]);
    let image = json!({"type": "image", "source": {}});
    let result = json!({"type": "tool_result", "tool_use_id": "t", "content": [image]});
    vec![
        ("messages", json!(null), "messages: field required"),
        ("messages", json!([]), "messages"),
        ("messages", json!("hi"), "messages"),
        ("messages", json!(["hi"]), "messages[0]"),
        ("messages", json!([{"content": "x"}]), "messages[0].role"),
        ("messages", json!([{"role": "robot", "content": "x"}]), "messages[0].role"),
        ("messages", json!([{"role": "user"}]), "messages[0].content: field required"),
        ("messages", user(json!(5)), "messages[0].content"),
        ("messages", user(json!([5])), "messages[0].content[0]"),
        ("messages", user(json!([{"text": "x"}])), "messages[0].content[0].type"),
        ("messages", user(json!([{"type": "text"}])), "messages[0].content[0].text"),
        ("messages", user(json!([{"type": "text", "text": 5}])), "messages[0].content[0].text"),
        ("messages", user(json!([{"type": "hologram"}])), "messages[0].content[0].type"),
        ("messages", user(json!([image])), "messages[0].content[0].type: images are not supported"),
        ("messages", user(json!([{"type": "document"}])), "messages[0].content[0].type: documents are not supported"),
        ("messages", user(json!([result])), "messages[0].content[0].content[0].type: images are not supported"),
        ("messages", user(json!([{"type": "tool_result", "content": "x"}])), "messages[0].content[0].tool_use_id"),
        ("messages", user(json!([{"type": "tool_use", "id": "t", "name": "f", "input": {}}])), "messages[0].content[0].type"),
        ("messages", assistant(json!({"type": "tool_use", "id": "t", "name": "f"})), "messages[0].content[0].input"),
        ("messages", assistant(json!({"type": "tool_use", "id": "t", "name": "f", "input": "{}"})), "messages[0].content[0].input"),
        ("messages", assistant(json!({"type": "tool_use", "name": "f", "input": {}})), "messages[0].content[0].id"),
        ("system", json!(5), "system"),
        ("system", json!([{"type": "image"}]), "system[0].type"),
        ("tools", json!({}), "tools"),
        ("tools", json!([{"name": "a b", "input_schema": {}}]), "tools[0].name"),
        ("tools", json!([{"name": "f"}]), "tools[0].input_schema"),
        ("tools", json!([{"name": "f", "input_schema": {}, "strict": "yes"}]), "tools[0].strict"),
        ("tools", json!([{"name": "f", "input_schema": []}]), "tools[0].input_schema"),
        ("tools", json!([{"name": "f", "input_schema": {}}, {"name": "f", "input_schema": {}}]), "tools[1].name"),
        ("tools", json!([{"type": "web_search_20250305", "name": "web_search"}]), "tools[0].type: server tools"),
        ("chat_template_kwargs", json!("x"), "chat_template_kwargs"),
    ]
}

fn openai() -> Vec<(&'static str, Value)> {
    vec![
        ("n", json!(0)),
        ("n", json!(129)),
        ("n", json!("2")),
        ("stop", json!(5)),
        ("stop", json!("")),
        ("stop", json!([""])),
        ("stop", json!([5])),
        ("logit_bias", json!([])),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"1": 101})),
        ("logit_bias", json!({"1": "x"})),
        ("logit_bias", json!({"-1": 1})),
        ("stream_options", json!({"include_usage": true})),
        ("prompt_logprobs", json!(-1)),
        ("prompt_logprobs", json!(21)),
        ("return_token_ids", json!("x")),
        ("return_tokens_as_token_ids", json!(1)),
        ("user", json!(5)),
        ("response_format", json!({"type": "json_schema"})),
        ("response_format", json!({"type": "json_schema", "json_schema": {"schema": {}}})),
        ("response_format", json!({"type": "json_schema", "json_schema": {"name": "x"}})),
        ("response_format", json!({"type": "json_schema", "json_schema": {"name": "x", "schema": [], "strict": true}})),
        ("response_format", json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": 1}})),
        ("response_format", json!({"type": "xml"})),
        ("response_format", json!("text")),
        ("truncate_prompt_tokens", json!(5)),
    ]
}

fn chat() -> Vec<(&'static str, Value, &'static str)> {
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    vec![
        ("messages", json!(null), "messages: field required"),
        ("messages", json!([]), "messages"),
        ("messages", json!([{"role": "robot", "content": "x"}]), "messages[0].role"),
        ("messages", user(json!(null)), "messages[0].content: field required"),
        ("messages", user(json!(5)), "messages[0].content"),
        ("messages", user(json!([{"type": "image_url", "image_url": {"url": "x"}}])), "messages[0].content[0].type: images"),
        ("messages", user(json!([{"type": "input_audio", "input_audio": {}}])), "messages[0].content[0].type: audio"),
        ("messages", json!([{"role": "assistant", "content": null}]), "messages[0].content"),
        ("messages", json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
        ("messages", json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].function"),
        ("max_completion_tokens", json!(0), "max_completion_tokens"),
        ("logprobs", json!(5), "logprobs"),
        ("top_logprobs", json!(5), "top_logprobs: needs logprobs"),
        ("top_logprobs", json!(21), "top_logprobs"),
        ("tools", json!([{"type": "function", "function": {"name": "f", "strict": 1}}]), "tools[0].function.strict"),
        ("tools", json!([{}]), "tools[0].type"),
        ("tools", json!("x"), "tools"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}}), "tool_choice"),
        ("tool_choice", json!(5), "tool_choice"),
        ("functions", json!([]), "functions"),
        ("parallel_tool_calls", json!("x"), "parallel_tool_calls"),
        ("modalities", json!(["text", "audio"]), "modalities"),
        ("continue_final_message", json!(true), "continue_final_message"),
        ("add_generation_prompt", json!("x"), "add_generation_prompt"),
    ]
}

fn completions() -> Vec<(&'static str, Value)> {
    vec![
        ("prompt", json!(null)),
        ("prompt", json!(5)),
        ("prompt", json!([])),
        ("prompt", json!([[]])),
        ("prompt", json!(["a", 5])),
        ("prompt", json!([1, "a"])),
        ("prompt", json!([-1])),
        ("prompt", json!([1.5])),
        ("prompt", json!([true])),
        ("prompt", json!([[1], ["a"]])),
        ("prompt", json!(vec!["a"; 1025])),
        ("logprobs", json!(6)),
        ("logprobs", json!(-1)),
        ("logprobs", json!(true)),
        ("suffix", json!("x")),
        ("best_of", json!(0)),
        ("best_of", json!(3)),
        ("echo", json!("x")),
    ]
}

fn good(route: &str) -> Value {
    match route {
        COMPLETIONS => json!({"model": "m", "prompt": "hi", "max_tokens": 4096}),
        COUNT => json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
        _ => json!({"model": "m", "max_tokens": 4096, "messages": [{"role": "user", "content": "hi"}]}),
    }
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let mut faults = Vec::new();
    for (route, field, value, message) in rows() {
        let mut body = good(route);
        body[field] = value;
        client.post(route, &body).await;
        let answer = client.answer().await;
        let error = &answer.json()["error"];
        let said = error["message"].as_str().unwrap_or_default();
        let param_fits = route == MESSAGES || route == COUNT || error["param"].as_str().is_some_and(|param| param.starts_with(field));
        if answer.status != 400 || error["type"] != "invalid_request_error" || !said.starts_with(message) || !param_fits {
            faults.push(format!("{route} {field} {}: {} {}", body[field], answer.status, answer.text()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(server.backend.requests().is_empty(), "nothing wrong reaches the backend");
}

#[tokio::test]
async fn bodies_that_are_no_objects() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let bomb = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let deep_object = [b"{\"a\":".repeat(10_000), b"1".to_vec(), b"}".repeat(10_000)].concat();
    let bodies: Vec<&[u8]> = vec![
        b"",
        b"  ",
        b"{",
        b"[]",
        b"\"x\"",
        b"null",
        b"5",
        b"{\"model\": \"m\",}",
        b"{\"model\": NaN}",
        b"{\"temperature\": Infinity}",
        b"{\"temperature\": 1e999}",
        b"{\"model\": \"\xff\xfe\"}",
        b"{\"model\": \"\\ud800\"}",
        b"{} {}",
        b"\x00",
        &bomb,
        &deep_object,
    ];
    for route in [MESSAGES, COUNT, CHAT, COMPLETIONS, "/tokenize", "/detokenize"] {
        for body in &bodies {
            client.send("POST", route, &[], body).await;
            let answer = client.answer().await;
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
            assert_eq!(answer.status, 400, "{route} {shown}");
            assert_eq!(answer.json()["error"]["type"], json!("invalid_request_error"));
        }
    }
}

#[tokio::test]
async fn unknown_and_null_fields_are_ignored() {
    let server = Server::start().await;
    for route in [MESSAGES, COUNT, CHAT, COMPLETIONS] {
        let mut body = good(route);
        for field in ["new_field", "mcp_servers", "service_tierx", "verbosity"] {
            body[field] = json!({"any": ["thing", 1]});
        }
        for field in ["temperature", "top_p", "stop", "tools", "tool_choice", "seed", "stream", "stream_options", "logprobs", "suffix", "n"]
        {
            body[field] = json!(null);
        }
        let answer = server.post(route, &body).await;
        assert_eq!(answer.status, 200, "{route} {}", answer.text());
    }
    let twice = br#"{"model": "m", "prompt": "a", "max_tokens": 1, "max_tokens": 2}"#;
    assert_eq!(server.request("POST", COMPLETIONS, &[], twice).await.status, 200);
    for route in [MESSAGES, COUNT, CHAT, COMPLETIONS] {
        let mut body = good(route);
        body["model"] = "gpt-unknown".into();
        let answer = server.post(route, &body).await;
        assert_eq!(answer.status, 404);
        let kind = &answer.json()["error"][if route.starts_with(MESSAGES) { "type" } else { "code" }];
        assert_eq!(kind, if route.starts_with(MESSAGES) { "not_found_error" } else { "model_not_found" });
    }
}

#[test]
fn parsers_survive_cut_bodies() {
    let bodies = rows().into_iter().map(|(route, field, value, _)| {
        let mut body = good(route);
        body[field] = value;
        body.to_string()
    });
    for body in bodies {
        for len in (0..=body.len()).step_by(7) {
            let cut = &body.as_bytes()[..len];
            let _ = pagoda_server::fuzzing::parse_messages_body(cut);
            let _ = pagoda_server::fuzzing::parse_count_body(cut);
            let _ = pagoda_server::fuzzing::parse_chat_body(cut);
            let _ = pagoda_server::fuzzing::parse_completion_body(cut);
            let _ = pagoda_server::fuzzing::parse_tokenize_body(cut);
        }
    }
}
