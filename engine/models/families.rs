//! The families table: what each Hugging Face architecture adds to the one decoder, and config.json -> `ModelConfig`.
//!
//! A family is a row. Meanings and defaults of the keys follow the configuration classes of transformers (Apache-2.0), both the layout
//! of version 4 (`rope_theta`, `rope_scaling`) and that of version 5 (`rope_parameters`).

use std::path::Path;

use super::config::{Activation, LayerConfig, ModelConfig, MoeConfig};
use super::limits::{MAX_CONTEXT, MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, check_config};
use super::rope_parameters::{self, RopeInputs, context};
use crate::error::{EngineError, Result};
use crate::weights::json::{Fields, checkpoint_error};
use crate::weights::names::{HF, HF_GEMMA, HF_MIXTRAL, HF_PHI3, Names};

/// Whether a projection has a bias.
enum Bias {
    Never,
    Always,
    /// The value of a key, false when absent.
    Key(&'static str),
}

/// Which layers have a sliding window.
enum Windows {
    None,
    /// All layers, when `sliding_window` is a number.
    All,
    /// Layers from `max_window_layers` on, when `use_sliding_window` is set.
    UpperLayers,
    /// All layers, when `use_sliding_window` is set.
    AllWhenUsed,
    /// All but every n-th layer; n is `sliding_window_pattern` or this default.
    AllButEvery(usize),
}

/// Where a layer's MLP is a mixture of experts.
enum Experts {
    None,
    Mixtral,
    Qwen,
}

/// A row of the table.
struct Family {
    name: &'static str,
    architectures: &'static [&'static str],
    names: &'static Names,
    /// Default of `tie_word_embeddings`.
    tied: bool,
    /// Default of `head_dim`; None: hidden_size / num_attention_heads.
    head_dim: Option<usize>,
    qkv_bias: Bias,
    o_bias: Bias,
    mlp_bias: Bias,
    qk_norm: bool,
    /// Gemma: norms of 1 + w, norms after attention and MLP, scaled embedding, query_pre_attn_scalar, soft caps.
    gemma: bool,
    windows: Windows,
    experts: Experts,
}

const LLAMA: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM"],
    names: &HF,
    tied: false,
    head_dim: None,
    qkv_bias: Bias::Key("attention_bias"),
    o_bias: Bias::Key("attention_bias"),
    mlp_bias: Bias::Key("mlp_bias"),
    qk_norm: false,
    gemma: false,
    windows: Windows::None,
    experts: Experts::None,
};

const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        name: "qwen2",
        architectures: &["Qwen2ForCausalLM"],
        qkv_bias: Bias::Always,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        windows: Windows::UpperLayers,
        ..LLAMA
    },
    Family {
        name: "qwen3",
        architectures: &["Qwen3ForCausalLM"],
        head_dim: Some(128),
        mlp_bias: Bias::Never,
        qk_norm: true,
        windows: Windows::UpperLayers,
        ..LLAMA
    },
    Family {
        name: "qwen3_moe",
        architectures: &["Qwen3MoeForCausalLM"],
        mlp_bias: Bias::Never,
        qk_norm: true,
        windows: Windows::AllWhenUsed,
        experts: Experts::Qwen,
        ..LLAMA
    },
    Family {
        name: "mistral",
        architectures: &["MistralForCausalLM"],
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        windows: Windows::All,
        ..LLAMA
    },
    Family {
        name: "mixtral",
        architectures: &["MixtralForCausalLM"],
        names: &HF_MIXTRAL,
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        windows: Windows::All,
        experts: Experts::Mixtral,
        ..LLAMA
    },
    Family {
        name: "phi3",
        architectures: &["Phi3ForCausalLM"],
        names: &HF_PHI3,
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        windows: Windows::All,
        ..LLAMA
    },
    Family {
        name: "gemma2",
        architectures: &["Gemma2ForCausalLM"],
        names: &HF_GEMMA,
        tied: true,
        head_dim: Some(256),
        mlp_bias: Bias::Never,
        gemma: true,
        windows: Windows::AllButEvery(2),
        ..LLAMA
    },
    Family {
        name: "gemma3",
        architectures: &["Gemma3ForCausalLM"],
        names: &HF_GEMMA,
        tied: true,
        head_dim: Some(256),
        mlp_bias: Bias::Never,
        qk_norm: true,
        gemma: true,
        windows: Windows::AllButEvery(6),
        ..LLAMA
    },
];

/// The architectures of the table, for messages.
pub fn known_architectures() -> String {
    FAMILIES.iter().flat_map(|family| family.architectures).copied().collect::<Vec<_>>().join(", ")
}

/// Reads the object of a config.json; `path` is for messages.
///
/// # Errors
/// A key is missing or out of range, or the architecture is unknown.
pub fn parse_config(path: &Path, fields: &Fields) -> Result<(ModelConfig, &'static Names)> {
    let family = find(fields)?;
    let config = build(family, fields)?;
    check_config(&config).map_err(|reason| checkpoint_error(path, reason))?;
    Ok((config, family.names))
}

/// Whether an architecture is a decoder of this table.
pub(crate) fn is_known_decoder(architecture: &str) -> bool {
    row_of(architecture).is_some()
}

fn row_of(architecture: &str) -> Option<&'static Family> {
    // A model that was saved without its head, as models of embeddings are, is the decoder all the same.
    let causal = architecture.strip_suffix("Model").map(|stem| format!("{stem}ForCausalLM"));
    let is_named = |known: &&str| *known == architecture || Some(*known) == causal.as_deref();
    FAMILIES.iter().find(|family| family.architectures.iter().any(&is_named))
}

fn find(fields: &Fields) -> Result<&'static Family> {
    let list = fields.opt_list("architectures", 16)?.unwrap_or_default();
    let Some(name) = list.first().and_then(|name| name.as_str()) else {
        return Err(fields.error("architectures", format_args!("is missing, expected one of {}", known_architectures())));
    };
    let known = row_of(name);
    known.ok_or_else(|| EngineError::UnknownArchitecture { name: name.to_owned(), known: known_architectures() })
}

fn build(family: &Family, fields: &Fields) -> Result<ModelConfig> {
    let hidden_size = fields.size("hidden_size", MAX_WIDTH)?;
    let num_layers = fields.size("num_hidden_layers", MAX_LAYERS)?;
    let num_heads = fields.size("num_attention_heads", MAX_HEADS)?;
    let num_kv_heads = fields.opt_size("num_key_value_heads", MAX_HEADS)?.unwrap_or(num_heads);
    let head_dim = head_dim(family, fields, hidden_size, num_heads)?;
    let intermediate_size = fields.size("intermediate_size", MAX_WIDTH)?;
    let windows = windows(family, fields, num_layers)?;
    let experts = experts(family, fields, num_layers, intermediate_size)?;
    let ropes = rope_parameters::read(fields, &RopeInputs { head_dim, has_local: family.name == "gemma3" })?;
    let max_position_embeddings = context(&ropes.global.scaling, fields.size("max_position_embeddings", MAX_CONTEXT)?);
    let layers = (0..num_layers).map(|layer| LayerConfig {
        // A window as long as the context is none.
        window: windows[layer].filter(|window| *window < max_position_embeddings),
        local_rope: ropes.local.is_some() && windows[layer].is_some(),
        moe: experts.is_some_and(|_| is_sparse(family, fields, layer)),
    });
    let layers: Vec<LayerConfig> = layers.collect();
    let mut config = ModelConfig {
        family: family.name,
        vocab_size: fields.size("vocab_size", MAX_VOCAB)?,
        hidden_size,
        intermediate_size,
        num_heads,
        num_kv_heads,
        head_dim,
        rms_norm_eps: fields.opt_positive("rms_norm_eps")?.unwrap_or(1e-6),
        max_position_embeddings,
        tie_word_embeddings: fields.opt_flag("tie_word_embeddings")?.unwrap_or(family.tied),
        qkv_bias: bias(&family.qkv_bias, fields)?,
        o_bias: bias(&family.o_bias, fields)?,
        mlp_bias: bias(&family.mlp_bias, fields)?,
        qk_norm: family.qk_norm,
        norm_plus_one: family.gemma,
        post_norms: family.gemma,
        activation: activation(family, fields)?,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_soft_cap: None,
        final_soft_cap: None,
        rope: ropes.global,
        rope_local: ropes.local,
        moe: experts.filter(|_| layers.iter().any(|layer| layer.moe)),
        layers,
        eos_token_ids: fields.token_ids("eos_token_id")?,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
    };
    if family.gemma {
        gemma(&mut config, fields)?;
    }
    Ok(config)
}

fn gemma(config: &mut ModelConfig, fields: &Fields) -> Result<()> {
    // transformers rounds this factor to the type of the weights; activations here may be f32, so it stays exact, as in float32 runs.
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    config.attention_scale = 1.0 / fields.opt_positive("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt();
    // Gemma 2 has caps unless a null says otherwise; Gemma 3 has none unless a number does.
    let cap = |key: &str, default: f32| {
        let absent = config.family == "gemma2" && !fields.has(key);
        Ok(fields.opt_positive(key)?.or(absent.then_some(default)))
    };
    (config.attention_soft_cap, config.final_soft_cap) = (cap("attn_logit_softcapping", 50.0)?, cap("final_logit_softcapping", 30.0)?);
    Ok(())
}

fn head_dim(family: &Family, fields: &Fields, hidden_size: usize, num_heads: usize) -> Result<usize> {
    if let Some(head_dim) = fields.opt_size("head_dim", MAX_WIDTH)?.or(family.head_dim) {
        return Ok(head_dim);
    }
    if !hidden_size.is_multiple_of(num_heads) {
        return Err(fields.error("num_attention_heads", format_args!("is {num_heads}, which does not divide hidden_size {hidden_size}")));
    }
    Ok(hidden_size / num_heads)
}

fn bias(bias: &Bias, fields: &Fields) -> Result<bool> {
    match bias {
        Bias::Never => Ok(false),
        Bias::Always => Ok(true),
        Bias::Key(key) => Ok(fields.opt_flag(key)?.unwrap_or(false)),
    }
}

fn activation(family: &Family, fields: &Fields) -> Result<Activation> {
    // Gemma's hidden_act is a leftover; hidden_activation is what its modelling code reads.
    let (key, default) = if family.gemma { ("hidden_activation", "gelu_pytorch_tanh") } else { ("hidden_act", "silu") };
    match fields.opt_text(key)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        other => Err(fields.error(key, format_args!("is `{other}`, expected silu, gelu or gelu_pytorch_tanh"))),
    }
}

/// The window of each layer. `layer_types`, where present, says which layers slide.
fn windows(family: &Family, fields: &Fields, num_layers: usize) -> Result<Vec<Option<usize>>> {
    let used = match family.windows {
        Windows::None => false,
        Windows::UpperLayers | Windows::AllWhenUsed => fields.opt_flag("use_sliding_window")?.unwrap_or(false),
        Windows::All | Windows::AllButEvery(_) => true,
    };
    let mut window = if used { fields.opt_size("sliding_window", MAX_CONTEXT)? } else { None };
    if matches!(family.windows, Windows::AllButEvery(_)) {
        window = window.or(Some(4096));
    }
    if let (Some(types), false) = (fields.opt_list("layer_types", MAX_LAYERS)?, matches!(family.windows, Windows::None)) {
        return layer_types(fields, types, num_layers, window);
    }
    let slides: Box<dyn Fn(usize) -> bool> = match family.windows {
        Windows::None => Box::new(|_| false),
        Windows::All | Windows::AllWhenUsed => Box::new(|_| true),
        Windows::UpperLayers => {
            let from = fields.opt_count("max_window_layers", MAX_LAYERS)?.unwrap_or(28);
            Box::new(move |layer| layer >= from)
        }
        Windows::AllButEvery(default) => {
            // `_sliding_window_pattern` is how version 5 writes it.
            let keys = ["sliding_window_pattern", "_sliding_window_pattern"];
            let mut every = default;
            for key in keys {
                every = fields.opt_size(key, MAX_LAYERS)?.unwrap_or(every);
            }
            Box::new(move |layer| !(layer + 1).is_multiple_of(every))
        }
    };
    Ok((0..num_layers).map(|layer| window.filter(|_| slides(layer))).collect())
}

fn layer_types(fields: &Fields, types: &[serde_json::Value], num_layers: usize, window: Option<usize>) -> Result<Vec<Option<usize>>> {
    if types.len() != num_layers {
        return Err(fields.error("layer_types", format_args!("has {} entries, expected num_hidden_layers = {num_layers}", types.len())));
    }
    let one = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") => window.map(Some).ok_or_else(|| fields.error("sliding_window", "is missing, but layer_types slides")),
        _ => Err(fields.error("layer_types", format_args!("holds {kind}, expected full_attention or sliding_attention"))),
    };
    types.iter().map(one).collect()
}

fn experts(family: &Family, fields: &Fields, num_layers: usize, intermediate_size: usize) -> Result<Option<MoeConfig>> {
    let moe = match family.experts {
        Experts::None => return Ok(None),
        Experts::Mixtral => MoeConfig {
            num_experts: fields.size("num_local_experts", MAX_EXPERTS)?,
            top_k: fields.size("num_experts_per_tok", MAX_EXPERTS)?,
            intermediate_size,
            renormalise: true,
        },
        Experts::Qwen => {
            fields.opt_size("decoder_sparse_step", MAX_LAYERS)?;
            let dense = fields.opt_list("mlp_only_layers", MAX_LAYERS)?.unwrap_or_default();
            if dense.iter().any(|layer| layer.as_u64().is_none_or(|layer| layer >= num_layers as u64)) {
                return Err(fields.error("mlp_only_layers", format_args!("holds something else than layers below {num_layers}")));
            }
            MoeConfig {
                num_experts: fields.size("num_experts", MAX_EXPERTS)?,
                top_k: fields.size("num_experts_per_tok", MAX_EXPERTS)?,
                intermediate_size: fields.size("moe_intermediate_size", MAX_WIDTH)?,
                renormalise: fields.opt_flag("norm_topk_prob")?.unwrap_or(false),
            }
        }
    };
    Ok(Some(moe))
}

/// Whether a layer of a family with experts uses them; the keys were checked by `experts`.
fn is_sparse(family: &Family, fields: &Fields, layer: usize) -> bool {
    if !matches!(family.experts, Experts::Qwen) {
        return true;
    }
    let step = fields.get("decoder_sparse_step").and_then(|step| step.as_u64()).unwrap_or(1) as usize;
    let dense = fields.get("mlp_only_layers").and_then(|list| list.as_array());
    let listed = dense.is_some_and(|list| list.iter().any(|entry| entry.as_u64() == Some(layer as u64)));
    !listed && (layer + 1).is_multiple_of(step)
}

#[cfg(test)]
mod tests;
