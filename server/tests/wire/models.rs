//! `/v1/models`, `/tokenize`, `/detokenize`.

use serde_json::{Value, json};

use crate::client::Server;

#[tokio::test]
async fn lists_and_entries() {
    let server = Server::start().await;
    insta::assert_snapshot!(
        "models",
        format!("{:#}\n{:#}\n", server.get("/v1/models").await.json(), server.get("/v1/models/m").await.json())
    );
}

#[tokio::test]
async fn pages() {
    let server = Server::start().await;
    let cases = [
        ("", vec!["m", "other", "org/model"], false),
        ("?limit=2", vec!["m", "other"], true),
        ("?after_id=m", vec!["other", "org/model"], false),
        ("?after_id=m&limit=1", vec!["other"], true),
        ("?before_id=org%2Fmodel", vec!["m", "other"], false),
        ("?before_id=org/model&limit=1", vec!["other"], true),
        ("?after_id=unknown", vec![], false),
        ("?beta=true", vec!["m", "other", "org/model"], false),
    ];
    for (query, expected, has_more) in cases {
        let list = server.get(&format!("/v1/models{query}")).await.json();
        let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap()).collect();
        assert_eq!((ids.clone(), list["has_more"].as_bool().unwrap()), (expected, has_more), "{query}");
        assert_eq!((list["first_id"].as_str(), list["last_id"].as_str()), (ids.first().copied(), ids.last().copied()));
    }
    for query in ["?limit=0", "?limit=x", "?limit=-1"] {
        assert_eq!(server.get(&format!("/v1/models{query}")).await.status, 400, "{query}");
    }
}

#[tokio::test]
async fn ids_with_slashes_and_aliases() {
    let server = Server::start().await;
    for (path, status) in [
        ("/v1/models/org/model", 200),
        ("/v1/models/org%2Fmodel", 200),
        ("/v1/models/other?beta=true", 200),
        ("/v1/models/none", 404),
        ("/v1/models/org", 404),
        ("/v1/models/%ff", 400),
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        answer.json();
    }
    assert_eq!(server.get("/v1/models/other").await.json()["root"], json!("m"));
    let body = json!({"model": "other", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(server.post("/v1/messages", &body).await.json()["model"], json!("other"));
}

#[tokio::test]
async fn tokens_and_back() {
    let server = Server::start().await;
    let cases = [
        (json!({"prompt": "aé"}), json!({"count": 2, "max_model_len": 4096, "tokens": [97, 233], "token_strs": null})),
        (
            json!({"model": "m", "prompt": "a", "return_token_strs": true}),
            json!({"count": 1, "max_model_len": 4096, "tokens": [97], "token_strs": ["a"]}),
        ),
        (json!({"prompt": ""}), json!({"count": 0, "max_model_len": 4096, "tokens": [], "token_strs": null})),
    ];
    for (body, expected) in cases {
        assert_eq!(server.post("/tokenize", &body).await.json(), expected);
    }
    let tokenized = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "q"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let server = &server;
        async move {
            let tokens = server.post("/tokenize", &body).await.json()["tokens"].clone();
            server.post("/detokenize", &json!({"tokens": tokens})).await.json()["prompt"].as_str().unwrap().to_owned()
        }
    };
    assert_eq!(tokenized(json!({})).await, "user: q\nassistant: ");
    assert_eq!(tokenized(json!({"add_generation_prompt": false})).await, "user: q\n");
    let tool = json!({"type": "function", "function": {"name": "f"}});
    assert_eq!(tokenized(json!({"tools": [tool]})).await, format!("{tool}\nuser: q\nassistant: "));
    for tokens in [json!([-1]), json!([1_114_112]), json!([5_000_000_000_i64]), json!(["a"]), json!([true]), json!("a"), json!(null)] {
        let answer = server.post("/detokenize", &json!({"tokens": tokens})).await;
        assert_eq!(answer.status, 400, "{tokens}");
        assert!(answer.json()["error"]["param"].as_str().unwrap().starts_with("tokens"));
    }
    assert_eq!(server.post("/detokenize", &json!({"model": "none", "tokens": [97]})).await.status, 404);
    assert_eq!(server.post("/tokenize", &json!({"prompt": 5})).await.status, 400);
    assert_eq!(server.post("/tokenize", &json!({})).await.status, 400);
}
