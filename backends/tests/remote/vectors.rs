//! Embeddings and scores of a service.

use pagoda_backends::registry::BackendKind;
use pagoda_backends::remote::{Remote, RemoteService};
use pagoda_backends::{
    BackendError, EmbedInput, EmbedRequest, Embeddings, InferenceBackend, ModelType, Overflow, ScoreRequest, ScoreScale, Scores,
    ToolDialect,
};
use serde_json::{Value, json};

use crate::ask;
use crate::upstream::{KEY, Reply, Upstream, settings};

fn model(upstream: &Upstream, kind: BackendKind, model_type: Option<ModelType>) -> Remote {
    RemoteService::new(&settings(kind, &upstream.url)).unwrap().model_for("m", None, model_type, ToolDialect::default())
}

fn answer(upstream: &Upstream, status: u16, body: &Value) {
    upstream.push(Reply::Answer(status, "", body.to_string()));
}

fn texts(texts: &[&str]) -> Vec<EmbedInput> {
    texts.iter().map(|text| EmbedInput::Text((*text).into())).collect()
}

fn last(upstream: &Upstream) -> (String, Value) {
    let seen = upstream.seen().pop().expect("a request");
    (seen.line, seen.body)
}

#[tokio::test]
async fn vectors_come_in_the_order_of_their_inputs() {
    let upstream = Upstream::start().await;
    let remote = model(&upstream, BackendKind::RemoteOpenai, None);
    let data = json!([{"index": 1, "embedding": [0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}]);
    let body = json!({"data": data, "usage": {"prompt_tokens": 9, "total_tokens": 9}});
    answer(&upstream, 200, &body);
    let request = EmbedRequest { inputs: texts(&["a", "b"]), dimensions: Some(2), ..EmbedRequest::default() };
    let vectors = vec![vec![3.0, 4.0], vec![0.0, 2.0]];
    assert_eq!(remote.embed(request.clone()).await, Ok(Embeddings { vectors, prompt_tokens: 9 }));
    let expected = json!({"model": "m", "input": ["a", "b"], "encoding_format": "float", "dimensions": 2});
    assert_eq!(last(&upstream), ("POST /v1/embeddings HTTP/1.1".into(), expected));
    // Cutting is asked of those who can; lengths are made one here.
    answer(&upstream, 200, &body);
    let inputs = vec![EmbedInput::Tokens(vec![1, 2]), EmbedInput::Tokens(vec![3])];
    let cut = EmbedRequest { inputs, overflow: Overflow::Cut, normalize: Some(true), ..EmbedRequest::default() };
    let embedded = model(&upstream, BackendKind::VllmRemote, Some(ModelType::Embedding)).embed(cut.clone()).await.unwrap();
    assert_eq!(embedded.vectors, [[0.6, 0.8], [0.0, 1.0]]);
    let expected = json!({"model": "m", "input": [[1, 2], [3]], "encoding_format": "float", "truncate_prompt_tokens": -1});
    assert_eq!(last(&upstream).1, expected);
    answer(&upstream, 200, &body);
    remote.embed(EmbedRequest { inputs: texts(&["a", "b"]), ..cut }).await.unwrap();
    assert_eq!(last(&upstream).1, json!({"model": "m", "input": ["a", "b"], "encoding_format": "float"}));
    let num_seen = upstream.seen().len();
    assert_eq!(remote.embed(EmbedRequest::default()).await, Ok(Embeddings::default()));
    let prompted = EmbedRequest { prompt_name: Some("query".into()), ..request };
    let refusal = remote.embed(prompted).await;
    assert!(matches!(refusal, Err(BackendError::InvalidRequest { param: Some(param), .. }) if param == "prompt_name"));
    assert_eq!(upstream.seen().len(), num_seen, "nothing was sent");
}

#[tokio::test]
async fn scores_are_asked_for_query_by_query() {
    let upstream = Upstream::start().await;
    let remote = model(&upstream, BackendKind::VllmRemote, Some(ModelType::Reranker));
    assert_eq!(remote.model_type(), ModelType::Reranker);
    let pair = |query: &str, document: &str| (query.to_owned(), document.to_owned());
    let entry = |index: usize, score: f32| json!({"index": index, "relevance_score": score, "document": {"text": "x"}});
    answer(&upstream, 200, &json!({"results": [entry(1, 0.75), entry(0, 0.25)], "usage": {"total_tokens": 11}}));
    answer(&upstream, 200, &json!({"results": [entry(0, 0.5)]}));
    let request = ScoreRequest {
        pairs: vec![pair("q", "a"), pair("q", "b"), pair("r", "c")],
        overflow: Overflow::Cut,
        max_document_tokens: Some(7),
        ..ScoreRequest::default()
    };
    assert_eq!(remote.score(request.clone()).await, Ok(Scores { scores: vec![0.25, 0.75, 0.5], prompt_tokens: 11 }));
    let of = |query: &str, documents: Value, top_n: usize| json!({"model": "m", "query": query, "documents": documents, "top_n": top_n, "max_tokens_per_doc": 7, "truncate_prompt_tokens": -1});
    let bodies: Vec<Value> = upstream.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, [of("q", json!(["a", "b"]), 2), of("r", json!(["c"]), 1)]);
    assert_eq!(last(&upstream).0, "POST /v1/rerank HTTP/1.1");
    let raw = ScoreRequest { scale: ScoreScale::Logit, ..request };
    let refusal = model(&upstream, BackendKind::RemoteOpenai, None).score(raw).await;
    assert!(matches!(refusal, Err(BackendError::InvalidRequest { param: Some(param), .. }) if param == "raw_scores"));
}

#[tokio::test]
async fn what_a_service_does_not_do_is_said() {
    let upstream = Upstream::start().await;
    let remote = model(&upstream, BackendKind::RemoteOpenai, None);
    let embed = || remote.embed(EmbedRequest { inputs: texts(&["a"]), ..EmbedRequest::default() });
    answer(&upstream, 404, &json!({"detail": "Not Found"}));
    assert!(matches!(embed().await, Err(BackendError::Unsupported(message)) if message.contains("/v1/embeddings")));
    answer(&upstream, 400, &json!({"error": {"message": format!("no embeddings for {KEY}"), "param": "model"}}));
    let refusal = embed().await;
    assert!(matches!(refusal, Err(BackendError::InvalidRequest { message, .. }) if message == "no embeddings for ***"));
    // One vector too few, one that is none, one place too many.
    for data in [json!([]), json!([{"index": 0, "embedding": ["x"]}]), json!([{"index": 1, "embedding": [1.0]}])] {
        answer(&upstream, 200, &json!({"data": data}));
        assert!(matches!(embed().await, Err(BackendError::Upstream(_))), "{data}");
    }
    // A type that is known is a refusal without a request.
    let num_seen = upstream.seen().len();
    let embedding = model(&upstream, BackendKind::VllmRemote, Some(ModelType::Embedding));
    let wrong = [embedding.score(ScoreRequest::default()).await.err(), ask(&embedding).await.err()];
    for error in wrong {
        assert!(matches!(error, Some(BackendError::InvalidRequest { message, .. }) if message.contains("makes embeddings")));
    }
    assert_eq!(upstream.seen().len(), num_seen);
}
