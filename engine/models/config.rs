//! The resolved shape of a model: what the decoder needs, whichever file format it came from.
//!
//! Made by `families.rs` from a Hugging Face config.json or by `weights/gguf_model.rs` from GGUF metadata.

use crate::device::RopeStyle;

/// Activation of the gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// GELU, tanh approximation.
    GeluTanh,
    /// GELU with the error function.
    Gelu,
}

/// Frequency scaling of rotary embeddings (HF `rope_scaling`).
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Plain.
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided, high kept, between interpolated.
    Llama3 {
        /// Division of the low frequencies.
        factor: f32,
        /// Below original / this wavelength counts as low frequency.
        low_freq_factor: f32,
        /// Above it counts as high frequency.
        high_freq_factor: f32,
        /// Context length before scaling.
        original_max_position_embeddings: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// Context extension.
        factor: f32,
        /// Context length before scaling.
        original_max_position_embeddings: usize,
        /// Correction range, default 32.
        beta_fast: f32,
        /// Correction range, default 1.
        beta_slow: f32,
        /// Factor on cos and sin; None: 0.1 ln(factor) + 1.
        attention_factor: Option<f32>,
        /// Whether the correction range is rounded to whole dimensions (HF default: yes).
        truncate: bool,
    },
    /// Divisors per rotary pair (Phi-3 longrope, GGUF `rope_freqs.weight`).
    PerDim {
        /// `[rotary_dim / 2]`, used while the whole context fits the original length.
        short: Vec<f32>,
        /// `[rotary_dim / 2]`, used when `max_model_len` exceeds it.
        long: Vec<f32>,
        /// Context length before scaling; 0 when only one set exists.
        original_max_position_embeddings: usize,
        /// Factor on cos and sin.
        attention_factor: f32,
    },
}

/// Rotary embedding of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f32,
    /// Dimensions of a head that rotate.
    pub rotary_dim: usize,
    /// Scaling.
    pub scaling: RopeScaling,
    /// Pairing.
    pub style: RopeStyle,
}

/// Mixture of experts in place of the dense MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoeConfig {
    /// Experts of a layer.
    pub num_experts: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// Whether chosen probabilities are renormalised.
    pub renormalise: bool,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerConfig {
    /// Sliding window in tokens, or full attention.
    pub window: Option<usize>,
    /// Uses `rope_local` instead of `rope` (Gemma 3's sliding layers).
    pub local_rope: bool,
    /// MLP is `ModelConfig::moe` (else dense).
    pub moe: bool,
}

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Row of the families table ("llama", "qwen2", ...).
    pub family: &'static str,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the dense MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Epsilon of every norm.
    pub rms_norm_eps: f32,
    /// Longest context of the checkpoint.
    pub max_position_embeddings: usize,
    /// lm_head is the embedding.
    pub tie_word_embeddings: bool,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// o_proj has a bias.
    pub o_bias: bool,
    /// Dense MLP layers have biases.
    pub mlp_bias: bool,
    /// q and k heads are normed before rope.
    pub qk_norm: bool,
    /// Norm weights are stored as w - 1 (Gemma safetensors); folded at load.
    pub norm_plus_one: bool,
    /// Norms after attention and MLP, before the residual add (Gemma 2 and 3).
    pub post_norms: bool,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Factor on the embedding (Gemma: sqrt(hidden) in bf16).
    pub embedding_scale: f32,
    /// Factor on q·k.
    pub attention_scale: f32,
    /// Soft cap of attention scores.
    pub attention_soft_cap: Option<f32>,
    /// Soft cap of final logits.
    pub final_soft_cap: Option<f32>,
    /// Rotary embedding of most layers.
    pub rope: RopeConfig,
    /// Rotary embedding of layers with `local_rope`.
    pub rope_local: Option<RopeConfig>,
    /// Mixture of experts, if any layer has one.
    pub moe: Option<MoeConfig>,
    /// One entry a layer.
    pub layers: Vec<LayerConfig>,
    /// Tokens that end a generation (config, then generation_config).
    pub eos_token_ids: Vec<u32>,
    /// Token put in front by tokenisers that do so.
    pub bos_token_id: Option<u32>,
}

impl ModelConfig {
    /// Bytes of keys and values of one token over all layers.
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> usize {
        2 * self.layers.len() * self.num_kv_heads * self.head_dim * element_bytes
    }
}
