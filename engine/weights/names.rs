//! Where each weight is called what: one table a naming scheme. `{l}` is the layer, `{e}` the expert.
//!
//! Linear entries are stems: `.weight` and `.bias` are appended. A fused matrix is one entry, a split one is several, stacked in order.
//! Hugging Face names follow the modelling files of transformers, GGUF names follow gguf-py's `tensor_mapping.py`.

use super::checkpoint::VectorRole;

/// The names of one scheme.
pub struct Names {
    /// Token embedding.
    pub embedding: &'static str,
    /// Output head where it is not tied.
    pub lm_head: &'static str,
    /// q, k, v.
    pub qkv: &'static [&'static str],
    /// Attention output.
    pub o: &'static str,
    /// gate, up.
    pub gate_up: &'static [&'static str],
    /// down.
    pub down: &'static str,
    /// MoE router.
    pub router: &'static str,
    /// gate, up of an expert; without `{e}` all experts are one stacked tensor.
    pub expert_gate_up: &'static [&'static str],
    /// down of an expert.
    pub expert_down: &'static str,
    /// Norm before attention.
    pub input_norm: &'static str,
    /// Norm before the MLP.
    pub mlp_norm: &'static str,
    /// Norm after attention (Gemma).
    pub post_attention_norm: &'static str,
    /// Norm after the MLP (Gemma).
    pub post_mlp_norm: &'static str,
    /// Norm before the head.
    pub final_norm: &'static str,
    /// Per-head norm of q.
    pub q_norm: &'static str,
    /// Per-head norm of k.
    pub k_norm: &'static str,
}

/// Llama and all that took over its names.
pub const HF: Names = Names {
    embedding: "model.embed_tokens",
    lm_head: "lm_head",
    qkv: &["model.layers.{l}.self_attn.q_proj", "model.layers.{l}.self_attn.k_proj", "model.layers.{l}.self_attn.v_proj"],
    o: "model.layers.{l}.self_attn.o_proj",
    gate_up: &["model.layers.{l}.mlp.gate_proj", "model.layers.{l}.mlp.up_proj"],
    down: "model.layers.{l}.mlp.down_proj",
    router: "model.layers.{l}.mlp.gate",
    expert_gate_up: &["model.layers.{l}.mlp.experts.{e}.gate_proj", "model.layers.{l}.mlp.experts.{e}.up_proj"],
    expert_down: "model.layers.{l}.mlp.experts.{e}.down_proj",
    input_norm: "model.layers.{l}.input_layernorm",
    mlp_norm: "model.layers.{l}.post_attention_layernorm",
    post_attention_norm: "",
    post_mlp_norm: "",
    final_norm: "model.norm",
    q_norm: "model.layers.{l}.self_attn.q_norm",
    k_norm: "model.layers.{l}.self_attn.k_norm",
};

/// Phi-3: q, k, v and gate, up are fused.
pub const HF_PHI3: Names = Names { qkv: &["model.layers.{l}.self_attn.qkv_proj"], gate_up: &["model.layers.{l}.mlp.gate_up_proj"], ..HF };

/// Gemma 2 and 3: four norms a layer.
pub const HF_GEMMA: Names = Names {
    mlp_norm: "model.layers.{l}.pre_feedforward_layernorm",
    post_attention_norm: "model.layers.{l}.post_attention_layernorm",
    post_mlp_norm: "model.layers.{l}.post_feedforward_layernorm",
    ..HF
};

/// Mixtral: w1 is gate, w3 up, w2 down.
pub const HF_MIXTRAL: Names = Names {
    router: "model.layers.{l}.block_sparse_moe.gate",
    expert_gate_up: &["model.layers.{l}.block_sparse_moe.experts.{e}.w1", "model.layers.{l}.block_sparse_moe.experts.{e}.w3"],
    expert_down: "model.layers.{l}.block_sparse_moe.experts.{e}.w2",
    ..HF
};

/// GGUF.
pub const GGUF: Names = Names {
    embedding: "token_embd",
    lm_head: "output",
    qkv: &["blk.{l}.attn_q", "blk.{l}.attn_k", "blk.{l}.attn_v"],
    o: "blk.{l}.attn_output",
    gate_up: &["blk.{l}.ffn_gate", "blk.{l}.ffn_up"],
    down: "blk.{l}.ffn_down",
    router: "blk.{l}.ffn_gate_inp",
    expert_gate_up: &["blk.{l}.ffn_gate_exps", "blk.{l}.ffn_up_exps"],
    expert_down: "blk.{l}.ffn_down_exps",
    input_norm: "blk.{l}.attn_norm",
    mlp_norm: "blk.{l}.ffn_norm",
    post_attention_norm: "blk.{l}.post_attention_norm",
    post_mlp_norm: "blk.{l}.post_ffw_norm",
    final_norm: "output_norm",
    q_norm: "blk.{l}.attn_q_norm",
    k_norm: "blk.{l}.attn_k_norm",
};

/// GGUF of Phi-3: `ffn_up` holds gate, then up.
pub const GGUF_PHI3: Names = Names { qkv: &["blk.{l}.attn_qkv"], gate_up: &["blk.{l}.ffn_up"], ..GGUF };

impl Names {
    /// The stem of a vector's name.
    pub fn vector(&self, role: VectorRole) -> &'static str {
        match role {
            VectorRole::InputNorm => self.input_norm,
            VectorRole::MlpNorm => self.mlp_norm,
            VectorRole::PostAttentionNorm => self.post_attention_norm,
            VectorRole::PostMlpNorm => self.post_mlp_norm,
            VectorRole::FinalNorm => self.final_norm,
            VectorRole::QNorm => self.q_norm,
            VectorRole::KNorm => self.k_norm,
        }
    }
}

/// A stem with layer and expert filled in.
pub fn fill(stem: &str, layer: usize, expert: usize) -> String {
    stem.replace("{l}", &layer.to_string()).replace("{e}", &expert.to_string())
}
