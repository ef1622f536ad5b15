//! `/v1/chat/completions`.

use pagoda_backends::{GenerateEvent, Prompt, StopReason, Usage};
use serde_json::{Value, json};

use crate::client::{Server, redacted};
use crate::scripted::token;

fn body(extra: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi é"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn transcripts() {
    let cases = [
        ("plain", json!({})),
        ("usage", json!({"stream_options": {"include_usage": true}})),
        ("continuous_usage", json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}, "max_tokens": 2})),
        ("two_choices", json!({"n": 2, "max_completion_tokens": 2})),
        ("stop", json!({"stop": "i"})),
        ("logprobs", json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 2})),
        ("token_ids", json!({"return_token_ids": true, "return_tokens_as_token_ids": true, "logprobs": true, "max_tokens": 1})),
    ];
    for (name, extra) in cases {
        let server = Server::start().await;
        let mut streamed = body(extra.clone());
        streamed["stream"] = true.into();
        let streamed = server.post("/v1/chat/completions", &streamed).await;
        assert_eq!(streamed.header("content-type"), Some("text/event-stream"));
        assert!(streamed.chunks.iter().all(|chunk| chunk.starts_with("data: ") && chunk.matches("\n\n").count() == 1));
        let mut plain = extra;
        plain.as_object_mut().unwrap().remove("stream_options");
        let whole = server.post("/v1/chat/completions", &body(plain)).await;
        insta::assert_snapshot!(format!("chat_{name}"), redacted(&format!("{}\n{}\n", streamed.text(), whole.text())));
    }
}

#[tokio::test]
async fn text_that_lags_behind_tokens_is_not_lost() {
    let server = Server::start().await;
    let event = |text: &str, tokens| GenerateEvent::Delta { choice: 0, text: text.into(), tokens };
    server.backend.play(vec![
        GenerateEvent::Started { prompt_tokens: 2, cached_tokens: 0, prompt_token_ids: vec![1, 2] },
        event("", vec![token(97, Some(0))]),
        event("ab", vec![token(98, Some(0))]),
        event("c", vec![]),
        GenerateEvent::Finished { choice: 0, reason: StopReason::StopToken(98) },
        GenerateEvent::Done(Usage { prompt_tokens: 2, cached_tokens: 0, completion_tokens: 2 }),
    ]);
    let answer = server.post("/v1/chat/completions", &body(json!({"stream": true, "logprobs": true}))).await;
    let chunks: Vec<Value> = answer.chunks.iter().filter_map(|chunk| serde_json::from_str(&chunk[6..]).ok()).collect();
    let deltas = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), "abc");
    let entries = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(entries.flatten().map(|entry| entry["token"].as_str().unwrap()).collect::<String>(), "ab");
    let last = &chunks[chunks.len() - 1]["choices"][0];
    assert_eq!((last["finish_reason"].as_str(), last["stop_reason"].as_u64()), (Some("stop"), Some(98)));
}

#[tokio::test]
async fn messages_are_converted() {
    let server = Server::start().await;
    let messages = json!([
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "q", "name": "ann"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
            {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}},
            {"id": "call_3", "type": "function", "function": {"name": "h", "arguments": "not json"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "r"},
        {"role": "assistant", "content": "So", "reasoning_content": "hm"}]);
    let extra = json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": false,
                       "chat_template_kwargs": {"k": 1}, "tools": null, "tool_choice": "auto", "user": "u", "store": true});
    let answer = server.post("/v1/chat/completions", &body(extra)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let Prompt::Chat(chat) = server.backend.last().prompt else { panic!("not a chat") };
    let roles: Vec<&str> = chat.messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
    assert_eq!(chat.messages[0].content, "a\nb");
    assert_eq!(chat.messages[1].name.as_deref(), Some("ann"));
    let arguments: Vec<&Value> = chat.messages[2].tool_calls.iter().map(|call| &call["function"]["arguments"]).collect();
    assert_eq!(arguments, [&json!({"x": 1}), &json!({}), &json!("not json")]);
    assert_eq!(chat.messages[3].tool_call_id.as_deref(), Some("call_1"));
    assert_eq!(chat.messages[4].reasoning.as_deref(), Some("hm"));
    assert!(chat.continue_final_message && !chat.add_generation_prompt);
    assert_eq!(chat.template_kwargs["k"], json!(1));
}

#[tokio::test]
async fn fields_reach_the_backend() {
    let server = Server::start().await;
    let extra = json!({"temperature": 1.5, "stop": ["a", "b"], "seed": 7, "n": 2, "logit_bias": {"5": -100, "6": 1.5}, "presence_penalty": -2,
        "frequency_penalty": 2, "bad_words": ["w"], "stop_token_ids": [3], "priority": -4, "include_stop_str_in_output": true,
        "skip_special_tokens": false, "min_tokens": 1, "top_logprobs": 0, "stream_options": null, "prompt_logprobs": 1});
    let answer = server.post("/v1/chat/completions", &body(extra)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.json()["prompt_logprobs"][0].is_null() && answer.json()["prompt_logprobs"][1].is_object());
    let config = server.backend.last().config;
    assert_eq!((config.temperature, config.n, config.seed, config.max_tokens), (1.5, 2, Some(7), None));
    assert_eq!((config.stop_sequences.join(","), config.logit_bias), ("a,b".to_owned(), vec![(5, -100.0), (6, 1.5)]));
    assert_eq!((config.presence_penalty, config.frequency_penalty, config.priority), (-2.0, 2.0, -4));
    assert_eq!((config.bad_words, config.stop_token_ids), (vec!["w".to_owned()], vec![3]));
    assert!(config.include_stop_str && !config.skip_special_tokens);
    assert_eq!((config.logprobs, config.prompt_logprobs, config.min_tokens), (None, Some(1), 1));
}
