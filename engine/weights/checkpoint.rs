//! `Checkpoint`: an opened model, whichever file format it came from. The decoder asks it for weights by role.
//!
//! Opening reads headers only and checks every tensor that the model will ask for (name, shape, format) before memory is taken.

use std::path::PathBuf;

use crate::device::HostWeight;
use crate::models::config::ModelConfig;

/// Which matrix of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinearRole {
    /// Token embedding `[vocab, hidden]`.
    Embedding,
    /// Output head `[vocab, hidden]` (the embedding again when tied).
    LmHead,
    /// q, k, v stacked: `[(num_heads + 2 num_kv_heads) * head_dim, hidden]`.
    Qkv,
    /// Attention output `[hidden, num_heads * head_dim]`.
    O,
    /// gate and up stacked: `[2 * intermediate, hidden]`.
    GateUp,
    /// `[hidden, intermediate]`.
    Down,
    /// MoE router `[num_experts, hidden]`.
    Router,
    /// gate and up of one expert.
    ExpertGateUp(usize),
    /// down of one expert.
    ExpertDown(usize),
}

/// Which vector of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VectorRole {
    /// Norm before attention.
    InputNorm,
    /// Norm before the MLP (HF `post_attention_layernorm`; Gemma: `pre_feedforward_layernorm`).
    MlpNorm,
    /// Gemma's norm after attention.
    PostAttentionNorm,
    /// Gemma's norm after the MLP.
    PostMlpNorm,
    /// Norm before the head.
    FinalNorm,
    /// Per-head norm of q.
    QNorm,
    /// Per-head norm of k.
    KNorm,
}

/// A linear layer on the host: stacked parts and their concatenated bias.
pub struct HostLinear {
    /// Stacked along n, each a view into the file.
    pub parts: Vec<HostWeight>,
    /// Concatenated biases, f32, or none.
    pub bias: Option<Vec<f32>>,
}

/// Where the tokeniser comes from.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// A tokenizer.json.
    File(PathBuf),
    /// The vocabulary inside a GGUF file.
    Gguf(Box<GgufVocab>),
}

/// A GGUF file's `tokenizer.ggml.*` keys.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// Pre-tokeniser name (`smollm`, `llama-bpe`, `qwen2`, ...).
    pub pre: String,
    /// Token texts by id.
    pub tokens: Vec<String>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// SentencePiece scores; empty for BPE.
    pub scores: Vec<f32>,
    /// BPE merges, "left right".
    pub merges: Vec<String>,
    /// Special ids.
    pub bos: Option<u32>,
    /// Special ids.
    pub eos: Option<u32>,
    /// Special ids.
    pub unk: Option<u32>,
    /// Special ids.
    pub pad: Option<u32>,
    /// Put BOS in front.
    pub add_bos: Option<bool>,
    /// SentencePiece: put a space in front.
    pub add_space_prefix: Option<bool>,
}

/// Sampling defaults of generation_config.json; None where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Temperature; 0 when `do_sample` is false.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// Top-k.
    pub top_k: Option<u32>,
    /// Repetition penalty.
    pub repetition_penalty: Option<f32>,
}

/// What the text layer needs beside the tokeniser.
#[derive(Clone, Debug, Default)]
pub struct TextConfig {
    /// Jinja source: chat_template.jinja, tokenizer_config.json (`default` of a list) or GGUF.
    pub chat_template: Option<String>,
    /// The string of BOS, for the template.
    pub bos_token: Option<String>,
    /// The string of EOS.
    pub eos_token: Option<String>,
    /// Further special-token strings by name (`pad_token`, `unk_token`).
    pub special_tokens: Vec<(String, String)>,
    /// tokenizer_config.json's `add_bos_token` where present (else the tokeniser's own post-processor decides).
    pub add_bos_token: Option<bool>,
}

/// An opened checkpoint.
pub struct Checkpoint {
    /// Folder or file it was opened from.
    pub path: PathBuf,
    /// Resolved shape.
    pub config: ModelConfig,
    /// Tokeniser.
    pub tokenizer: TokenizerSource,
    /// Templates and special strings.
    pub text: TextConfig,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
}
