//! config.json -> `Config`: the shape of a model. Keys have several names, as the generations of Hugging Face configurations do.

use std::path::Path;

use serde_json::{Map, Value};

use crate::families::{FAMILIES, Family, adjust};
use crate::rotary::{Rotary, Scaling};
use crate::serve::{Fault, fault};

/// How a layer's parts follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// x += attention(norm(x)); x += mlp(norm(x)).
    Sequential,
    /// x += attention(norm(x)) + mlp(norm(x)); the same norm where there is but one.
    Parallel,
    /// x += norm(attention(x)); x += norm(mlp(x)).
    PostNorm,
}

/// How a family knows positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Queries and keys are turned.
    Rotary { interleaved: bool },
    /// A table, in which position 0 is row `offset`.
    Learned { offset: usize },
    /// Scores of far tokens are lowered.
    Alibi(Alibi),
}

/// How slopes get into scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alibi {
    /// After the scores were scaled.
    Plain,
    /// Before.
    Scaled,
}

/// How rows of q, k and v lie in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qkv {
    /// All of q, then of k, then of v.
    Stacked,
    /// The queries that share a key (often one), that key, its value; then the next ones.
    Grouped,
}

/// What an MLP does to its inner numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    Relu,
    /// x times the normal distribution's share below x.
    Gelu,
    /// The same by its tanh approximation.
    GeluTanh,
}

/// The shape of a model.
#[derive(Debug)]
pub struct Config {
    pub family: &'static Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub max_len: usize,
    pub eps: f64,
    pub activation: Activation,
    pub block: Block,
    pub qkv: Qkv,
    pub attention_norm: &'static str,
    pub mlp_norm: &'static str,
    pub rotary: Option<Rotary>,
    pub alibi: Option<Alibi>,
    /// A token sees that many, itself included.
    pub window: Option<usize>,
    pub clip_qkv: Option<f64>,
    pub embedding_scale: f64,
    pub residual_scale: f64,
    pub attention_scale: f64,
    pub logit_scale: f64,
    pub tied: bool,
}

impl Config {
    /// Reads a config.json.
    ///
    /// # Errors
    /// A damaged file, an unknown architecture, a key that is missing or means a model that the decoder is not.
    pub fn read(path: &Path) -> Result<Config, Fault> {
        let text = std::fs::read(path).map_err(|error| std::io::Error::other(format!("{}: {error}", path.display())))?;
        match serde_json::from_slice(&text) {
            Ok(Value::Object(map)) => Config::of(&Fields { path: path.display().to_string(), map }),
            _ => fault(format!("{}: is no JSON object", path.display())),
        }
    }

    fn of(fields: &Fields) -> Result<Config, Fault> {
        let architecture = fields.map.get("architectures").and_then(|list| list[0].as_str()).unwrap_or_default();
        let Some(family) = FAMILIES.iter().find(|family| family.architecture == architecture) else {
            let known = FAMILIES.iter().map(|family| family.architecture).collect::<Vec<_>>().join(", ");
            return fault(format!("{}: unknown architecture `{architecture}`; known: {known}", fields.path));
        };
        for (key, value) in family.required {
            if fields.flag(key, *value) != *value {
                return fault(format!("{}: `{key}` is {}, which is not supported", fields.path, !value));
            }
        }
        if fields.map.get("quantization_config").is_some_and(|value| !value.is_null()) {
            return fault(format!(
                "{}: the weights are quantised already; candle takes dense ones and makes NF4 of them itself",
                fields.path
            ));
        }
        let hidden_size = fields.need(&["hidden_size", "n_embd", "d_model"])?;
        let num_heads = fields.need(&["num_attention_heads", "n_head", "n_heads"])?;
        let head_dim = fields.size(&["head_dim"]).unwrap_or(hidden_size / num_heads.max(1));
        let mut config = Config {
            family,
            vocab_size: fields.need(&["vocab_size"])?,
            hidden_size,
            intermediate_size: fields.size(&["intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"]).unwrap_or(4 * hidden_size),
            num_layers: fields.need(&["num_hidden_layers", "n_layer", "n_layers"])?,
            num_heads,
            num_kv_heads: fields.size(&["num_key_value_heads", "num_kv_heads"]).unwrap_or(num_heads),
            head_dim,
            max_len: fields.size(&["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"]).unwrap_or(2048),
            eps: fields.number(&["layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_epsilon"]).unwrap_or(1e-5),
            activation: activation(family, fields)?,
            block: family.block,
            qkv: family.qkv,
            attention_norm: family.names.attention_norm,
            mlp_norm: family.names.mlp_norm,
            rotary: rotary(family, fields, head_dim)?,
            alibi: if let Positions::Alibi(alibi) = family.positions { Some(alibi) } else { None },
            window: fields.size(&["sliding_window"]).filter(|_| ["mistral", "starcoder2"].contains(&family.name)),
            clip_qkv: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            attention_scale: 1.0 / (head_dim as f64).sqrt(),
            logit_scale: 1.0,
            tied: fields.flag("tie_word_embeddings", family.tied),
        };
        adjust(&mut config, fields)?;
        config.check(fields)?;
        Ok(config)
    }

    /// What the decoder relies on.
    fn check(&self, fields: &Fields) -> Result<(), Fault> {
        let divides = self.num_kv_heads > 0 && self.num_heads.is_multiple_of(self.num_kv_heads);
        let turns = self.rotary.as_ref().is_none_or(|rotary| rotary.dims.is_multiple_of(2) && (2..=self.head_dim).contains(&rotary.dims));
        let sizes = [self.vocab_size, self.hidden_size, self.intermediate_size, self.num_layers, self.head_dim, self.max_len];
        match divides && turns && sizes.iter().all(|size| (1..1 << 24).contains(size)) {
            true => Ok(()),
            false => fault(format!("{}: sizes that do not go together: {self:?}", fields.path)),
        }
    }

    /// The row of the table of positions at which position 0 is, where there is such a table.
    pub fn learned_positions(&self) -> Option<usize> {
        if let Positions::Learned { offset } = self.family.positions { Some(offset) } else { None }
    }
}

fn activation(family: &Family, fields: &Fields) -> Result<Activation, Fault> {
    let name = fields.text(&["hidden_act", "hidden_activation", "activation_function", "activation"]).unwrap_or(family.activation);
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "relu" => Ok(Activation::Relu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        other => fault(format!("{}: activation `{other}` is not supported", fields.path)),
    }
}

fn rotary(family: &Family, fields: &Fields, head_dim: usize) -> Result<Option<Rotary>, Fault> {
    let Positions::Rotary { interleaved } = family.positions else { return Ok(None) };
    let parameters = fields.object("rope_parameters").or_else(|| fields.object("rope_scaling"));
    let of = |keys: &[&str]| parameters.as_ref().and_then(|fields| fields.number(keys)).or_else(|| fields.number(keys));
    let share = of(&["partial_rotary_factor", "rotary_pct", "rope_pct"]).unwrap_or(family.rotary_share);
    let dims = fields.size(&["rotary_dim"]).unwrap_or((head_dim as f64 * share) as usize);
    let need = |key: &str| of(&[key]).ok_or(()).or_else(|()| fault(format!("{}: rope_scaling: `{key}` is missing", fields.path)));
    let kind = parameters.as_ref().and_then(|fields| fields.text(&["rope_type", "type"])).unwrap_or("default");
    let scaling = match kind {
        "default" => Scaling::Off,
        "linear" => Scaling::Linear(need("factor")?),
        "llama3" => Scaling::Llama3 {
            factor: need("factor")?,
            low: need("low_freq_factor")?,
            high: need("high_freq_factor")?,
            original_len: need("original_max_position_embeddings")?,
        },
        other => return fault(format!("{}: rope_scaling of type `{other}` is not supported", fields.path)),
    };
    let theta = of(&["rope_theta", "rotary_emb_base"]).unwrap_or(10_000.0);
    Ok(Some(Rotary { dims, theta, interleaved, scaling }))
}

/// An object of JSON. Keys that are null count as absent.
pub struct Fields {
    /// For messages.
    pub path: String,
    map: Map<String, Value>,
}

impl Fields {
    fn first<T>(&self, keys: &[&str], of: impl Fn(&Value) -> Option<T>) -> Option<T> {
        keys.iter().find_map(|key| self.map.get(*key).and_then(&of))
    }

    /// A whole number under the first of several names.
    pub fn size(&self, keys: &[&str]) -> Option<usize> {
        self.first(keys, |value| value.as_u64().map(|size| size as usize))
    }

    fn need(&self, keys: &[&str]) -> Result<usize, Fault> {
        self.size(keys).ok_or(()).or_else(|()| fault(format!("{}: `{}` is missing", self.path, keys[0])))
    }

    /// A number.
    pub fn number(&self, keys: &[&str]) -> Option<f64> {
        self.first(keys, Value::as_f64)
    }

    /// A string.
    pub fn text(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| self.map.get(*key).and_then(Value::as_str))
    }

    /// true or false.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.map.get(key).and_then(Value::as_bool).unwrap_or(default)
    }

    /// An object.
    pub fn object(&self, key: &str) -> Option<Fields> {
        let map = self.map.get(key)?.as_object()?.clone();
        Some(Fields { path: self.path.clone(), map })
    }
}
