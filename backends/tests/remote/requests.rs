//! What is sent and how answers are read: parameters, tool calls, counts, tokens, lists of models.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use pagoda_backends::registry::BackendKind;
use pagoda_backends::remote::{Remote, RemoteService};
use pagoda_backends::{
    BackendError, ChatMessage, ChatPrompt, FoundCall, GenerateEvent, GenerateRequest, GenerationConfig, InferenceBackend, Prompt,
    StopReason, ToolChoice, Usage,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::upstream::{Piece, Reply, Upstream, event, finish, remote, settings, text, usage};
use crate::{ask, question};

fn last_body(upstream: &Upstream) -> Value {
    upstream.seen().last().expect("a request").body.clone()
}

fn chat(prompt: ChatPrompt, config: GenerationConfig) -> GenerateRequest {
    GenerateRequest { prompt: Prompt::Chat(prompt), config }
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: content.into(), ..ChatMessage::default() }
}

/// A remote_openai backend over the service's model `gpt`.
fn openai(upstream: &Upstream) -> Remote {
    RemoteService::new(&settings(BackendKind::RemoteOpenai, &upstream.url)).unwrap().model("gpt", Some(100_000))
}

#[tokio::test]
async fn only_what_a_client_said_is_sent() {
    let upstream = Upstream::start().await;
    let (vllm, openai) = (remote(&upstream), openai(&upstream));
    let plain = |model: &str, options: Value| {
        let messages = json!([{"role": "user", "content": "hi"}]);
        json!({"model": model, "messages": messages, "max_tokens": 10, "stream": true, "stream_options": options})
    };
    for (remote, expected) in [
        (&vllm, plain("up", json!({"include_usage": true, "continuous_usage_stats": true}))),
        (&openai, plain("gpt", json!({"include_usage": true}))),
    ] {
        upstream.play(&[text("ok"), finish("stop")]);
        ask(remote).await.unwrap();
        assert_eq!(last_body(&upstream), expected);
        assert_eq!(upstream.seen().last().unwrap().line, "POST /v1/chat/completions HTTP/1.1");
    }
}

/// A conversation with calls, and every parameter that is not at its default.
fn everything(defaults: GenerationConfig) -> (ChatPrompt, GenerationConfig) {
    let config = GenerationConfig {
        max_tokens: None,
        temperature: 0.7,
        top_p: 0.9,
        top_k: None,
        stop_sequences: vec!["END".into()],
        seed: Some(-3i64 as u64),
        n: 2,
        logprobs: Some(2),
        logit_bias: vec![(5, -1.5)],
        ignore_eos: true,
        min_tokens: 3,
        user: Some("u".into()),
        cache_salt: 255,
        ..defaults
    };
    let mut answer = ChatMessage { reasoning: Some("hm".into()), ..message("assistant", "") };
    answer.tool_calls = vec![json!({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}})];
    let result = ChatMessage { tool_call_id: Some("call_1".into()), name: Some("f".into()), ..message("tool", "7") };
    let prompt = ChatPrompt {
        messages: vec![message("user", "hi"), answer, result, message("assistant", "So")],
        tools: vec![json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})],
        continue_final_message: true,
        template_kwargs: BTreeMap::from([("enable_thinking".into(), json!(false))]),
        tool_choice: ToolChoice::Function("f".into()),
        single_tool_call: true,
        ..ChatPrompt::default()
    };
    (prompt, config)
}

#[tokio::test]
async fn what_a_client_said_is_sent() {
    let upstream = Upstream::start().await;
    let (vllm, openai) = (remote(&upstream), openai(&upstream));
    let (prompt, config) = everything(vllm.default_config());
    for (remote, is_vllm) in [(&vllm, true), (&openai, false)] {
        let mut second = finish("stop");
        second["choices"][0]["index"] = 1.into();
        upstream.play(&[finish("stop"), second]);
        remote.generate(chat(prompt.clone(), config.clone())).await.unwrap();
        let body = last_body(&upstream);
        let call = json!({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}});
        let mut sent = json!({"role": "assistant", "content": null, "tool_calls": [call]});
        let mut result = json!({"role": "tool", "content": "7", "tool_call_id": "call_1"});
        if is_vllm {
            (sent["reasoning_content"], result["name"]) = (json!("hm"), json!("f"));
        }
        let messages = json!([{"role": "user", "content": "hi"}, sent, result, {"role": "assistant", "content": "So"}]);
        for (key, expected) in [
            ("messages", messages),
            ("max_tokens", Value::Null),
            ("temperature", json!(0.7)),
            ("top_p", json!(0.9)),
            ("top_k", json!(-1)),
            ("stop", json!(["END"])),
            ("seed", json!(-3)),
            ("n", json!(2)),
            ("logprobs", json!(true)),
            ("top_logprobs", json!(2)),
            ("logit_bias", json!({"5": -1.5})),
            ("ignore_eos", json!(true)),
            ("min_tokens", json!(3)),
            ("user", json!("u")),
            ("cache_salt", json!("00000000000000ff")),
            ("tool_choice", json!({"type": "function", "function": {"name": "f"}})),
            ("parallel_tool_calls", json!(false)),
            ("continue_final_message", json!(true)),
            ("add_generation_prompt", json!(false)),
            ("chat_template_kwargs", json!({"enable_thinking": false})),
            ("repetition_penalty", Value::Null),
            ("presence_penalty", Value::Null),
        ] {
            assert_eq!(body[key], expected, "{key}");
        }
    }
}

/// A limit that no prompt leaves room for is no limit; the service takes the rest of its window.
#[tokio::test]
async fn a_limit_beyond_the_window_is_left_out() {
    let upstream = Upstream::start().await;
    let vllm = remote(&upstream);
    upstream.play(&[text("ok"), finish("length"), usage(3, 0, 1)]);
    let mut request = question(&vllm);
    request.config.max_tokens = Some(32000);
    let output = vllm.generate(request).await.unwrap();
    assert_eq!((&last_body(&upstream)["max_tokens"], &output.choices[0].reason), (&Value::Null, &StopReason::ContextFull));
}

#[tokio::test]
async fn reasons_and_counts() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    let stopped = |reason: &str, stop_reason: Value| {
        let mut chunk = finish(reason);
        chunk["choices"][0]["stop_reason"] = stop_reason;
        chunk
    };
    for (end, completion, expected) in [
        (finish("stop"), 4, StopReason::EndOfTurn),
        (stopped("stop", json!("END")), 4, StopReason::StopSequence("END".into())),
        (stopped("stop", json!(7)), 4, StopReason::StopToken(7)),
        (finish("length"), 10, StopReason::MaxTokens),
        (finish("length"), 9, StopReason::ContextFull),
        (finish("abort"), 4, StopReason::Aborted),
        (finish("content_filter"), 4, StopReason::EndOfTurn),
    ] {
        upstream.play(&[text("a"), text("b"), end, usage(20, 16, completion)]);
        let output = ask(&remote).await.unwrap();
        assert_eq!((output.choices[0].text.as_str(), &output.choices[0].reason), ("ab", &expected));
        assert_eq!(output.usage, Usage { prompt_tokens: 20, cached_tokens: 16, completion_tokens: completion });
    }
    // Counts that come with every chunk: the prompt's are known at the start, and tokens without a name are counted.
    let counted = |mut chunk: Value, completion: usize| {
        chunk["usage"] = usage(20, 16, completion)["usage"].clone();
        chunk
    };
    upstream.play(&[counted(text(""), 0), counted(text("abc"), 3), counted(finish("stop"), 4), usage(20, 16, 4)]);
    let events: Vec<GenerateEvent> = remote.generate_stream(question(&remote)).await.unwrap().collect().await;
    assert!(matches!(events[0], GenerateEvent::Started { prompt_tokens: 20, cached_tokens: 16, .. }), "{events:?}");
    let num_tokens: Vec<usize> = events
        .iter()
        .filter_map(|event| match event {
            GenerateEvent::Delta { tokens, .. } => Some(tokens.len()),
            _ => None,
        })
        .collect();
    assert_eq!(num_tokens, [3, 1]);
    // A service that never counts: one token a chunk, and the documented estimate of the prompt.
    upstream.play(&[text("a"), text("b"), finish("stop")]);
    assert_eq!(ask(&remote).await.unwrap().usage, Usage { prompt_tokens: 5, cached_tokens: 0, completion_tokens: 2 });
}

#[tokio::test]
async fn pieces_come_as_they_are_sent() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    let gate = Arc::new(Notify::new());
    let end = [event(&finish("stop")), Piece::Chunk("data: [DONE]\n\n".into())];
    upstream.push(Reply::Stream([event(&text("a")), Piece::Wait(Arc::clone(&gate)), event(&text("b"))].into_iter().chain(end).collect()));
    let mut events = remote.generate_stream(question(&remote)).await.unwrap();
    assert!(matches!(events.next().await, Some(GenerateEvent::Started { .. })));
    assert!(matches!(events.next().await, Some(GenerateEvent::Delta { text, .. }) if text == "a"));
    assert!(tokio::time::timeout(Duration::from_millis(50), events.next()).await.is_err(), "nothing more was sent");
    gate.notify_one();
    assert!(matches!(events.next().await, Some(GenerateEvent::Delta { text, .. }) if text == "b"));
    assert_eq!(events.count().await, 2, "an end, and the counts");
}

fn call(delta: Value) -> Value {
    json!({"choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]})
}

#[tokio::test]
async fn tool_calls_pass() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    let found = |id: &str, name: &str, arguments: &str| FoundCall { id: id.into(), name: name.into(), arguments: arguments.into() };
    let first = call(json!({"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": ""}}));
    let more = |index: u32, arguments: &str| call(json!({"index": index, "function": {"arguments": arguments}}));
    let second = call(json!({"index": 1, "id": "call_b", "function": {"name": "g", "arguments": "{}"}}));
    let both = [found("call_a", "f", "{\"a\": 1}"), found("call_b", "g", "{}")];
    upstream.play(&[
        text("On it."),
        first.clone(),
        more(0, "{\"a\":"),
        more(0, " 1}"),
        second.clone(),
        finish("tool_calls"),
        usage(1, 0, 9),
    ]);
    let output = ask(&remote).await.unwrap();
    assert_eq!((output.choices[0].text.as_str(), &output.choices[0].calls[..]), ("On it.", &both[..]));
    assert_eq!(output.choices[0].reason, StopReason::EndOfTurn);

    let mut request = question(&remote);
    let Prompt::Chat(prompt) = &mut request.prompt else { panic!("a chat") };
    prompt.single_tool_call = true;
    upstream.play(&[first.clone(), more(0, "{\"a\": 1}"), second.clone(), more(1, "x"), finish("tool_calls")]);
    assert_eq!(remote.generate(request).await.unwrap().choices[0].calls, both[..1], "one call was allowed");

    // Without ids, without indexes, with arguments as an object.
    let bare = |name: &str, arguments: Value| call(json!({"function": {"name": name, "arguments": arguments}}));
    upstream.play(&[bare("f", json!({"a": 1})), bare("g", json!("{}")), finish("tool_calls")]);
    let calls = &ask(&remote).await.unwrap().choices[0].calls;
    assert_eq!((calls[0].name.as_str(), calls[0].arguments.as_str(), calls[1].name.as_str()), ("f", "{\"a\":1}", "g"));
    assert!(!calls[0].id.is_empty() && calls[0].id != calls[1].id);

    for (chunks, expected) in [
        (vec![more(0, "{}")], "a tool call without a name"),
        (vec![first.clone(), second.clone(), more(0, "{}")], "pieces of several tool calls at once"),
    ] {
        upstream.play(&chunks);
        assert!(ask(&remote).await.unwrap_err().to_string().contains(expected));
    }
}

#[tokio::test]
async fn refusals_that_can_be_answered_are() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    let refuse = |message: &str| upstream.push(Reply::Answer(400, "", json!({"error": {"message": message}}).to_string()));
    let good = || upstream.play(&[text("ok"), finish("length"), usage(3000, 0, 5)]);
    // No parser of tool calls there: the text is parsed here, from now on at once.
    let mut request = question(&remote);
    let Prompt::Chat(prompt) = &mut request.prompt else { panic!("a chat") };
    prompt.tools = vec![json!({"type": "function", "function": {"name": "f"}})];
    refuse("\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set");
    for num_requests in [2, 3] {
        good();
        remote.generate(request.clone()).await.unwrap();
        assert_eq!((&last_body(&upstream)["tool_choice"], upstream.seen().len()), (&json!("none"), num_requests));
    }
    // Another name for the limit.
    refuse("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.");
    good();
    ask(&remote).await.unwrap();
    assert_eq!(last_body(&upstream)["max_completion_tokens"], json!(10));
    // Prompt and answer do not fit together: the answer gets what is left.
    let mut request = question(&remote);
    request.config.max_tokens = Some(2000);
    refuse(
        "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum context length is 4096 tokens and your request has 3000 input tokens (2000 > 4096 - 3000).",
    );
    good();
    let output = remote.generate(request.clone()).await.unwrap();
    assert_eq!((&last_body(&upstream)["max_completion_tokens"], &output.choices[0].reason), (&json!(1096), &StopReason::ContextFull));
    // The prompt alone does not.
    refuse("This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.");
    let error = remote.generate(request).await.unwrap_err();
    assert_eq!(error.to_string(), "prompt is too long: 5000 tokens > 4096 maximum");
    // Words of a client change nothing.
    refuse("bad name: \"auto\" tool choice requires --enable-auto-tool-choice");
    assert!(matches!(ask(&remote).await, Err(BackendError::InvalidRequest { .. })));
}

#[tokio::test]
async fn counting_asks_the_service_or_estimates() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    let prompt = question(&remote).prompt;
    let tokens = json!({"count": 3, "max_model_len": 4096, "tokens": [7, 8, 9], "token_strs": ["a", null, "c"]}).to_string();
    let answer = || upstream.push(Reply::Answer(200, "", tokens.clone()));
    answer();
    assert_eq!(remote.count_tokens(&prompt).await, Ok(3));
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(seen.line, "POST /tokenize HTTP/1.1");
    assert_eq!(seen.body, json!({"messages": [{"role": "user", "content": "hi"}], "model": "up"}));
    answer();
    assert_eq!(remote.tokenize(&prompt).await, Ok(vec![7, 8, 9]));
    answer();
    assert_eq!(remote.token_strs(&prompt, &[7, 8, 9]).await, Ok(vec![Some("a".into()), None, Some("c".into())]));
    upstream.push(Reply::Answer(200, "", json!({"prompt": "abc"}).to_string()));
    assert_eq!(remote.detokenize(&[7, 8]).await, Ok("abc".into()));
    assert_eq!(last_body(&upstream), json!({"model": "up", "tokens": [7, 8]}));
    assert_eq!(remote.count_tokens(&Prompt::Tokens(vec![1, 2])).await, Ok(2), "ids need no service");
    upstream.push(Reply::Answer(404, "", "no such route".into()));
    assert_eq!(remote.count_tokens(&prompt).await, Ok(5), "the estimate");
    let num_requests = upstream.seen().len();
    assert_eq!(remote.count_tokens(&prompt).await, Ok(5));
    assert!(matches!(remote.tokenize(&prompt).await, Err(BackendError::Unsupported(_))));
    assert_eq!(upstream.seen().len(), num_requests, "asked once");
}

#[tokio::test]
async fn completions_with_logprobs_of_the_prompt() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    let entry = |logprob: f32, rank: u32, text: &str| json!({"logprob": logprob, "rank": rank, "decoded_token": text});
    let choice = json!({
        "index": 0, "text": "c", "finish_reason": "length", "token_ids": [30], "prompt_token_ids": [10, 20],
        "prompt_logprobs": [null, {"20": entry(-0.5, 1, "b")}],
        "logprobs": {"tokens": ["c"], "token_logprobs": [-0.25], "top_logprobs": [{"c": -0.25}], "text_offset": [0]},
    });
    let body = json!({"object": "text_completion", "choices": [choice], "usage": usage(2, 0, 1)["usage"]});
    upstream.push(Reply::Answer(200, "", body.to_string()));
    let config = GenerationConfig { max_tokens: Some(1), logprobs: Some(1), prompt_logprobs: Some(1), ..remote.default_config() };
    let prompt = Prompt::Text { text: "ab".into(), add_special_tokens: true };
    let output = remote.generate(GenerateRequest { prompt, config }).await.unwrap();
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(seen.line, "POST /v1/completions HTTP/1.1");
    let sent = json!({"model": "up", "prompt": "ab", "logprobs": 1, "max_tokens": 1, "prompt_logprobs": 1, "return_token_ids": true});
    assert_eq!(seen.body, sent);
    assert_eq!(output.prompt_token_ids, [10, 20]);
    assert_eq!((output.prompt_logprobs[0].id, output.prompt_logprobs[0].logprob, output.prompt_logprobs.len()), (20, Some(-0.5), 1));
    let token = &output.choices[0].tokens[0];
    assert_eq!((token.id, token.text.as_str(), token.logprob, token.top.len()), (30, "c", Some(-0.25), 1));
    assert_eq!((output.choices[0].text.as_str(), &output.choices[0].reason), ("c", &StopReason::MaxTokens));
}

#[tokio::test]
async fn models_and_windows_come_from_the_service() {
    let upstream = Upstream::start().await;
    let service = RemoteService::new(&settings(BackendKind::RemoteOpenai, &upstream.url)).unwrap();
    let list =
        json!({"object": "list", "data": [{"id": "a", "max_model_len": 100}, {"id": "b", "context_window": 200}, {"id": "c"}]}).to_string();
    upstream.push(Reply::Answer(200, "", list.clone()));
    let models = service.models().await.unwrap();
    let pairs: Vec<(&str, Option<usize>)> = models.iter().map(|model| (model.id.as_str(), model.max_model_len)).collect();
    assert_eq!(pairs, [("a", Some(100)), ("b", Some(200)), ("c", None)]);
    assert_eq!(upstream.seen()[0].line, "GET /v1/models HTTP/1.1");
    // A window that was not known at the start is asked for once the service answers.
    let remote = service.model("b", None);
    assert_eq!(remote.capabilities().max_context_length, 0);
    upstream.play(&[text("ok"), finish("stop")]);
    upstream.push(Reply::Answer(200, "", list));
    ask(&remote).await.unwrap();
    let patience = std::time::Instant::now();
    while remote.capabilities().max_context_length == 0 && patience.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(remote.capabilities().max_context_length, 200);
    assert!(!remote.capabilities().paged_attention && remote.capabilities().tool_calling);
}
