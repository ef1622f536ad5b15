//! Rotary embedding parameters of a config.json: `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters` (5).
//!
//! Formulas follow `modeling_rope_utils.py` of transformers (Apache-2.0).

use super::config::{RopeConfig, RopeScaling};
use super::limits::MAX_CONTEXT;
use crate::device::RopeStyle;
use crate::error::{EngineError, Result};
use crate::weights::json::Fields;

/// What the caller knows already.
pub struct RopeInputs {
    /// Elements of a head.
    pub head_dim: usize,
    /// Sliding layers have a rotation of their own (Gemma 3).
    pub has_local: bool,
}

/// The rotations of a model.
pub struct Ropes {
    /// Of most layers.
    pub global: RopeConfig,
    /// Of sliding layers, where it differs.
    pub local: Option<RopeConfig>,
}

const DEFAULT_THETA: f32 = 10_000.0;

/// The longest context: YaRN states the trained length and a factor, all others the extended length itself.
pub fn context(scaling: &RopeScaling, max_position_embeddings: usize) -> usize {
    match *scaling {
        RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
            let extended = (original_max_position_embeddings as f64 * f64::from(factor)) as usize;
            max_position_embeddings.max(extended.min(MAX_CONTEXT))
        }
        _ => max_position_embeddings,
    }
}

/// Reads the rotations of a config.json.
///
/// # Errors
/// A key is missing or out of range, or the scaling is unknown.
pub fn read(fields: &Fields, inputs: &RopeInputs) -> Result<Ropes> {
    let parameters = fields.opt_object("rope_parameters")?;
    let nested = |kind: &str| parameters.as_ref().map_or(Ok(None), |outer| outer.opt_object(kind));
    if let Some(full) = nested("full_attention")? {
        let global = one(fields, Some(&full), inputs, DEFAULT_THETA)?;
        let local = match nested("sliding_attention")? {
            Some(sliding) if inputs.has_local => Some(one(fields, Some(&sliding), inputs, DEFAULT_THETA)?),
            _ => None,
        };
        return Ok(Ropes { global, local });
    }
    let scaling = match parameters {
        Some(parameters) => Some(parameters),
        None => fields.opt_object("rope_scaling")?,
    };
    let theta = fields.opt_positive("rope_theta")?.unwrap_or(if inputs.has_local { 1_000_000.0 } else { DEFAULT_THETA });
    let global = one(fields, scaling.as_ref(), inputs, theta)?;
    let local = match inputs.has_local {
        true => Some(RopeConfig {
            theta: fields.opt_positive("rope_local_base_freq")?.unwrap_or(DEFAULT_THETA),
            scaling: RopeScaling::None,
            ..global.clone()
        }),
        false => None,
    };
    Ok(Ropes { global, local })
}

fn one(fields: &Fields, parameters: Option<&Fields>, inputs: &RopeInputs, theta: f32) -> Result<RopeConfig> {
    const PARTIAL: &str = "partial_rotary_factor";
    let inner = |key: &str| parameters.map_or(Ok(None), |object| object.opt_positive(key));
    let factor = match inner(PARTIAL)? {
        Some(factor) => factor,
        None => fields.opt_positive(PARTIAL)?.unwrap_or(1.0),
    };
    let rotary_dim = (inputs.head_dim as f64 * f64::from(factor)) as usize;
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || rotary_dim > inputs.head_dim {
        let reason = format_args!("is {factor}, which rotates {rotary_dim} of {} dimensions, expected an even number", inputs.head_dim);
        return Err(fields.error(PARTIAL, reason));
    }
    Ok(RopeConfig {
        theta: inner("rope_theta")?.unwrap_or(theta),
        rotary_dim,
        scaling: parameters.map_or(Ok(RopeScaling::None), |object| scaling(fields, object, rotary_dim))?,
        style: RopeStyle::HalfSplit,
    })
}

fn scaling(fields: &Fields, object: &Fields, rotary_dim: usize) -> Result<RopeScaling> {
    let kind = match object.opt_text("rope_type")? {
        Some(kind) => kind,
        None => object.opt_text("type")?.unwrap_or("default"),
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: object.positive("factor")? }),
        "llama3" => llama3(object),
        "yarn" => yarn(fields, object),
        // "su" is what the first Phi-3 checkpoints call it.
        "longrope" | "su" => longrope(fields, object, rotary_dim),
        other => Err(EngineError::Unsupported(
            object.error("rope_type", format_args!("is `{other}`; known: default, linear, llama3, yarn, longrope")).to_string(),
        )),
    }
}

fn llama3(object: &Fields) -> Result<RopeScaling> {
    let (low, high) = (object.positive("low_freq_factor")?, object.positive("high_freq_factor")?);
    if low >= high {
        return Err(object.error("low_freq_factor", format_args!("is {low}, expected less than high_freq_factor {high}")));
    }
    Ok(RopeScaling::Llama3 {
        factor: object.positive("factor")?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: object.size("original_max_position_embeddings", MAX_CONTEXT)?,
    })
}

const ORIGINAL: &str = "original_max_position_embeddings";

fn yarn(fields: &Fields, object: &Fields) -> Result<RopeScaling> {
    let max = fields.size("max_position_embeddings", MAX_CONTEXT)?;
    let original = object.opt_size(ORIGINAL, MAX_CONTEXT)?.unwrap_or(max);
    let factor = object.opt_positive("factor")?.unwrap_or(max as f32 / original as f32);
    let mscale = |scale: f32| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let attention_factor =
        match (object.opt_positive("attention_factor")?, object.opt_positive("mscale")?, object.opt_positive("mscale_all_dim")?) {
            (Some(given), _, _) => Some(given),
            (None, Some(scale), Some(all)) => Some(mscale(scale) / mscale(all)),
            _ => None,
        };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: object.opt_positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: object.opt_positive("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        truncate: object.opt_flag("truncate")?.unwrap_or(true),
    })
}

fn longrope(fields: &Fields, object: &Fields, rotary_dim: usize) -> Result<RopeScaling> {
    let max = fields.size("max_position_embeddings", MAX_CONTEXT)?;
    let original = match object.opt_size(ORIGINAL, MAX_CONTEXT)? {
        Some(original) => original,
        None => fields.opt_size(ORIGINAL, MAX_CONTEXT)?.unwrap_or(max),
    };
    let factor = object.opt_positive("factor")?.unwrap_or(max as f32 / original as f32);
    let derived = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f32).ln()).sqrt() };
    Ok(RopeScaling::PerDim {
        short: object.positives("short_factor", rotary_dim / 2)?,
        long: object.positives("long_factor", rotary_dim / 2)?,
        original_max_position_embeddings: original,
        attention_factor: object.opt_positive("attention_factor")?.unwrap_or(derived),
    })
}
