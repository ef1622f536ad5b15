//! `/v1/embeddings` and `/api/embed`.

use pagoda_backends::{EmbedInput, Overflow};
use serde_json::{Value, json};

use crate::pooling::{DIMS, MAX_LEN, PoolingServer};

const OPENAI: &str = "/v1/embeddings";
const OLLAMA: &str = "/api/embed";

fn vector(len: usize) -> Value {
    json!([len as f32, 0.5, -0.25, 1e-7])
}

#[tokio::test]
async fn inputs_of_every_form_give_vectors_in_order() {
    let test = PoolingServer::start().await;
    let text = |text: &str| EmbedInput::Text(text.into());
    let cases = [
        (json!("abc"), vec![text("abc")], vec![3], 5),
        (json!(["a", "", "bcd"]), vec![text("a"), text(""), text("bcd")], vec![1, 0, 3], 10),
        (json!([5, 6, 7]), vec![EmbedInput::Tokens(vec![5, 6, 7])], vec![1], 3),
        (json!([[5, 6], [7, 8, 9]]), vec![EmbedInput::Tokens(vec![5, 6]), EmbedInput::Tokens(vec![7, 8, 9])], vec![0, 1], 5),
    ];
    for (input, inputs, lens, tokens) in cases {
        let answer = test.server.post(OPENAI, &json!({"model": "e", "input": input})).await;
        let entry = |(index, len): (usize, &usize)| json!({"object": "embedding", "index": index, "embedding": vector(*len)});
        let data: Vec<Value> = lens.iter().enumerate().map(entry).collect();
        let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
        assert_eq!(answer.json(), json!({"object": "list", "data": data, "model": "e", "usage": usage}), "{input}");
        assert_eq!(test.embedder.embeds.lock().unwrap().last().unwrap().inputs, inputs);
    }
    let many = json!({"model": "e", "input": vec!["x"; 2048]});
    assert_eq!(test.server.post(OPENAI, &many).await.json()["data"].as_array().unwrap().len(), 2048);
}

#[tokio::test]
async fn base64_is_little_endian_f32() {
    let test = PoolingServer::start().await;
    let body = json!({"model": "e", "input": "abc", "encoding_format": "base64", "dimensions": 2, "user": "u"});
    assert_eq!(test.server.post(OPENAI, &body).await.json()["data"][0]["embedding"], json!("AABAQAAAAD8="));
    let body = json!({"model": "e", "input": "abc", "encoding_format": "float", "dimensions": 1});
    assert_eq!(test.server.post(OPENAI, &body).await.json()["data"][0]["embedding"], json!([3.0]));
}

#[tokio::test]
async fn long_inputs_are_refused_unless_they_may_be_cut() {
    let test = PoolingServer::start().await;
    let long = "x".repeat(MAX_LEN);
    for (route, extra, status, tokens) in [
        (OPENAI, json!({}), 400, 0),
        (OPENAI, json!({"truncate": true}), 200, MAX_LEN),
        (OPENAI, json!({"truncate_prompt_tokens": 7}), 200, 7),
        (OPENAI, json!({"truncate_prompt_tokens": -1}), 200, MAX_LEN),
        (OLLAMA, json!({}), 200, MAX_LEN),
        (OLLAMA, json!({"truncate": true}), 200, MAX_LEN),
        (OLLAMA, json!({"truncate": false}), 400, 0),
    ] {
        let mut body = json!({"model": "e", "input": [long, "a"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = test.server.post(route, &body).await;
        assert_eq!(answer.status, status, "{route} {extra}: {}", answer.text());
        let json = answer.json();
        match (status, route) {
            (200, OPENAI) => assert_eq!(json["usage"]["prompt_tokens"], json!(tokens + 3)),
            (200, _) => assert_eq!(json["prompt_eval_count"], json!(tokens + 3)),
            (_, OPENAI) => assert_eq!(json["error"]["code"], json!("context_length_exceeded")),
            _ => assert!(json["error"].as_str().unwrap().contains("too long: 34 tokens > 32 maximum"), "{json}"),
        }
    }
}

#[tokio::test]
async fn ollamas_form() {
    let test = PoolingServer::start().await;
    for (model, input, expected, tokens) in [
        ("e", json!("ab"), json!([vector(2)]), 4),
        ("e:latest", json!(["ab", "c"]), json!([vector(2), vector(1)]), 7),
        ("e", json!([]), json!([]), 0),
    ] {
        let body = json!({"model": model, "input": input, "options": {"num_ctx": 5}, "keep_alive": "5m"});
        let answer = test.server.post(OLLAMA, &body).await.json();
        assert_eq!((&answer["model"], &answer["embeddings"], &answer["prompt_eval_count"]), (&json!(model), &expected, &json!(tokens)));
        assert!(answer["total_duration"].as_u64().unwrap() > 0 && answer["load_duration"].is_u64(), "{answer}");
    }
    let request = test.embedder.embeds.lock().unwrap().last().unwrap().clone();
    assert_eq!((request.normalize, request.overflow), (Some(true), Overflow::Cut));
    let missing = test.server.post(OLLAMA, &json!({"model": "none", "input": "x"})).await;
    assert_eq!(missing.status, 404);
    assert!(missing.json()["error"].as_str().unwrap().contains("model `none` not found"), "Ollama's clients read a string");
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let test = PoolingServer::start().await;
    let good = json!({"model": "e", "input": "x"});
    let shared = || {
        vec![
            ("model", json!(5), "model: must be a non-empty string"),
            ("model", json!(null), "model: field required"),
            ("model", json!("r"), "model: it does not embed"),
            ("model", json!("m"), "model: this model generates text and cannot embed"),
            ("input", json!(null), "input: field required"),
            ("input", json!(5), "input: must be"),
            ("input", json!({}), "input: must be"),
            ("input", json!(["a", 5]), "input[1]: must be a string"),
            ("input", json!(vec!["a"; 2049]), "input: at most 2048 entries, got 2049"),
            ("dimensions", json!(0), "dimensions"),
            ("dimensions", json!(-1), "dimensions"),
            ("dimensions", json!("2"), "dimensions"),
            ("dimensions", json!(1.5), "dimensions"),
            ("dimensions", json!(DIMS + 1), "dimensions: must be an integer between 1 and 4, got 5"),
            ("truncate", json!("yes"), "truncate"),
            ("prompt_name", json!(5), "prompt_name"),
        ]
    };
    let mut openai = shared();
    openai.extend([
        ("input", json!([]), "input: must not be empty"),
        ("input", json!([[]]), "input[0]: must not be empty"),
        ("input", json!([["a"]]), "input[0][0]: must be a token id"),
        ("input", json!([1, "a"]), "input[1]: must be a token id"),
        ("input", json!([-1]), "input[0]: must be a token id"),
        ("input", json!([1.5]), "input[0]: must be a token id"),
        ("input", json!([[1], "a"]), "input[1]: must be an array of token ids"),
        ("input", json!([true]), "input[0]: must be"),
        ("input", json!([null]), "input[0]: must be"),
        ("encoding_format", json!("hex"), "encoding_format"),
        ("encoding_format", json!(5), "encoding_format"),
        ("user", json!(5), "user"),
        ("normalize", json!(1), "normalize"),
        ("truncate_prompt_tokens", json!(0), "truncate_prompt_tokens"),
        ("truncate_prompt_tokens", json!(-2), "truncate_prompt_tokens"),
    ]);
    test.refuses(OPENAI, &good, openai).await;
    let mut ollama = shared();
    ollama.extend([
        ("input", json!([[1]]), "input[0]: must be a string"),
        ("options", json!(5), "options"),
        ("keep_alive", json!([]), "keep_alive"),
    ]);
    test.refuses(OLLAMA, &good, ollama).await;
    let unknown = test.server.post(OPENAI, &json!({"model": "none", "input": "x"})).await;
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
}

#[tokio::test]
async fn models_of_embeddings_do_not_chat_and_are_listed_as_what_they_are() {
    let test = PoolingServer::start().await;
    let chat = json!({"model": "e", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
    for route in ["/v1/chat/completions", "/v1/messages"] {
        let answer = test.server.post(route, &chat).await;
        assert_eq!(answer.status, 400, "{route}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("does not generate"), "{route}: {}", answer.text());
    }
    let kinds: Vec<Value> = ["m", "e", "r"].map(|id| format!("/v1/models/{id}")).iter().map(|path| Value::from(path.as_str())).collect();
    let mut types = Vec::new();
    for path in &kinds {
        types.push(test.server.get(path.as_str().unwrap()).await.json()["model_type"].clone());
    }
    assert_eq!(types, [json!("causal_lm"), json!("embedding"), json!("reranker")]);
}

#[tokio::test]
async fn metrics_move_by_the_usage_of_answers() {
    let test = PoolingServer::start().await;
    let post = |route: &'static str, body: Value| {
        let server = &test.server;
        async move { server.post(route, &body).await }
    };
    post(OPENAI, json!({"model": "e", "input": ["abc", "d"]})).await;
    post(OLLAMA, json!({"model": "e", "input": "abc"})).await;
    post(OPENAI, json!({"model": "e", "input": "x".repeat(MAX_LEN)})).await;
    post("/rerank", json!({"model": "r", "query": "q", "documents": ["x"]})).await;
    let text = test.server.get("/metrics").await.text().to_owned();
    for (family, model, value) in [
        ("vllm:prompt_tokens_total", "e", "13"),
        ("vllm:prompt_tokens_total", "r", "5"),
        ("vllm:generation_tokens_total", "e", "0"),
        ("vllm:request_prompt_tokens_count", "e", "2"),
        ("vllm:e2e_request_latency_seconds_count", "r", "1"),
    ] {
        let found = text.lines().any(|line| {
            line.starts_with(&format!("{family}{{")) && line.contains(&format!("\"{model}\"")) && line.ends_with(&format!(" {value}"))
        });
        assert!(found, "{family} of {model} is not {value}:\n{text}");
    }
}

#[test]
fn parsers_survive_cut_bodies() {
    use pagoda_server::fuzzing;
    let bodies = [
        json!({"model": "e", "input": ["é", [1]], "encoding_format": "base64", "dimensions": 3}),
        json!({"model": "r", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}),
        json!({"model": "r", "text_1": "q", "text_2": ["a"]}),
    ];
    for body in bodies.map(|body| body.to_string()) {
        for len in 0..=body.len() {
            let cut = &body.as_bytes()[..len];
            for parse in [fuzzing::parse_embeddings_body, fuzzing::parse_embed_body, fuzzing::parse_rerank_body, fuzzing::parse_score_body]
            {
                assert!(parse(cut).is_ok() || !parse(cut).unwrap_err().is_empty());
            }
        }
    }
}
