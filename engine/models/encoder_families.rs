//! The table of encoder families and config.json -> `EncoderConfig`. Keys and defaults follow the configuration classes of transformers
//! (Apache-2.0), both the layout of version 4 and that of version 5.

use std::path::Path;

use super::config::{Activation, RopeConfig, RopeScaling};
use super::encoder_config::{EncoderConfig, HeadActivation, HeadConfig, Positions};
use super::limits::{MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::relative_bias::NUM_BUCKETS;
use crate::device::RopeStyle;
use crate::error::{EngineError, Result};
use crate::weights::encoder_names::{BERT, DISTILBERT, EncoderNames, MODERNBERT, MPNET, ROBERTA};
use crate::weights::json::{Fields, checkpoint_error};

/// Most labels of a classification head.
const MAX_LABELS: usize = 1024;
/// Ending of the architecture of a classifier.
const CLASSIFIER: &str = "ForSequenceClassification";
/// Endings of the architectures of a bare encoder and of one with a head that is not used here.
const ENCODERS: [&str; 4] = ["Model", "ForMaskedLM", "ForPreTraining", CLASSIFIER];

/// A row of the table.
pub(crate) struct EncoderFamily {
    name: &'static str,
    /// Beginnings of the names of its architectures.
    stems: &'static [&'static str],
    names: &'static EncoderNames,
    keys: &'static Keys,
    is_modern: bool,
    first_position: FirstPosition,
    head: HeadActivation,
}

/// Which row of the table of positions the first token takes.
#[derive(Clone, Copy, PartialEq)]
enum FirstPosition {
    Zero,
    /// 1 + pad token id.
    BehindPad,
    /// 1 + 1, whatever the pad token is.
    Two,
}

/// What the sizes are called.
struct Keys {
    hidden: &'static str,
    heads: &'static str,
    layers: &'static str,
    intermediate: &'static str,
    activation: &'static str,
}

const KEYS: Keys = Keys {
    hidden: "hidden_size",
    heads: "num_attention_heads",
    layers: "num_hidden_layers",
    intermediate: "intermediate_size",
    activation: "hidden_act",
};
const DISTIL_KEYS: Keys =
    Keys { hidden: "dim", heads: "n_heads", layers: "n_layers", intermediate: "hidden_dim", activation: "activation" };

const BASE: EncoderFamily = EncoderFamily {
    name: "bert",
    stems: &["Bert"],
    names: &BERT,
    keys: &KEYS,
    is_modern: false,
    first_position: FirstPosition::Zero,
    head: HeadActivation::Tanh,
};

const FAMILIES: [EncoderFamily; 5] = [
    BASE,
    EncoderFamily {
        name: "roberta",
        stems: &["XLMRoberta", "Roberta", "Camembert"],
        names: &ROBERTA,
        first_position: FirstPosition::BehindPad,
        ..BASE
    },
    EncoderFamily {
        name: "distilbert",
        stems: &["DistilBert"],
        names: &DISTILBERT,
        keys: &DISTIL_KEYS,
        head: HeadActivation::Relu,
        ..BASE
    },
    EncoderFamily { name: "mpnet", stems: &["MPNet"], names: &MPNET, first_position: FirstPosition::Two, ..BASE },
    EncoderFamily {
        name: "modernbert",
        stems: &["ModernBert"],
        names: &MODERNBERT,
        is_modern: true,
        head: HeadActivation::GeluNorm,
        ..BASE
    },
];

/// The row of an architecture, and whether it is a classifier.
fn find(architecture: &str) -> Option<(&'static EncoderFamily, bool)> {
    let row = |family: &&EncoderFamily| {
        family.stems.iter().any(|stem| architecture.strip_prefix(stem).is_some_and(|ending| ENCODERS.contains(&ending)))
    };
    Some((FAMILIES.iter().find(row)?, architecture.ends_with(CLASSIFIER)))
}

/// Whether an architecture is an encoder of this table.
pub(crate) fn is_encoder(architecture: &str) -> bool {
    find(architecture).is_some()
}

/// The architectures of the table, for messages.
pub fn known_encoders() -> String {
    FAMILIES.iter().flat_map(|family| family.stems).map(|stem| format!("{stem}Model, {stem}{CLASSIFIER}")).collect::<Vec<_>>().join(", ")
}

/// Reads the object of a config.json; `path` is for messages.
///
/// # Errors
/// A key is missing or out of range, or the architecture is unknown.
pub(crate) fn parse_encoder_config(path: &Path, fields: &Fields) -> Result<(EncoderConfig, &'static EncoderNames)> {
    let list = fields.opt_list("architectures", 16)?.unwrap_or_default();
    let name = list.first().and_then(|name| name.as_str()).unwrap_or_default();
    let Some((family, is_classifier)) = find(name) else {
        return Err(EngineError::UnknownArchitecture { name: name.to_owned(), known: known_encoders() });
    };
    let mut config = if family.is_modern { modern(family, fields)? } else { classic(family, fields)? };
    if is_classifier {
        config.head = Some(head(family, fields)?);
    }
    check(&config).map_err(|reason| checkpoint_error(path, reason))?;
    Ok((config, family.names))
}

fn classic(family: &EncoderFamily, fields: &Fields) -> Result<EncoderConfig> {
    match fields.opt_text("position_embedding_type")?.unwrap_or("absolute") {
        "absolute" => {}
        other => return Err(fields.error("position_embedding_type", format_args!("is `{other}`, expected absolute"))),
    }
    if fields.opt_flag("is_decoder")? == Some(true) {
        return Err(fields.error("is_decoder", "is true, expected an encoder"));
    }
    let rows = fields.size("max_position_embeddings", MAX_CONTEXT)?;
    let offset = match family.first_position {
        FirstPosition::Zero => 0,
        FirstPosition::BehindPad => fields.opt_count("pad_token_id", MAX_VOCAB)?.unwrap_or(1) + 1,
        FirstPosition::Two => 2,
    };
    let relative_buckets = match family.names.relative_bias {
        "" => None,
        _ => Some(fields.opt_size("relative_attention_num_buckets", MAX_VOCAB)?.unwrap_or(NUM_BUCKETS)),
    };
    if let Some(buckets) = relative_buckets.filter(|buckets| *buckets < NUM_BUCKETS) {
        return Err(fields.error("relative_attention_num_buckets", format_args!("is {buckets}, expected at least {NUM_BUCKETS}")));
    }
    if offset + 2 >= rows {
        return Err(fields.error("max_position_embeddings", format_args!("is {rows}, expected more than {}", offset + 2)));
    }
    let heads = Heads::read(fields, family.keys)?;
    let num_token_types = match family.names.token_types {
        "" => 0,
        _ => fields.opt_count("type_vocab_size", MAX_VOCAB)?.unwrap_or(2),
    };
    Ok(EncoderConfig {
        family: family.name,
        vocab_size: fields.size("vocab_size", MAX_VOCAB)?,
        hidden_size: heads.hidden_size,
        intermediate_size: fields.size(family.keys.intermediate, MAX_WIDTH)?,
        num_heads: heads.num_heads,
        head_dim: heads.head_dim,
        norm_eps: fields.opt_positive("layer_norm_eps")?.unwrap_or(1e-12),
        max_seq_len: rows - offset,
        positions: Positions::Learned { rows, offset },
        relative_buckets,
        num_token_types,
        pre_norm: false,
        gated: false,
        activation: activation(fields, family.keys.activation)?,
        attention_bias: true,
        mlp_bias: true,
        norm_bias: true,
        radii: vec![None; fields.size(family.keys.layers, MAX_LAYERS)?],
        head: None,
    })
}

fn modern(family: &EncoderFamily, fields: &Fields) -> Result<EncoderConfig> {
    let heads = Heads::read(fields, family.keys)?;
    let flag = |key: &str| Ok::<bool, EngineError>(fields.opt_flag(key)?.unwrap_or(false));
    let ropes = fields.opt_object("rope_parameters")?;
    let rope = |kind: &str, key: &str, default: f32| -> Result<RopeConfig> {
        let inner = ropes.as_ref().map_or(Ok(None), |ropes| ropes.opt_object(kind))?;
        if let Some(inner) = &inner
            && let Some(other) = inner.opt_text("rope_type")?.filter(|name| *name != "default")
        {
            return Err(inner.error("rope_type", format_args!("is `{other}`, expected default")));
        }
        let given = inner.as_ref().map_or(Ok(None), |inner| inner.opt_positive("rope_theta"))?;
        let theta = match given {
            Some(theta) => theta,
            None => fields.opt_positive(key)?.unwrap_or(default),
        };
        Ok(RopeConfig { theta, rotary_dim: heads.head_dim, scaling: RopeScaling::None, style: RopeStyle::HalfSplit })
    };
    let global = rope("full_attention", "global_rope_theta", 160_000.0)?;
    // A null means: as the global one.
    let is_null = fields.has("local_rope_theta") && fields.get("local_rope_theta").is_none();
    let local = rope("sliding_attention", "local_rope_theta", if is_null { global.theta } else { 10_000.0 })?;
    Ok(EncoderConfig {
        family: family.name,
        vocab_size: fields.size("vocab_size", MAX_VOCAB)?,
        hidden_size: heads.hidden_size,
        intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
        num_heads: heads.num_heads,
        head_dim: heads.head_dim,
        norm_eps: fields.opt_positive("norm_eps")?.unwrap_or(1e-5),
        max_seq_len: fields.size("max_position_embeddings", MAX_CONTEXT)?,
        positions: Positions::Rotary { global, local },
        relative_buckets: None,
        num_token_types: 0,
        pre_norm: true,
        gated: true,
        activation: activation(fields, "hidden_activation")?,
        attention_bias: flag("attention_bias")?,
        mlp_bias: flag("mlp_bias")?,
        norm_bias: flag("norm_bias")?,
        radii: radii(fields)?,
        head: None,
    })
}

/// Which layers of a ModernBERT see only their neighbourhood, and how far: half of `local_attention` to each side.
fn radii(fields: &Fields) -> Result<Vec<Option<usize>>> {
    let num_layers = fields.size("num_hidden_layers", MAX_LAYERS)?;
    let radius = fields.opt_size("local_attention", MAX_CONTEXT)?.unwrap_or(128) / 2;
    let Some(types) = fields.opt_list("layer_types", MAX_LAYERS)? else {
        let every = fields.opt_size("global_attn_every_n_layers", MAX_LAYERS)?.unwrap_or(3);
        return Ok((0..num_layers).map(|layer| (!layer.is_multiple_of(every)).then_some(radius)).collect());
    };
    if types.len() != num_layers {
        return Err(fields.error("layer_types", format_args!("has {} entries, expected num_hidden_layers = {num_layers}", types.len())));
    }
    let one = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") => Ok(Some(radius)),
        _ => Err(fields.error("layer_types", format_args!("holds {kind}, expected full_attention or sliding_attention"))),
    };
    types.iter().map(one).collect()
}

fn head(family: &EncoderFamily, fields: &Fields) -> Result<HeadConfig> {
    let by_name = match fields.opt_object("id2label")? {
        Some(labels) => Some(labels.keys(MAX_LABELS)?.len()),
        None => None,
    };
    let num_labels = match fields.opt_size("num_labels", MAX_LABELS)? {
        Some(num) => num,
        None => by_name.filter(|num| *num > 0).unwrap_or(2),
    };
    if !family.is_modern {
        return Ok(HeadConfig { num_labels, activation: family.head, pools_mean: false, dense_bias: true });
    }
    match fields.opt_text("classifier_activation")?.unwrap_or("gelu") {
        "gelu" => {}
        other => return Err(fields.error("classifier_activation", format_args!("is `{other}`, expected gelu"))),
    }
    let pools_mean = match fields.opt_text("classifier_pooling")?.unwrap_or("cls") {
        "cls" => false,
        "mean" => true,
        other => return Err(fields.error("classifier_pooling", format_args!("is `{other}`, expected cls or mean"))),
    };
    let dense_bias = fields.opt_flag("classifier_bias")?.unwrap_or(false);
    Ok(HeadConfig { num_labels, activation: family.head, pools_mean, dense_bias })
}

struct Heads {
    hidden_size: usize,
    num_heads: usize,
    head_dim: usize,
}

impl Heads {
    fn read(fields: &Fields, keys: &Keys) -> Result<Heads> {
        let (hidden_size, num_heads) = (fields.size(keys.hidden, MAX_WIDTH)?, fields.size(keys.heads, MAX_HEADS)?);
        if !hidden_size.is_multiple_of(num_heads) {
            let reason = format_args!("is {num_heads}, which does not divide {} {hidden_size}", keys.hidden);
            return Err(fields.error(keys.heads, reason));
        }
        Ok(Heads { hidden_size, num_heads, head_dim: hidden_size / num_heads })
    }
}

fn activation(fields: &Fields, key: &str) -> Result<Activation> {
    match fields.opt_text(key)?.unwrap_or("gelu") {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(fields.error(key, format_args!("is `{other}`, expected gelu, gelu_new, gelu_pytorch_tanh or silu"))),
    }
}

fn check(c: &EncoderConfig) -> std::result::Result<(), String> {
    if c.head_dim > MAX_HEAD_DIM || !c.head_dim.is_multiple_of(2) {
        return Err(format!("head_dim is {}, expected an even number up to {MAX_HEAD_DIM}", c.head_dim));
    }
    if let Positions::Rotary { global, local } = &c.positions
        && let Some(theta) = [global.theta, local.theta].into_iter().find(|theta| *theta <= 1.0)
    {
        return Err(format!("rope theta is {theta}, expected a number above 1"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
