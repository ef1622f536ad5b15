//! The families table: what each Hugging Face architecture is to the one decoder. A family is a row.
//!
//! Meanings and defaults of the keys follow the configuration and model classes of transformers (Apache-2.0).

use crate::config::{Alibi, Block, Config, Fields, Positions, Qkv};
use crate::norm::NormKind;
use crate::serve::{Fault, fault};

/// Where tensors are found. `{l}` is the layer's number; an empty name: there is none.
#[derive(Debug, PartialEq)]
pub struct Names {
    /// Begins every name but the head's; some checkpoints leave it out.
    pub base: &'static str,
    pub embedding: &'static str,
    pub positions: &'static str,
    pub embedding_norm: &'static str,
    /// Begins the names of a layer's tensors.
    pub layer: &'static str,
    pub attention_norm: &'static str,
    pub mlp_norm: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    /// One name, or those of q, k and v.
    pub qkv: &'static [&'static str],
    pub o: &'static str,
    /// One name, or those of gate and up.
    pub up: &'static [&'static str],
    pub down: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
}

const LLAMA_NAMES: Names = Names {
    base: "model.",
    embedding: "embed_tokens",
    positions: "",
    embedding_norm: "",
    layer: "layers.{l}.",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    q_norm: "",
    k_norm: "",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    o: "self_attn.o_proj",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    final_norm: "norm",
    head: "lm_head",
};

const GPT_NAMES: Names = Names {
    base: "transformer.",
    embedding: "wte",
    layer: "h.{l}.",
    attention_norm: "ln_1",
    mlp_norm: "ln_2",
    final_norm: "ln_f",
    ..LLAMA_NAMES
};

const BLOOM_NAMES: Names = Names {
    embedding: "word_embeddings",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    qkv: &["self_attention.query_key_value"],
    o: "self_attention.dense",
    up: &["mlp.dense_h_to_4h"],
    down: "mlp.dense_4h_to_h",
    ..GPT_NAMES
};

/// A row of the table.
#[derive(Debug, PartialEq)]
pub struct Family {
    pub name: &'static str,
    pub architecture: &'static str,
    pub names: Names,
    pub norm: NormKind,
    pub block: Block,
    pub positions: Positions,
    pub qkv: Qkv,
    /// Weights of layers lie `[k, n]` (GPT-2's Conv1D).
    pub is_transposed: bool,
    /// Where config.json names none.
    pub activation: &'static str,
    /// Default of `tie_word_embeddings`.
    pub tied: bool,
    /// Share of a head that is turned, where config.json does not say.
    pub rotary_share: f64,
    /// Keys that must have this value where they are there, since another means another model.
    pub required: &'static [(&'static str, bool)],
}

const LLAMA: Family = Family {
    name: "llama",
    architecture: "LlamaForCausalLM",
    names: LLAMA_NAMES,
    norm: NormKind::Rms,
    block: Block::Sequential,
    positions: Positions::Rotary { interleaved: false },
    qkv: Qkv::Stacked,
    is_transposed: false,
    activation: "silu",
    tied: false,
    rotary_share: 1.0,
    required: &[],
};

/// Every family.
pub const FAMILIES: &[Family] = &[
    LLAMA,
    Family { name: "mistral", architecture: "MistralForCausalLM", ..LLAMA },
    Family { name: "qwen2", architecture: "Qwen2ForCausalLM", required: &[("use_sliding_window", false)], ..LLAMA },
    Family {
        name: "qwen3",
        architecture: "Qwen3ForCausalLM",
        names: Names { q_norm: "self_attn.q_norm", k_norm: "self_attn.k_norm", ..LLAMA_NAMES },
        required: &[("use_sliding_window", false)],
        ..LLAMA
    },
    Family {
        name: "gpt2",
        architecture: "GPT2LMHeadModel",
        names: Names { positions: "wpe", qkv: &["attn.c_attn"], o: "attn.c_proj", up: &["mlp.c_fc"], down: "mlp.c_proj", ..GPT_NAMES },
        norm: NormKind::Layer,
        positions: Positions::Learned { offset: 0 },
        is_transposed: true,
        activation: "gelu_new",
        tied: true,
        required: &[("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false)],
        ..LLAMA
    },
    Family {
        name: "gptj",
        architecture: "GPTJForCausalLM",
        names: Names {
            mlp_norm: "",
            qkv: &["attn.q_proj", "attn.k_proj", "attn.v_proj"],
            o: "attn.out_proj",
            up: &["mlp.fc_in"],
            down: "mlp.fc_out",
            ..GPT_NAMES
        },
        norm: NormKind::Layer,
        block: Block::Parallel,
        positions: Positions::Rotary { interleaved: true },
        activation: "gelu_new",
        ..LLAMA
    },
    Family {
        name: "gpt_neox",
        architecture: "GPTNeoXForCausalLM",
        names: Names {
            base: "gpt_neox.",
            embedding: "embed_in",
            layer: "layers.{l}.",
            qkv: &["attention.query_key_value"],
            o: "attention.dense",
            final_norm: "final_layer_norm",
            head: "embed_out",
            ..BLOOM_NAMES
        },
        norm: NormKind::Layer,
        block: Block::Parallel,
        qkv: Qkv::Grouped,
        activation: "gelu",
        rotary_share: 0.25,
        ..LLAMA
    },
    Family {
        name: "bloom",
        architecture: "BloomForCausalLM",
        names: Names { embedding_norm: "word_embeddings_layernorm", ..BLOOM_NAMES },
        norm: NormKind::Layer,
        positions: Positions::Alibi(Alibi::Plain),
        qkv: Qkv::Grouped,
        activation: "gelu_new",
        tied: true,
        required: &[("apply_residual_connection_post_layernorm", false)],
        ..LLAMA
    },
    Family {
        name: "falcon",
        architecture: "FalconForCausalLM",
        names: BLOOM_NAMES,
        norm: NormKind::Layer,
        activation: "gelu",
        tied: true,
        required: &[("apply_residual_connection_post_layernorm", false)],
        ..LLAMA
    },
    Family {
        name: "mpt",
        architecture: "MptForCausalLM",
        names: Names {
            layer: "blocks.{l}.",
            attention_norm: "norm_1",
            mlp_norm: "norm_2",
            qkv: &["attn.Wqkv"],
            o: "attn.out_proj",
            up: &["ffn.up_proj"],
            down: "ffn.down_proj",
            final_norm: "norm_f",
            ..GPT_NAMES
        },
        norm: NormKind::Layer,
        positions: Positions::Alibi(Alibi::Plain),
        activation: "gelu",
        tied: true,
        ..LLAMA
    },
    Family {
        name: "opt",
        architecture: "OPTForCausalLM",
        names: Names {
            base: "model.decoder.",
            positions: "embed_positions",
            attention_norm: "self_attn_layer_norm",
            mlp_norm: "final_layer_norm",
            o: "self_attn.out_proj",
            up: &["fc1"],
            down: "fc2",
            final_norm: "final_layer_norm",
            ..LLAMA_NAMES
        },
        norm: NormKind::Layer,
        positions: Positions::Learned { offset: 2 },
        activation: "relu",
        tied: true,
        required: &[("do_layer_norm_before", true), ("_remove_final_layer_norm", false)],
        ..LLAMA
    },
    Family {
        name: "phi",
        architecture: "PhiForCausalLM",
        names: Names {
            mlp_norm: "",
            o: "self_attn.dense",
            up: &["mlp.fc1"],
            down: "mlp.fc2",
            final_norm: "final_layernorm",
            ..LLAMA_NAMES
        },
        norm: NormKind::Layer,
        block: Block::Parallel,
        activation: "gelu_new",
        rotary_share: 0.5,
        required: &[("qk_layernorm", false)],
        ..LLAMA
    },
    Family {
        name: "stablelm",
        architecture: "StableLmForCausalLM",
        norm: NormKind::Layer,
        rotary_share: 0.25,
        required: &[("qk_layernorm", false), ("use_parallel_residual", false)],
        ..LLAMA
    },
    Family {
        name: "starcoder2",
        architecture: "Starcoder2ForCausalLM",
        names: Names { up: &["mlp.c_fc"], down: "mlp.c_proj", ..LLAMA_NAMES },
        norm: NormKind::Layer,
        activation: "gelu_pytorch_tanh",
        tied: true,
        ..LLAMA
    },
    Family { name: "olmo", architecture: "OlmoForCausalLM", norm: NormKind::Bare, ..LLAMA },
    Family {
        name: "olmo2",
        architecture: "Olmo2ForCausalLM",
        names: Names {
            attention_norm: "post_attention_layernorm",
            mlp_norm: "post_feedforward_layernorm",
            q_norm: "self_attn.q_norm",
            k_norm: "self_attn.k_norm",
            ..LLAMA_NAMES
        },
        block: Block::PostNorm,
        ..LLAMA
    },
    Family {
        name: "gemma",
        architecture: "GemmaForCausalLM",
        norm: NormKind::RmsPlusOne,
        activation: "gelu_pytorch_tanh",
        tied: true,
        ..LLAMA
    },
    Family {
        name: "cohere",
        architecture: "CohereForCausalLM",
        names: Names { mlp_norm: "", ..LLAMA_NAMES },
        norm: NormKind::Layer,
        block: Block::Parallel,
        positions: Positions::Rotary { interleaved: true },
        tied: true,
        required: &[("use_qk_norm", false)],
        ..LLAMA
    },
    Family { name: "granite", architecture: "GraniteForCausalLM", ..LLAMA },
];

/// What a family's configuration says beyond the keys that all have.
///
/// # Errors
/// A value that means a model the decoder is not.
pub fn adjust(config: &mut Config, fields: &Fields) -> Result<(), Fault> {
    let number = |key: &str| fields.number(&[key]);
    match config.family.name {
        "gpt_neox" if !fields.flag("use_parallel_residual", true) => config.block = Block::Sequential,
        "falcon" => falcon(config, fields)?,
        "mpt" => mpt(config, fields)?,
        "opt" if fields.size(&["word_embed_proj_dim"]).is_some_and(|width| width != config.hidden_size) => {
            return fault(format!("{}: word_embed_proj_dim is not hidden_size, which is not supported", fields.path));
        }
        "olmo" => {
            config.clip_qkv = number("clip_qkv");
            config.eps = 1e-5;
        }
        "gemma" => config.embedding_scale = (config.hidden_size as f64).sqrt(),
        "cohere" => config.logit_scale = number("logit_scale").unwrap_or(0.0625),
        "granite" => {
            config.embedding_scale = number("embedding_multiplier").unwrap_or(1.0);
            config.residual_scale = number("residual_multiplier").unwrap_or(1.0);
            config.attention_scale = number("attention_multiplier").unwrap_or(1.0);
            config.logit_scale = 1.0 / number("logits_scaling").unwrap_or(1.0);
        }
        _ => {}
    }
    Ok(())
}

/// Three generations: 40B and 180B, 7B, and the small ones with ALiBi.
fn falcon(config: &mut Config, fields: &Fields) -> Result<(), Fault> {
    let is_new = fields.flag("new_decoder_architecture", false);
    let is_parallel = is_new || fields.flag("parallel_attn", true);
    config.num_kv_heads = match (is_new, fields.flag("multi_query", true)) {
        (true, _) => config.num_kv_heads,
        (false, true) => 1,
        (false, false) => config.num_heads,
    };
    config.qkv = match (is_new, config.num_kv_heads) {
        (false, 1) => Qkv::Stacked,
        _ => Qkv::Grouped,
    };
    if is_parallel {
        config.block = Block::Parallel;
        let two_norms = is_new && fields.size(&["num_ln_in_parallel_attn"]).unwrap_or(2) == 2;
        (config.attention_norm, config.mlp_norm) = if two_norms { ("ln_attn", "ln_mlp") } else { ("input_layernorm", "") };
    }
    if fields.flag("alibi", false) {
        config.rotary = None;
        config.alibi = Some(Alibi::Scaled);
    }
    Ok(())
}

fn mpt(config: &mut Config, fields: &Fields) -> Result<(), Fault> {
    let attention = fields.object("attn_config");
    let says = |key: &str, default: bool| attention.as_ref().map_or(default, |fields| fields.flag(key, default));
    if !says("alibi", true) || says("qk_ln", false) || says("prefix_lm", false) {
        return fault(format!("{}: attn_config: only ALiBi without qk_ln and prefix_lm is supported", fields.path));
    }
    let of_attention = |key: &str| attention.as_ref().and_then(|fields| fields.number(&[key]));
    if of_attention("alibi_bias_max").is_some_and(|max| max != 8.0) {
        return fault(format!("{}: attn_config: alibi_bias_max is not 8, which is not supported", fields.path));
    }
    config.clip_qkv = of_attention("clip_qkv");
    config.attention_scale = of_attention("softmax_scale").unwrap_or(config.attention_scale);
    config.intermediate_size = (config.hidden_size as f64 * fields.number(&["expansion_ratio"]).unwrap_or(4.0)) as usize;
    config.eps = fields.number(&["layer_norm_epsilon"]).unwrap_or(1e-5);
    Ok(())
}
