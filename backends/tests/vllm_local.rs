//! `VllmLocal` over a scripted engine: text, stop strings, choices, counts, aborts and errors.
#![allow(clippy::unwrap_used)]

#[path = "vllm_local/script.rs"]
mod script;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use pagoda_backends::{
    BackendError, ChatMessage, ChatPrompt, GenerateRequest, GenerationConfig, InferenceBackend, Prompt, StopReason, ToolChoice,
    ToolDialect, VllmLocal,
};
use script::{
    EOS, MAX_MODEL_LEN, Scripted, Seen, bytes_as_tokens, config, scripted, scripted_in, scripted_with, tokenizer, tokenizer_with,
};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn prompt(len: usize) -> Prompt {
    Prompt::Tokens((0..len as u32).map(|idx| 10 + idx).collect())
}

fn run(engine: &Scripted, config: GenerationConfig) -> Seen {
    let n = config.n as usize;
    let request = GenerateRequest { prompt: prompt(5), config };
    let events = block_on(async { engine.backend.generate_stream(request).await.unwrap().collect::<Vec<_>>().await });
    Seen::of(events, n)
}

fn refused(backend: &VllmLocal, prompt: Prompt, config: GenerationConfig) -> BackendError {
    block_on(async { backend.generate_stream(GenerateRequest { prompt, config }).await.err().expect("refused") })
}

/// Waits until nothing runs, as after an abort; at most 10 s.
fn wait_until_idle(backend: &VllmLocal) {
    let started = Instant::now();
    while backend.stats().num_running > 0 || backend.stats().num_used_blocks > 0 {
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", backend.stats());
        std::thread::yield_now();
    }
}

fn saying(text: &str, end: &[u32]) -> Scripted {
    let mut tokens = bytes_as_tokens(&tokenizer(), text);
    tokens.extend(end);
    scripted(vec![tokens], true)
}

#[test]
fn an_answer_ends_at_eos_and_counts_it() {
    let text = "né, 日本!";
    let seen = run(&saying(text, &[EOS]), config());
    assert_eq!(seen.texts, [text]);
    assert_eq!(seen.reasons, [Some(StopReason::EndOfTurn)]);
    assert_eq!((seen.usage.prompt_tokens, seen.usage.completion_tokens), (5, text.len() + 1));
    assert_eq!(seen.prompt.len(), 5);
    assert_eq!(seen.tokens[0].len(), text.len() + 1);
    let bytes: Vec<u8> = seen.tokens[0][..text.len()].iter().flat_map(|token| token.bytes.clone()).collect();
    assert_eq!(bytes, text.as_bytes());
}

#[test]
fn a_character_cut_by_max_tokens_is_not_lost() {
    let seen = run(&saying("aé", &[]), GenerationConfig { max_tokens: Some(2), ..config() });
    assert_eq!((seen.texts[0].as_str(), &seen.reasons[0]), ("a\u{fffd}", &Some(StopReason::MaxTokens)));
    assert_eq!(seen.usage.completion_tokens, 2);
}

#[test]
fn stop_strings_end_the_answer() {
    let check = |text: &str, stops: &[&str], include: bool, min_tokens: u32, expected: &str, matched: Option<&str>, num_tokens: usize| {
        let engine = saying(text, &[EOS]);
        let stop_sequences = stops.iter().map(|stop| stop.to_string()).collect();
        let seen = run(&engine, GenerationConfig { stop_sequences, include_stop_str: include, min_tokens, ..config() });
        let reason = matched.map_or(StopReason::EndOfTurn, |stop| StopReason::StopSequence(stop.into()));
        assert_eq!((seen.texts[0].as_str(), seen.reasons[0].clone()), (expected, Some(reason)), "{text} {stops:?}");
        assert_eq!((seen.usage.completion_tokens, seen.tokens[0].len()), (num_tokens, num_tokens), "{text} {stops:?}");
        wait_until_idle(&engine.backend);
    };
    check("one STOP two", &["STOP"], false, 0, "one ", Some("STOP"), 8);
    check("one STOP two", &["STOP"], true, 0, "one STOP", Some("STOP"), 8);
    check("one STOP two", &["two", "OP"], false, 0, "one ST", Some("OP"), 8);
    check("one STO", &["STOP"], false, 0, "one STO", None, 8);
    check("abab", &["ab"], false, 3, "ab", Some("ab"), 4);
    check("ab", &["ab"], false, 2, "ab", None, 3);
}

#[test]
fn stop_tokens_are_counted_and_not_shown() {
    let (a, b) = (bytes_as_tokens(&tokenizer(), "ab"), bytes_as_tokens(&tokenizer(), "b")[0]);
    let check = |config: GenerationConfig, text: &str, reason: StopReason, num_tokens: usize| {
        let mut script = a.clone();
        script.push(EOS);
        let seen = run(&scripted(vec![script], true), config);
        assert_eq!((seen.texts[0].as_str(), seen.reasons[0].clone()), (text, Some(reason)));
        assert_eq!(seen.usage.completion_tokens, num_tokens);
    };
    let stop = GenerationConfig { stop_token_ids: vec![b], ..config() };
    check(stop.clone(), "a", StopReason::StopToken(b), 2);
    check(GenerationConfig { include_stop_str: true, ..stop }, "ab", StopReason::StopToken(b), 2);
    check(GenerationConfig { ignore_eos: true, max_tokens: Some(4), ..config() }, "ab", StopReason::MaxTokens, 4);
    let special = GenerationConfig { ignore_eos: true, skip_special_tokens: false, max_tokens: Some(3), ..config() };
    check(special, "ab<|im_end|>", StopReason::MaxTokens, 3);
}

#[test]
fn choices_end_on_their_own() {
    let tokenizer = tokenizer();
    let say = |text: &str| bytes_as_tokens(&tokenizer, text);
    let mut long = say("a longer answer");
    long.push(EOS);
    let engine = scripted(vec![say("x!yyyyyyyyyyyy"), long], true);
    let seen = run(&engine, GenerationConfig { n: 2, stop_sequences: vec!["!".into()], ..config() });
    assert_eq!(seen.texts, ["x", "a longer answer"]);
    assert_eq!(seen.reasons, [Some(StopReason::StopSequence("!".into())), Some(StopReason::EndOfTurn)]);
    assert_eq!(seen.usage.completion_tokens, 2 + 16);
    wait_until_idle(&engine.backend);
}

#[test]
fn logprobs_come_with_text_and_bytes() {
    let engine = saying("é", &[EOS]);
    let seen = run(&engine, GenerationConfig { logprobs: Some(2), ..config() });
    let first = &seen.tokens[0][0];
    assert_eq!((first.text.as_str(), first.bytes.as_slice(), first.logprob), ("\u{fffd}", &"é".as_bytes()[..1], Some(-0.5)));
    assert_eq!(first.top.iter().map(|token| (token.id, token.logprob)).collect::<Vec<_>>(), [(first.id, Some(-0.5)), (EOS, Some(-2.0))]);
    assert_eq!(first.top[1].text, "<|im_end|>");
    let bytes: Vec<u8> = seen.tokens[0].iter().flat_map(|token| token.bytes.clone()).collect();
    assert_eq!(bytes, "é".as_bytes(), "the bytes of all tokens are the answer's: EOS adds none");
}

#[test]
fn the_window_bounds_prompt_and_answer() {
    let engine = saying("z", &[]);
    for len in [MAX_MODEL_LEN, MAX_MODEL_LEN + 7] {
        let expected = BackendError::PromptTooLong { prompt_tokens: len, max_tokens: MAX_MODEL_LEN - 1 };
        assert_eq!(refused(&engine.backend, prompt(len), config()), expected);
    }
    let end = |len: usize, max_tokens: Option<u32>| {
        let request = GenerateRequest { prompt: prompt(len), config: GenerationConfig { max_tokens, ..config() } };
        let output = block_on(engine.backend.generate(request)).unwrap();
        (output.choices[0].reason.clone(), output.usage.completion_tokens)
    };
    assert_eq!(end(MAX_MODEL_LEN - 1, Some(1)), (StopReason::MaxTokens, 1));
    assert_eq!(end(MAX_MODEL_LEN - 4, Some(4)), (StopReason::MaxTokens, 4));
    assert_eq!(end(MAX_MODEL_LEN - 4, Some(32_000)), (StopReason::ContextFull, 4));
    assert_eq!(end(MAX_MODEL_LEN - 4, None), (StopReason::ContextFull, 4));
}

#[test]
fn wrong_requests_are_the_callers_fault() {
    let engine = saying("z", &[]);
    let check = |prompt: Prompt, config: GenerationConfig, part: &str| match refused(&engine.backend, prompt, config) {
        BackendError::InvalidRequest { message, .. } => assert!(message.contains(part), "`{part}` in `{message}`"),
        other => panic!("{other:?}"),
    };
    check(prompt(0), config(), "at least one is needed");
    check(prompt(3), GenerationConfig { max_tokens: Some(0), ..config() }, "max_tokens is 0");
    check(prompt(3), GenerationConfig { n: 0, ..config() }, "n is 0");
    check(prompt(3), GenerationConfig { n: 1_000_000, ..config() }, "n is 1000000");
    check(prompt(3), GenerationConfig { top_p: 0.0, ..config() }, "top_p");
    check(prompt(3), GenerationConfig { bad_words: vec![" ".into()], ..config() }, "bad word");
    check(prompt(3), GenerationConfig { stop_sequences: vec![String::new()], ..config() }, "stop");
    check(Prompt::Tokens(vec![1, 1_000_000]), config(), "1000000");
    let chat = Prompt::Chat(ChatPrompt { add_generation_prompt: true, ..ChatPrompt::default() });
    match refused(&scripted(vec![vec![EOS]], false).backend, chat, config()) {
        BackendError::InvalidRequest { message, .. } => assert!(message.contains("no chat template"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_queue_asks_to_come_back() {
    let engine = saying("z", &[]);
    let held = engine.gate.lock().unwrap();
    let refusal = block_on(async {
        let mut streams = Vec::new();
        loop {
            let request = GenerateRequest { prompt: prompt(5), config: config() };
            match engine.backend.generate_stream(request).await {
                Ok(stream) => streams.push(stream),
                Err(error) => break error,
            }
            // Those refused behind the queue say so in their stream.
            if streams.len() > 64 {
                panic!("64 requests were taken by an engine that runs none");
            }
        }
    });
    drop(held);
    assert!(matches!(refusal, BackendError::Overloaded { retry_after_s: 1.., .. }), "{refusal:?}");
}

#[test]
fn a_dropped_stream_is_aborted() {
    let engine = saying("z", &[]);
    block_on(async {
        let config = GenerationConfig { max_tokens: None, ignore_eos: true, ..config() };
        let mut stream = engine.backend.generate_stream(GenerateRequest { prompt: prompt(5), config }).await.unwrap();
        assert!(stream.next().await.is_some());
    });
    wait_until_idle(&engine.backend);
}

#[test]
fn chat_prompts_are_rendered_and_counted_alike() {
    let engine = saying("z", &[EOS]);
    let message = ChatMessage { role: "user".into(), content: "hi".into(), ..ChatMessage::default() };
    let chat = Prompt::Chat(ChatPrompt { messages: vec![message], add_generation_prompt: true, ..ChatPrompt::default() });
    let (count, text, output) = block_on(async {
        let tokens = engine.backend.tokenize(&chat).await.unwrap();
        let request = GenerateRequest { prompt: chat.clone(), config: config() };
        (
            engine.backend.count_tokens(&chat).await.unwrap(),
            engine.backend.detokenize(&tokens).await.unwrap(),
            engine.backend.generate(request).await.unwrap(),
        )
    });
    assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!((count, output.prompt_token_ids.len()), (output.usage.prompt_tokens, count));
    let bad = block_on(engine.backend.detokenize(&[1_000_000]));
    assert!(matches!(bad, Err(BackendError::InvalidRequest { .. })), "{bad:?}");
}

#[test]
fn model_defaults_and_capabilities() {
    let engine = saying("z", &[]);
    let defaults = engine.backend.default_config();
    assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p, defaults.max_tokens), (0.5, None, 0.9, Some(1024)));
    let capabilities = engine.backend.capabilities();
    assert_eq!((capabilities.max_context_length, capabilities.tool_calling), (MAX_MODEL_LEN, false));
    assert!(capabilities.streaming && capabilities.continuous_batching && capabilities.paged_attention);
    assert_eq!(engine.backend.health(), Ok(()));
}

#[test]
fn steps_are_counted_by_size() {
    let engine = saying("one two", &[EOS]);
    run(&engine, config());
    wait_until_idle(&engine.backend);
    let stats = engine.backend.stats();
    assert_eq!(stats.step_sizes.counts.iter().sum::<u64>(), stats.num_steps);
    // The prompt in one step, then a token each but for the last one sampled; a step made ahead of the end may be in vain.
    assert_eq!((stats.step_sizes.counts[1], stats.block_size, stats.prefix_queries), (1, 4, 5), "{stats:?}");
    assert!(stats.step_sizes.num_tokens >= 5 + 7, "{stats:?}");
}

#[test]
fn reasoning_is_told_from_the_answer() {
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}</think>{% endif %}{% if add_generation_prompt %}a:{% if open %}<think>\n{% endif %}{% endif %}";
    let check = |said: &str, open: bool, max_tokens: u32, reasoning: &str, answer: &str| {
        let mut tokens = bytes_as_tokens(&tokenizer(), said);
        tokens.push(EOS);
        let engine = scripted_with(vec![tokens], Some(template));
        let message = ChatMessage { role: "user".into(), content: "q".into(), ..ChatMessage::default() };
        let template_kwargs = [("open".to_owned(), open.into())].into();
        let chat = ChatPrompt { messages: vec![message], add_generation_prompt: true, template_kwargs, ..ChatPrompt::default() };
        let request = GenerateRequest { prompt: Prompt::Chat(chat), config: GenerationConfig { max_tokens: Some(max_tokens), ..config() } };
        let events = block_on(async { engine.backend.generate_stream(request.clone()).await.unwrap().collect::<Vec<_>>().await });
        let seen = Seen::of(events, 1);
        assert_eq!((seen.reasoning.as_str(), seen.texts[0].as_str()), (reasoning, answer), "{said}");
        assert_eq!(seen.tokens[0].len(), seen.usage.completion_tokens, "every token comes with some event");
        let whole = block_on(engine.backend.generate(request)).unwrap();
        assert_eq!((whole.choices[0].reasoning.as_str(), whole.choices[0].text.as_str()), (reasoning, answer), "{said}");
    };
    check("<think>\nhm</think>\n\n4", false, 40, "hm", "4");
    check("hm</think>\n4", true, 40, "hm", "4");
    check("4 <think>", false, 40, "", "4 <think>");
    check("<think>hm</thi", false, 14, "hm</thi", "");
}

/// The answer of a model with the special token `mark` that says it, then `said`; `tools`: the request offers one.
fn marked_answer(template: &str, mark: &str, said: &str, choice: Option<ToolChoice>) -> Seen {
    let tokenizer = tokenizer_with(mark);
    let mut tokens = vec![tokenizer.token_id(mark).unwrap()];
    assert!(tokenizer.is_special(tokens[0]));
    tokens.extend(bytes_as_tokens(&tokenizer, said));
    tokens.push(EOS);
    let engine = scripted_in(tokenizer, vec![tokens], Some(template));
    let tools = choice.iter().map(|_| serde_json::json!({"type": "function", "function": {"name": "ping"}})).collect();
    let message = ChatMessage { role: "user".into(), content: "q".into(), ..ChatMessage::default() };
    let chat = ChatPrompt { messages: vec![message], tools, tool_choice: choice.unwrap_or_default(), ..ChatPrompt::default() };
    let request = GenerateRequest { prompt: Prompt::Chat(chat), config: config() };
    let events = block_on(async { engine.backend.generate_stream(request).await.unwrap().collect::<Vec<_>>().await });
    Seen::of(events, 1)
}

#[test]
fn special_tokens_of_calls_are_text_where_tools_may_be_called() {
    let template = "{{ messages[0].content }}{% if tools %}[TOOL_CALLS]{% endif %}";
    let check = |choice: Option<ToolChoice>, expected: &str| {
        let seen = marked_answer(template, "[TOOL_CALLS]", "ping[ARGS]{}", choice);
        assert_eq!(seen.texts[0], expected);
        let bytes: Vec<u8> = seen.tokens[0].iter().flat_map(|token| token.bytes.clone()).collect();
        assert_eq!(bytes, expected.as_bytes(), "tokens say what they add");
    };
    check(Some(ToolChoice::Auto), "[TOOL_CALLS]ping[ARGS]{}");
    check(Some(ToolChoice::None), "ping[ARGS]{}");
    check(None, "ping[ARGS]{}");
}

#[test]
fn special_tokens_of_reasoning_tell_it_apart() {
    let template = "{{ messages[0].content }}{% if false %}[THINK][/THINK]{% endif %}";
    let seen = marked_answer(template, "[THINK]", "hm[/THINK]4", None);
    assert_eq!((seen.reasoning.as_str(), seen.texts[0].as_str()), ("hm", "4"));
    let template = "{{ messages[0].content }}{% if false %}<|channel|>analysis<|message|>{% endif %}";
    let seen = marked_answer(template, "<|channel|>", "analysis<|message|>hm<|end|>4", None);
    assert_eq!((seen.reasoning.as_str(), seen.texts[0].as_str()), ("hm", "4"));
}

#[test]
fn the_template_tells_the_dialect() {
    let of = |template: &str| scripted_with(vec![vec![EOS]], Some(template)).backend.capabilities().tool_dialect;
    assert_eq!(of("{{ messages }}"), Some(ToolDialect::Hermes));
    assert_eq!(of("{{ messages }}<function=x><parameter=y>"), Some(ToolDialect::Qwen3Coder));
}
