//! `/api/rerank` with its other names, and `/score`.

use pagoda_backends::{Overflow, ScoreScale};
use serde_json::{Value, json};

use crate::pooling::{MAX_LEN, PoolingServer};

const ROUTES: [&str; 4] = ["/api/rerank", "/rerank", "/v1/rerank", "/v2/rerank"];
const SCORES: [&str; 2] = ["/score", "/v1/score"];

fn places(answer: &Value) -> Vec<u64> {
    answer["results"].as_array().unwrap().iter().map(|result| result["index"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn documents_come_by_score_and_ties_by_place() {
    let test = PoolingServer::start().await;
    let body = json!({"model": "r", "query": "q", "documents": ["x", "q", {"text": "qq", "id": 7}, "q"]});
    for route in ROUTES {
        let answer = test.server.post(route, &body).await.json();
        assert_eq!(places(&answer), [2, 1, 3, 0], "{route}");
        assert!(answer["id"].as_str().unwrap().starts_with("rerank-") && answer["model"] == json!("r"));
        let usage = json!({"prompt_tokens": 5 + 5 + 6 + 5, "total_tokens": 21});
        assert_eq!(answer["usage"], usage);
        let scores: Vec<f64> = answer["results"].as_array().unwrap().iter().map(|r| r["relevance_score"].as_f64().unwrap()).collect();
        assert!((scores[0] - 0.731).abs() < 1e-3 && scores[1] == 0.5 && scores.iter().all(|s| (0.0..=1.0).contains(s)), "{scores:?}");
        assert!(answer["results"][0].get("document").is_none());
    }
}

#[tokio::test]
async fn the_answer_is_cut_and_completed_as_asked() {
    let test = PoolingServer::start().await;
    let ask = |extra: Value| {
        let mut body = json!({"model": "r", "query": "q", "documents": ["x", {"text": "q"}, "qq"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let server = &test.server;
        async move { server.post("/v1/rerank", &body).await.json() }
    };
    assert_eq!(places(&ask(json!({"top_n": 1})).await), [2]);
    assert_eq!(places(&ask(json!({"top_n": 99})).await), [2, 1, 0]);
    let whole = ask(json!({"return_documents": true})).await;
    let texts: Vec<&str> = whole["results"].as_array().unwrap().iter().map(|r| r["document"]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["qq", "q", "x"]);
    assert_eq!(ask(json!({"raw_scores": true})).await["results"][0]["relevance_score"], json!(1.0));
    let extra = json!({"instruction": "find", "max_tokens_per_doc": 9, "truncate_prompt_tokens": 8, "truncate": false});
    ask(extra).await;
    let request = test.reranker.scores.lock().unwrap().last().unwrap().clone();
    assert_eq!((request.instruction.as_deref(), request.max_document_tokens, request.max_tokens), (Some("find"), Some(9), Some(8)));
    assert_eq!((request.overflow, request.scale), (Overflow::Refuse, ScoreScale::Probability));
}

#[tokio::test]
async fn long_documents_are_cut_unless_the_client_minds() {
    let test = PoolingServer::start().await;
    let long = "x".repeat(MAX_LEN);
    let mut body = json!({"model": "r", "query": "q", "documents": [long]});
    assert_eq!(test.server.post("/v1/rerank", &body).await.json()["usage"]["prompt_tokens"], json!(MAX_LEN));
    body["truncate"] = json!(false);
    let answer = test.server.post("/v1/rerank", &body).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    let texts = json!({"query": "q", "texts": [long]});
    assert_eq!(test.server.post("/rerank", &texts).await.status, 400, "text-embeddings-inference cuts only when told to");
}

#[tokio::test]
async fn the_form_of_text_embeddings_inference() {
    let test = PoolingServer::start().await;
    let plain = test.server.post("/rerank", &json!({"query": "q", "texts": ["x", "qq"]})).await.json();
    assert_eq!(plain.as_array().unwrap().len(), 2);
    assert_eq!((&plain[0]["index"], plain[0].get("text")), (&json!(1), None));
    let raw = json!({"query": "q", "texts": ["x", "qq"], "raw_scores": true, "return_text": true, "truncate": true});
    let expected = json!([{"index": 1, "score": 1.0, "text": "qq"}, {"index": 0, "score": -1.0, "text": "x"}]);
    assert_eq!(test.server.post("/rerank", &raw).await.json(), expected);
    assert_eq!(test.server.post("/v1/rerank", &raw).await.status, 400, "only at /rerank");
}

#[tokio::test]
async fn scores_of_pairs() {
    let test = PoolingServer::start().await;
    for route in SCORES {
        for (first, second, expected) in [
            (json!("q"), json!("q"), vec![0.5]),
            (json!("q"), json!(["q", "qq"]), vec![0.5, 0.731_058_6]),
            (json!(["q"]), json!(["q", "qq"]), vec![0.5, 0.731_058_6]),
            (json!(["q", "x"]), json!(["qq", "x"]), vec![0.731_058_6, 0.5]),
        ] {
            let answer = test.server.post(route, &json!({"model": "r", "text_1": first, "text_2": second})).await.json();
            let data = answer["data"].as_array().unwrap();
            assert_eq!(data.len(), expected.len(), "{route} {answer}");
            for (index, (entry, expected)) in data.iter().zip(&expected).enumerate() {
                assert_eq!((&entry["index"], &entry["object"]), (&json!(index), &json!("score")));
                assert!((entry["score"].as_f64().unwrap() - expected).abs() < 1e-6, "{answer}");
            }
            assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("r")));
        }
        let cosine = test.server.post(route, &json!({"model": "e", "text_1": "", "text_2": ""})).await.json();
        assert!((cosine["data"][0]["score"].as_f64().unwrap() - 0.3125).abs() < 1e-6, "the product of the scripted vectors: {cosine}");
    }
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let test = PoolingServer::start().await;
    let good = json!({"model": "r", "query": "q", "documents": ["x"]});
    for route in ROUTES {
        let rows = vec![
            ("model", json!(null), "model: field required"),
            ("model", json!("e"), "model: it does not rerank"),
            ("model", json!("m"), "model: this model generates text and cannot rerank"),
            ("query", json!(null), "query: field required"),
            ("query", json!(["q"]), "query: must be a string"),
            ("documents", json!(null), "documents: field required"),
            ("documents", json!("x"), "documents: must be an array"),
            ("documents", json!([]), "documents: must not be empty"),
            ("documents", json!(["x", 5]), "documents[1]: must be"),
            ("documents", json!([{"id": 1}]), "documents[0].text: field required"),
            ("documents", json!([{"text": 5}]), "documents[0].text: must be a string"),
            ("documents", json!(vec!["x"; 10_001]), "documents: at most 10000 entries, got 10001"),
            ("top_n", json!(0), "top_n"),
            ("top_n", json!(-1), "top_n"),
            ("top_n", json!("1"), "top_n"),
            ("return_documents", json!("yes"), "return_documents"),
            ("raw_scores", json!(1), "raw_scores"),
            ("truncate", json!(1), "truncate"),
            ("max_tokens_per_doc", json!(0), "max_tokens_per_doc"),
            ("truncate_prompt_tokens", json!(0), "truncate_prompt_tokens"),
            ("instruction", json!(5), "instruction"),
            ("rank_fields", json!(["title"]), "rank_fields"),
        ];
        test.refuses(route, &good, rows).await;
    }
    let good = json!({"model": "r", "text_1": "q", "text_2": "x"});
    for route in SCORES {
        let rows = vec![
            ("model", json!("m"), "model: this model generates text and cannot rerank"),
            ("text_1", json!(null), "text_1: field required"),
            ("text_1", json!(5), "text_1: must be"),
            ("text_1", json!([]), "text_1: must not be empty"),
            ("text_2", json!([5]), "text_2[0]: must be a string"),
            ("text_2", json!(vec!["x"; 10_001]), "text_2: at most 10000 entries"),
        ];
        test.refuses(route, &good, rows).await;
        let uneven = test.server.post(route, &json!({"model": "r", "text_1": ["a", "b"], "text_2": ["a"]})).await;
        assert_eq!((uneven.status, &uneven.json()["error"]["param"]), (400, &json!("text_2")));
        let none = test.server.post(route, &json!({"model": "none", "text_1": "a", "text_2": "b"})).await;
        assert_eq!(none.status, 404);
    }
}
