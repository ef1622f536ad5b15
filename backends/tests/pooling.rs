//! `PoolingLocal` over the tiny models of tests/data/pooling: what requests ask for beside vectors and scores.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use pagoda_backends::{
    BackendError, EmbedInput, EmbedRequest, Embeddings, GenerateRequest, GenerationConfig, InferenceBackend, ModelType, Overflow,
    PoolingLocal, Prompt, ScoreRequest, ScoreScale,
};
use pagoda_engine::loader::{DeviceChoice, EngineOptions};
use pagoda_engine::pooling::{self, PoolingKind};

fn model(name: &str, kind: Option<PoolingKind>) -> PoolingLocal {
    let repo = std::env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").to_string());
    let path = Path::new(&repo).join("../tests/data/pooling").join(name);
    let options = EngineOptions { device: DeviceChoice::Cpu, threads: Some(1), ..EngineOptions::default() };
    PoolingLocal::new(pooling::load(&path, kind, &options, &mut |_| {}).unwrap())
}

fn text(text: &str) -> Vec<EmbedInput> {
    vec![EmbedInput::Text(text.into())]
}

async fn embed(model: &PoolingLocal, request: EmbedRequest) -> Embeddings {
    model.embed(request).await.unwrap()
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x * x).sum::<f32>().sqrt()
}

#[tokio::test]
async fn vectors_are_shaped_as_asked() {
    let model = model("bert", None);
    assert_eq!((model.model_type(), model.dims(), model.capabilities().max_context_length), (ModelType::Embedding, 48, 256));
    let plain = embed(&model, EmbedRequest { inputs: text("The cat"), ..EmbedRequest::default() }).await;
    assert!((length(&plain.vectors[0]) - 1.0).abs() < 1e-5, "modules.json lists Normalize");
    let raw = embed(&model, EmbedRequest { inputs: text("The cat"), normalize: Some(false), ..EmbedRequest::default() }).await;
    assert!(length(&raw.vectors[0]) > 1.5);
    let short = embed(&model, EmbedRequest { inputs: text("The cat"), dimensions: Some(5), ..EmbedRequest::default() }).await;
    assert!(short.vectors[0].len() == 5 && (length(&short.vectors[0]) - 1.0).abs() < 1e-5);
    let without = self::model("bert-cls", None);
    let unnormalised = embed(&without, EmbedRequest { inputs: text("The cat"), ..EmbedRequest::default() }).await;
    assert!(length(&unnormalised.vectors[0]) > 1.5, "its modules.json does not");
    let none = embed(&model, EmbedRequest::default()).await;
    assert_eq!(none, Embeddings::default());
}

#[tokio::test]
async fn texts_tokens_and_prompts_meet() {
    let model = model("bert", None);
    let ids = model.tokenize(&Prompt::Text { text: "The cat".into(), add_special_tokens: true }).await.unwrap();
    let of_text = embed(&model, EmbedRequest { inputs: text("The cat"), ..EmbedRequest::default() }).await;
    let of_ids = embed(&model, EmbedRequest { inputs: vec![EmbedInput::Tokens(ids.clone())], ..EmbedRequest::default() }).await;
    assert_eq!((&of_text, of_text.prompt_tokens), (&of_ids, ids.len()));
    let prompted = EmbedRequest { inputs: text("The cat"), prompt_name: Some("query".into()), ..EmbedRequest::default() };
    let written_out = embed(&model, EmbedRequest { inputs: text("query: The cat"), ..EmbedRequest::default() }).await;
    assert_eq!(embed(&model, prompted).await, written_out);
    let unknown = EmbedRequest { inputs: text("x"), prompt_name: Some("no".into()), ..EmbedRequest::default() };
    let error = model.embed(unknown).await.unwrap_err();
    assert_eq!(error.to_string(), "prompt_name: the model has no prompt `no`; it has document, query");
}

#[tokio::test]
async fn long_inputs_are_refused_or_cut() {
    let model = model("bert", None);
    let long = "cat ".repeat(400);
    let refused = model.embed(EmbedRequest { inputs: text(&long), ..EmbedRequest::default() }).await.unwrap_err();
    assert!(matches!(refused, BackendError::PromptTooLong { prompt_tokens, max_tokens: 256 } if prompt_tokens > 400), "{refused}");
    let cut = embed(&model, EmbedRequest { inputs: text(&long), overflow: Overflow::Cut, ..EmbedRequest::default() }).await;
    assert_eq!(cut.prompt_tokens, 256);
    let shorter = embed(&model, EmbedRequest { inputs: text(&long), max_tokens: Some(10), ..EmbedRequest::default() }).await;
    assert_eq!(shorter.prompt_tokens, 10);
    let tokens = || vec![EmbedInput::Tokens(vec![5; 300])];
    assert!(model.embed(EmbedRequest { inputs: tokens(), ..EmbedRequest::default() }).await.is_err());
    let cut = embed(&model, EmbedRequest { inputs: tokens(), overflow: Overflow::Cut, ..EmbedRequest::default() }).await;
    assert_eq!(cut.prompt_tokens, 256);
}

#[tokio::test]
async fn wrong_requests_say_what_is_wrong() {
    let model = model("bert", None);
    let embedding = |request: EmbedRequest| async { model.embed(request).await.unwrap_err().to_string() };
    let many = embedding(EmbedRequest { inputs: text("x"), dimensions: Some(49), ..EmbedRequest::default() }).await;
    assert_eq!(many, "dimensions: must be an integer between 1 and 48, got 49");
    let unknown = embedding(EmbedRequest { inputs: vec![EmbedInput::Tokens(vec![9999])], ..EmbedRequest::default() }).await;
    assert!(unknown.contains("token 9999 is outside the vocabulary"), "{unknown}");
    let tiny = embedding(EmbedRequest { inputs: text("x"), max_tokens: Some(2), ..EmbedRequest::default() }).await;
    assert!(tiny.contains("leave no room"), "{tiny}");
    let wrong_kind = model.score(ScoreRequest::default()).await.unwrap_err();
    assert!(matches!(&wrong_kind, BackendError::InvalidRequest { param: Some(param), .. } if param == "model"), "{wrong_kind}");
    let prompt = Prompt::Text { text: "x".into(), add_special_tokens: true };
    let generate = model.generate(GenerateRequest { prompt, config: GenerationConfig::default() }).await.unwrap_err();
    assert!(generate.to_string().contains("makes embeddings and cannot generate text"), "{generate}");
    assert!(model.tokenize(&Prompt::Chat(pagoda_backends::ChatPrompt::default())).await.is_err());
    assert_eq!(model.health(), Ok(()));
}

#[tokio::test]
async fn scores_of_both_kinds_of_reranker() {
    let pairs = || vec![("Which animal?".to_owned(), "The cat sits on the mat.".to_owned()), ("q".into(), "cat ".repeat(2000))];
    for (name, kind, max) in [("bert-cross", None, 64), ("qwen3-reranker", Some(PoolingKind::Reranker), 1024)] {
        let model = model(name, kind);
        assert_eq!(model.model_type(), ModelType::Reranker);
        let request = ScoreRequest { pairs: pairs(), overflow: Overflow::Cut, ..ScoreRequest::default() };
        let logits = model.score(ScoreRequest { scale: ScoreScale::Logit, ..request.clone() }).await.unwrap();
        let scores = model.score(request.clone()).await.unwrap();
        assert!(scores.prompt_tokens > max && scores.prompt_tokens < 2 * max, "{name}: the second pair is cut to {max}");
        for (logit, score) in logits.scores.iter().zip(&scores.scores) {
            assert!((1.0 / (1.0 + (-logit).exp()) - score).abs() < 1e-6, "{name}");
        }
        let refused = model.score(ScoreRequest { overflow: Overflow::Refuse, ..request.clone() }).await.unwrap_err();
        assert!(matches!(refused, BackendError::PromptTooLong { .. }), "{name}: {refused}");
        let brief = ScoreRequest { max_document_tokens: Some(3), overflow: Overflow::Refuse, ..request };
        assert!(model.score(brief).await.is_ok(), "{name}: three tokens of a document fit");
        assert!(model.embed(EmbedRequest { inputs: text("x"), ..EmbedRequest::default() }).await.is_err());
    }
    let model = model("qwen3-reranker", Some(PoolingKind::Reranker));
    let asked = |instruction: Option<&str>| {
        let pairs = vec![("q".to_owned(), "d".to_owned())];
        ScoreRequest { pairs, instruction: instruction.map(str::to_owned), scale: ScoreScale::Logit, ..ScoreRequest::default() }
    };
    let (usual, told) = (model.score(asked(None)).await.unwrap(), model.score(asked(Some("Find cats"))).await.unwrap());
    assert_ne!(usual.scores, told.scores, "the instruction is part of the question");
}
