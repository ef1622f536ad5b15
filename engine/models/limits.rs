//! Bounds of a model's shape, checked once, so that the decoder may multiply without fear.

use super::config::{ModelConfig, RopeConfig, RopeScaling};

/// Rows of an embedding.
pub const MAX_VOCAB: usize = 1 << 22;
/// Width of any matrix but the embedding.
pub const MAX_WIDTH: usize = 1 << 20;
/// Layers.
pub const MAX_LAYERS: usize = 1024;
/// Attention heads.
pub const MAX_HEADS: usize = 4096;
/// Elements of a head.
pub const MAX_HEAD_DIM: usize = 512;
/// Experts of a layer.
pub const MAX_EXPERTS: usize = 1024;
/// Tokens of a context.
pub const MAX_CONTEXT: usize = 1 << 27;

/// Checks what holds between the fields of a configuration, whichever file it came from.
///
/// # Errors
/// A sentence that names fields, values and what was expected.
pub fn check_config(c: &ModelConfig) -> Result<(), String> {
    let sizes = [
        ("vocab_size", c.vocab_size, MAX_VOCAB),
        ("hidden_size", c.hidden_size, MAX_WIDTH),
        ("intermediate_size", c.intermediate_size, MAX_WIDTH),
        ("number of heads", c.num_heads, MAX_HEADS),
        ("number of key/value heads", c.num_kv_heads, MAX_HEADS),
        ("head_dim", c.head_dim, MAX_HEAD_DIM),
        ("number of layers", c.layers.len(), MAX_LAYERS),
        ("context length", c.max_position_embeddings, MAX_CONTEXT),
        ("heads times head_dim", c.num_heads * c.head_dim, MAX_WIDTH),
    ];
    for (name, value, max) in sizes {
        if value == 0 || value > max {
            return Err(format!("{name} is {value}, expected 1 to {max}"));
        }
    }
    if !c.num_heads.is_multiple_of(c.num_kv_heads) {
        return Err(format!("{} heads are no multiple of {} key/value heads", c.num_heads, c.num_kv_heads));
    }
    if !c.head_dim.is_multiple_of(2) {
        return Err(format!("head_dim is {}, expected an even number", c.head_dim));
    }
    if let Some(moe) = c.moe {
        if moe.num_experts == 0 || moe.num_experts > MAX_EXPERTS || moe.intermediate_size == 0 || moe.intermediate_size > MAX_WIDTH {
            return Err(format!(
                "{} experts of width {}, expected up to {MAX_EXPERTS} of up to {MAX_WIDTH}",
                moe.num_experts, moe.intermediate_size
            ));
        }
        if moe.top_k == 0 || moe.top_k > moe.num_experts {
            return Err(format!("{} experts a token, expected 1 to {}", moe.top_k, moe.num_experts));
        }
    }
    if let Some(id) = c.eos_token_ids.iter().chain(&c.bos_token_id).find(|id| **id as usize >= c.vocab_size) {
        return Err(format!("special token {id} is outside the vocabulary of {}", c.vocab_size));
    }
    let numbers = [("rms_norm_eps", c.rms_norm_eps), ("embedding scale", c.embedding_scale), ("attention scale", c.attention_scale)];
    for (name, value) in numbers {
        if !(value.is_finite() && value > 0.0) {
            return Err(format!("{name} is {value}, expected a number above 0"));
        }
    }
    check_rope(&c.rope, c.head_dim)?;
    c.rope_local.as_ref().map_or(Ok(()), |rope| check_rope(rope, c.head_dim))
}

fn check_rope(rope: &RopeConfig, head_dim: usize) -> Result<(), String> {
    if rope.rotary_dim == 0 || rope.rotary_dim > head_dim || !rope.rotary_dim.is_multiple_of(2) {
        return Err(format!("{} rotary dimensions, expected an even number up to head_dim {head_dim}", rope.rotary_dim));
    }
    if !(rope.theta.is_finite() && rope.theta > 1.0) {
        return Err(format!("rope theta is {}, expected a number above 1", rope.theta));
    }
    let numbers: Vec<f32> = match &rope.scaling {
        RopeScaling::None => Vec::new(),
        RopeScaling::Linear { factor } => vec![*factor],
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => vec![*factor, *low_freq_factor, *high_freq_factor],
        RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, .. } => {
            vec![*factor, *beta_fast, *beta_slow, attention_factor.unwrap_or(1.0)]
        }
        RopeScaling::PerDim { short, long, attention_factor, .. } => {
            let pairs = rope.rotary_dim / 2;
            if short.len() != pairs || long.len() != pairs {
                return Err(format!("{} and {} rope factors, expected {pairs}", short.len(), long.len()));
            }
            [short.as_slice(), long, &[*attention_factor]].concat()
        }
    };
    match numbers.iter().find(|number| !(number.is_finite() && **number > 0.0)) {
        Some(number) => Err(format!("rope scaling holds {number}, expected numbers above 0")),
        None => Ok(()),
    }
}
