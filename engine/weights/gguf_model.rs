//! GGUF metadata -> `ModelConfig`: one row of a table for each `general.architecture`.
//!
//! Keys follow the GGUF specification; what llama.cpp (MIT) does where a key is absent is followed too, and noted.

use std::path::Path;

use super::checkpoint::{Checkpoint, GenerationDefaults};
use super::gguf::parse;
use super::gguf_keys::Keys;
use super::gguf_text;
use super::json::{checkpoint_error, io_error};
use super::mapped::MappedBytes;
use super::names::{GGUF, GGUF_PHI3, Names};
use super::store::{StoredTensor, TensorStore};
use crate::device::RopeStyle;
use crate::error::{EngineError, Result};
use crate::models::config::{Activation, LayerConfig, ModelConfig, MoeConfig, RopeConfig, RopeScaling};
use crate::models::limits::{MAX_CONTEXT, MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use crate::models::rope_parameters::context;

/// An architecture of GGUF files.
struct Arch {
    name: &'static str,
    names: &'static Names,
    /// llama.cpp's converter permutes q and k rows of the llama architecture only.
    style: RopeStyle,
    gemma: bool,
    /// Every n-th layer attends to everything where the file has a window; 0: none does.
    full_every: usize,
    /// Gemma 3: sliding layers rotate with a base of their own.
    local_rope: bool,
}

const QWEN2: Arch = Arch { name: "qwen2", names: &GGUF, style: RopeStyle::HalfSplit, gemma: false, full_every: 0, local_rope: false };

const ARCHS: &[Arch] = &[
    // Llama, Mistral, Mixtral (expert_count), SmolLM2.
    Arch { name: "llama", style: RopeStyle::Interleaved, ..QWEN2 },
    QWEN2,
    Arch { name: "qwen3", ..QWEN2 },
    Arch { name: "qwen3moe", ..QWEN2 },
    Arch { name: "phi3", names: &GGUF_PHI3, ..QWEN2 },
    Arch { name: "gemma2", gemma: true, full_every: 2, ..QWEN2 },
    Arch { name: "gemma3", gemma: true, full_every: 6, local_rope: true, ..QWEN2 },
];

/// Opens a .gguf file.
///
/// # Errors
/// The file is damaged, a key is missing or out of range, the architecture is unknown.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let bytes = MappedBytes::open(path).map_err(|error| io_error(path, error))?;
    let file = parse(bytes.as_slice()).map_err(|reason| checkpoint_error(path, reason))?;
    let mut store = TensorStore { files: vec![path.to_owned()], ..TensorStore::default() };
    for tensor in file.tensors {
        let type_name = format!("{:?}", tensor.format);
        let bytes = bytes.slice(tensor.start, tensor.len);
        store
            .tensors
            .insert(tensor.name.into(), StoredTensor { file: 0, format: Some(tensor.format), type_name, shape: tensor.shape, bytes });
    }
    let keys = Keys::new(path, file.metadata)?;
    if keys.count("split.count")?.is_some_and(|count| count > 1) {
        return Err(EngineError::Unsupported(format!("{}: a GGUF model split over several files", path.display())));
    }
    let known = || ARCHS.iter().map(|arch| arch.name).collect::<Vec<_>>().join(", ");
    let arch = ARCHS.iter().find(|arch| arch.name == keys.arch());
    let arch = arch.ok_or_else(|| EngineError::UnknownArchitecture { name: keys.arch().to_owned(), known: known() })?;
    let mut config = build(arch, &keys, &store)?;
    let (vocab, text, eos_token_ids) = gguf_text::read(&keys)?;
    config.eos_token_ids = eos_token_ids;
    config.bos_token_id = vocab.bos;
    Ok(Checkpoint {
        path: path.to_owned(),
        config,
        tokenizer: super::checkpoint::TokenizerSource::Gguf(Box::new(vocab)),
        text,
        generation: GenerationDefaults::default(),
        store,
        names: arch.names,
        quantization: None,
        at_load: Default::default(),
        size: Default::default(),
    })
}

fn build(arch: &Arch, keys: &Keys, store: &TensorStore) -> Result<ModelConfig> {
    let hidden_size = keys.size("{arch}.embedding_length", MAX_WIDTH)?;
    let num_layers = keys.size("{arch}.block_count", MAX_LAYERS)?;
    let num_heads = keys.size("{arch}.attention.head_count", MAX_HEADS)?;
    let num_kv_heads = keys.opt_size("{arch}.attention.head_count_kv", MAX_HEADS)?.unwrap_or(num_heads);
    let head_dim = keys.opt_size("{arch}.attention.key_length", MAX_WIDTH)?.unwrap_or(hidden_size / num_heads);
    if keys.opt_size("{arch}.attention.value_length", MAX_WIDTH)?.is_some_and(|len| len != head_dim) {
        return Err(keys.error("{arch}.attention.value_length", format_args!("differs from the key length {head_dim}")));
    }
    let rope = rope(arch, keys, store, head_dim)?;
    let max_position_embeddings = context(&rope.scaling, keys.size("{arch}.context_length", MAX_CONTEXT)?);
    let windows = windows(arch, keys, num_layers)?;
    let moe = experts(keys)?;
    let has_bias = |stem: &str| store.contains(&format!("blk.0.{stem}.bias"));
    let local = match arch.local_rope {
        true => {
            let theta = keys.opt_float("{arch}.rope.freq_base_swa")?.unwrap_or(10_000.0);
            Some(RopeConfig { theta, scaling: RopeScaling::None, ..rope.clone() })
        }
        false => None,
    };
    let layers = windows.into_iter().map(|window| LayerConfig {
        // A window as long as the context is none.
        window: window.filter(|window| *window < max_position_embeddings),
        local_rope: local.is_some() && window.is_some(),
        moe: moe.is_some(),
    });
    let mut config = ModelConfig {
        family: arch.name,
        vocab_size: vocab_size(keys, store)?,
        hidden_size,
        intermediate_size: keys.opt_size("{arch}.feed_forward_length", MAX_WIDTH)?.or(moe.map(|moe| moe.intermediate_size)).unwrap_or(0),
        num_heads,
        num_kv_heads,
        head_dim,
        rms_norm_eps: keys.float("{arch}.attention.layer_norm_rms_epsilon")?,
        max_position_embeddings,
        tie_word_embeddings: !store.contains("output.weight"),
        qkv_bias: has_bias("attn_q") || has_bias("attn_qkv"),
        o_bias: has_bias("attn_output"),
        mlp_bias: has_bias("ffn_down"),
        qk_norm: store.contains("blk.0.attn_q_norm.weight"),
        // The converter has already added 1 to Gemma's norms.
        norm_plus_one: false,
        post_norms: arch.gemma,
        activation: if arch.gemma { Activation::GeluTanh } else { Activation::Silu },
        embedding_scale: if arch.gemma { (hidden_size as f32).sqrt() } else { 1.0 },
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_soft_cap: None,
        final_soft_cap: None,
        rope,
        rope_local: local.clone(),
        moe,
        layers: layers.collect(),
        eos_token_ids: Vec::new(),
        bos_token_id: None,
    };
    if arch.gemma {
        gemma(&mut config, keys)?;
    }
    Ok(config)
}

/// Gemma 2 has caps even where old files do not say so; the 27B models scale by their width, and no key says so.
fn gemma(config: &mut ModelConfig, keys: &Keys) -> Result<()> {
    let gemma2 = config.family == "gemma2";
    if config.layers.len() == if gemma2 { 46 } else { 62 } {
        config.attention_scale = 1.0 / ((config.hidden_size / config.num_heads) as f32).sqrt();
    }
    let cap = |key: &str, default: f32| Ok(keys.opt_float(key)?.or(gemma2.then_some(default)).filter(|cap| *cap > 0.0));
    config.attention_soft_cap = cap("{arch}.attn_logit_softcapping", 50.0)?;
    config.final_soft_cap = cap("{arch}.final_logit_softcapping", 30.0)?;
    Ok(())
}

fn vocab_size(keys: &Keys, store: &TensorStore) -> Result<usize> {
    let rows = store.tensors.get("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
    Ok(keys.opt_size("{arch}.vocab_size", MAX_VOCAB)?.or(rows).unwrap_or(0))
}

fn windows(arch: &Arch, keys: &Keys, num_layers: usize) -> Result<Vec<Option<usize>>> {
    let default = if arch.name == "gemma2" { Some(4096) } else { None };
    let window = keys.count("{arch}.attention.sliding_window")?.or(default).filter(|window| *window > 0);
    let pattern = keys.window_pattern("{arch}.attention.sliding_window_pattern", num_layers)?;
    let slides = |layer: usize| match &pattern {
        Some(pattern) => pattern[layer],
        None => !(layer + 1).is_multiple_of(arch.full_every),
    };
    Ok((0..num_layers).map(|layer| window.filter(|_| slides(layer))).collect())
}

fn experts(keys: &Keys) -> Result<Option<MoeConfig>> {
    let Some(num_experts) = keys.count("{arch}.expert_count")?.filter(|count| *count > 0) else { return Ok(None) };
    if num_experts > MAX_EXPERTS {
        return Err(keys.error("{arch}.expert_count", format_args!("is {num_experts}, at most {MAX_EXPERTS}")));
    }
    let width = match keys.opt_size("{arch}.expert_feed_forward_length", MAX_WIDTH)? {
        Some(width) => width,
        None => keys.size("{arch}.feed_forward_length", MAX_WIDTH)?,
    };
    // llama.cpp renormalises the chosen experts of both architectures that have them.
    let top_k = keys.size("{arch}.expert_used_count", MAX_EXPERTS)?;
    Ok(Some(MoeConfig { num_experts, top_k, intermediate_size: width, renormalise: true }))
}

fn rope(arch: &Arch, keys: &Keys, store: &TensorStore, head_dim: usize) -> Result<RopeConfig> {
    let rotary_dim = keys.opt_size("{arch}.rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_dim);
    let theta = keys.opt_float("{arch}.rope.freq_base")?.unwrap_or(10_000.0);
    Ok(RopeConfig { theta, rotary_dim, scaling: scaling(keys, store, rotary_dim)?, style: arch.style })
}

fn scaling(keys: &Keys, store: &TensorStore, rotary_dim: usize) -> Result<RopeScaling> {
    const FACTORS: &str = "rope_freqs.weight";
    const LONG: &str = "rope_factors_long.weight";
    const SHORT: &str = "rope_factors_short.weight";
    let attention_factor = keys.opt_float("{arch}.rope.scaling.attn_factor")?;
    let original = keys.opt_size("{arch}.rope.scaling.original_context_length", MAX_CONTEXT)?;
    if store.contains(LONG) || store.contains(SHORT) {
        return Ok(RopeScaling::PerDim {
            short: store.vector(SHORT, rotary_dim / 2)?,
            long: store.vector(LONG, rotary_dim / 2)?,
            original_max_position_embeddings: original.unwrap_or(0),
            attention_factor: attention_factor.unwrap_or(1.0),
        });
    }
    if store.contains(FACTORS) {
        let factors = store.vector(FACTORS, rotary_dim / 2)?;
        return Ok(RopeScaling::PerDim {
            short: factors.clone(),
            long: factors,
            original_max_position_embeddings: 0,
            attention_factor: 1.0,
        });
    }
    const KIND: &str = "{arch}.rope.scaling.type";
    let factor = keys.opt_float("{arch}.rope.scaling.factor")?;
    match keys.opt_text(KIND)?.unwrap_or("none") {
        // Files of 2023 have the factor alone, under another name.
        "none" => match keys.opt_float("{arch}.rope.scale_linear")? {
            Some(factor) if factor != 1.0 => Ok(RopeScaling::Linear { factor }),
            _ => Ok(RopeScaling::None),
        },
        "linear" => Ok(RopeScaling::Linear { factor: keys.float("{arch}.rope.scaling.factor")? }),
        "yarn" => {
            let factor = factor.ok_or_else(|| keys.error("{arch}.rope.scaling.factor", "is missing"))?;
            Ok(RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: match original {
                    Some(original) => original,
                    None => keys.size("{arch}.context_length", MAX_CONTEXT)?,
                },
                beta_fast: keys.opt_float("{arch}.rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.opt_float("{arch}.rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: attention_factor.map(|given| given * (0.1 * factor.ln() + 1.0)),
                truncate: true,
            })
        }
        "longrope" => Err(keys.error(KIND, format_args!("is longrope, but `{LONG}` is missing"))),
        other => Err(keys.error(KIND, format_args!("is `{other}`, expected none, linear, yarn or longrope"))),
    }
}
