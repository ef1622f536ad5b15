//! `/v1/completions`.

use pagoda_backends::Prompt;
use serde_json::{Value, json};

use crate::client::{Server, redacted};

fn body(extra: Value) -> Value {
    let mut body = json!({"model": "m", "prompt": "abc"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn transcripts() {
    let cases = [
        ("plain", json!({})),
        ("usage", json!({"stream_options": {"include_usage": true}, "max_tokens": 1})),
        ("many", json!({"prompt": ["ab", "cd"], "n": 2, "max_tokens": 1})),
        ("echo", json!({"echo": true, "max_tokens": 1})),
        ("echo_logprobs", json!({"prompt": [97, 233], "echo": true, "logprobs": 1, "max_tokens": 2})),
        ("token_ids", json!({"return_token_ids": true, "return_tokens_as_token_ids": true, "logprobs": 0, "max_tokens": 2})),
    ];
    for (name, extra) in cases {
        let server = Server::start().await;
        let mut streamed = body(extra.clone());
        streamed["stream"] = true.into();
        let streamed = server.post("/v1/completions", &streamed).await;
        let mut plain = extra;
        plain.as_object_mut().unwrap().remove("stream_options");
        let whole = server.post("/v1/completions", &body(plain)).await;
        // Events of several prompts come in no fixed order between the prompts.
        let mut chunks = streamed.chunks.clone();
        if name == "many" {
            let index = |chunk: &String| {
                serde_json::from_str::<Value>(&chunk[6..]).map_or(99, |chunk| chunk["choices"][0]["index"].as_u64().unwrap())
            };
            chunks.sort_by_key(index);
        }
        insta::assert_snapshot!(format!("completions_{name}"), redacted(&format!("{}\n{}\n", chunks.concat(), whole.text())));
    }
}

#[tokio::test]
async fn prompts() {
    let server = Server::start().await;
    let cases = [
        (json!("ab"), vec!["ab"]),
        (json!(["ab", "c"]), vec!["ab", "c"]),
        (json!([97, 98]), vec!["ab"]),
        (json!([[97], [98, 99]]), vec!["a", "bc"]),
    ];
    for (prompt, expected) in cases {
        let answer = server.post("/v1/completions", &body(json!({"prompt": prompt, "n": 2}))).await.json();
        let choices = answer["choices"].as_array().unwrap();
        let texts: Vec<&str> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        let doubled: Vec<&str> = expected.iter().flat_map(|text| [*text, *text]).collect();
        assert_eq!(texts, doubled);
        assert!(choices.iter().enumerate().all(|(index, choice)| choice["index"] == json!(index)));
        let usage = &answer["usage"];
        assert_eq!(usage["prompt_tokens"], json!(expected.iter().map(|text| text.len()).sum::<usize>()));
    }
    let config = server.backend.last().config;
    assert_eq!((config.max_tokens, config.n), (Some(16), 2));
    server.post("/v1/completions", &body(json!({"add_special_tokens": false}))).await;
    assert!(matches!(server.backend.last().prompt, Prompt::Text { add_special_tokens: false, .. }));
}

#[tokio::test]
async fn a_prompt_can_be_scored_without_an_answer() {
    let server = Server::start().await;
    let answer = server.post("/v1/completions", &body(json!({"echo": true, "logprobs": 1, "max_tokens": 0}))).await.json();
    let choice = &answer["choices"][0];
    assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some("abc"), Some("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "b", "c"]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -0.25, -0.25]));
    assert_eq!(answer["usage"]["completion_tokens"], json!(0));
}
