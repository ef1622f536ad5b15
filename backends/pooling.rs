//! Requests for vectors and scores, and what answers them: plain types that cross `InferenceBackend`.

use crate::{BackendError, ModelType};

/// One text to embed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EmbedInput {
    /// Text; the model's special tokens are added.
    Text(String),
    /// Token ids as they are.
    Tokens(Vec<u32>),
}

/// What happens to an input that is longer than the model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The request is refused.
    #[default]
    Refuse,
    /// The input is cut at its end; of a pair, the longer text first.
    Cut,
}

/// Texts to embed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EmbedRequest {
    /// The texts.
    pub inputs: Vec<EmbedInput>,
    /// Name of the prompt that is put in front of texts; None: the model's default, if it has one.
    pub prompt_name: Option<String>,
    /// Numbers of each vector, the first ones of it; None: all.
    pub dimensions: Option<usize>,
    /// What happens to long inputs.
    pub overflow: Overflow,
    /// Longest input in tokens, where shorter than the model's; longer ones are cut.
    pub max_tokens: Option<usize>,
    /// Divide vectors by their length; None: as the model does.
    pub normalize: Option<bool>,
}

/// Vectors of an `EmbedRequest`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embeddings {
    /// One an input, in order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs, as they went through the model.
    pub prompt_tokens: usize,
}

/// What a score is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScoreScale {
    /// Between 0 and 1: the sigmoid of the model's logit.
    #[default]
    Probability,
    /// The logit.
    Logit,
}

/// Pairs to score.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreRequest {
    /// (query, document)
    pub pairs: Vec<(String, String)>,
    /// What the query is for, for models that are told so.
    pub instruction: Option<String>,
    /// What happens to long pairs.
    pub overflow: Overflow,
    /// Longest pair in tokens, where shorter than the model's; longer ones are cut.
    pub max_tokens: Option<usize>,
    /// Longest document in tokens; longer ones are cut.
    pub max_document_tokens: Option<usize>,
    /// What a score is.
    pub scale: ScoreScale,
}

/// Scores of a `ScoreRequest`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// One a pair, in order.
    pub scores: Vec<f32>,
    /// Tokens of all pairs, as they went through the model.
    pub prompt_tokens: usize,
}

/// Divides a vector by its length; a vector of zeros stays one.
pub(crate) fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

/// The refusal of a request that is for another kind of model.
pub(crate) fn wrong_kind(model: ModelType, wanted: &str) -> BackendError {
    let message = match model {
        ModelType::CausalLm => {
            format!("this model generates text and cannot {wanted}; use /v1/chat/completions, /v1/completions or /v1/messages")
        }
        ModelType::Embedding => format!("this model makes embeddings and cannot {wanted}; use /v1/embeddings or /api/embed"),
        ModelType::Reranker => format!("this model reranks and cannot {wanted}; use /v1/rerank or /score"),
    };
    BackendError::InvalidRequest { param: Some("model".into()), message: format!("model: {message}") }
}
