//! Mixture of experts around the grouped product (cuda/moe.cu). Asynchronous on `stream`. A pair is (token, choice).

use super::{ALIGNMENT, DeviceBytes, Stream, check_range, int, launch};
use crate::status::Result;
use crate::sys;

/// What the router decides; P = num_tokens * top_k.
#[derive(Clone, Copy, Debug)]
pub struct Routing {
    /// `[P]` i32: expert of each pair.
    pub experts: DeviceBytes,
    /// `[P]` f32: weight of each pair.
    pub weights: DeviceBytes,
    /// `[num_experts + 1]` i32: first sorted pair of each expert.
    pub offsets: DeviceBytes,
    /// `[P]` i32: pair at each sorted position.
    pub sorted: DeviceBytes,
    /// `[P]` i32: token at each sorted position.
    pub tokens: DeviceBytes,
    /// `[P]` i32: sorted position of each pair.
    pub position: DeviceBytes,
}

/// Operands of `moe_route`.
#[derive(Clone, Copy, Debug)]
pub struct MoeRoute {
    /// Written.
    pub routing: Routing,
    /// `[num_tokens, num_experts]` f32.
    pub logits: DeviceBytes,
    /// Tokens.
    pub num_tokens: usize,
    /// Experts, at most 512.
    pub num_experts: usize,
    /// Experts of a token, at most 32.
    pub top_k: usize,
    /// Whether the chosen probabilities are divided by their sum.
    pub renormalise: bool,
}

/// Softmax over the logits, the `top_k` best of each token, and the pairs sorted by expert.
///
/// # Errors
/// `InvalidArgument` for a range too short, `Unsupported` for too many experts, `NotBuilt`, `Cuda`.
pub fn moe_route(p: &MoeRoute, stream: Stream) -> Result<()> {
    const OP: &str = "moe_route";
    let pairs = p.num_tokens * p.top_k;
    let r = &p.routing;
    check_range(OP, "logits", p.logits, p.num_tokens * p.num_experts * 4, 4)?;
    check_range(OP, "offsets", r.offsets, (p.num_experts + 1) * 4, 4)?;
    for (name, range) in
        [("experts", r.experts), ("weights", r.weights), ("sorted", r.sorted), ("tokens", r.tokens), ("position", r.position)]
    {
        check_range(OP, name, range, pairs * 4, 4)?;
    }
    let raw = sys::pagoda_moe_route_params {
        experts: r.experts.as_ptr(),
        weights: r.weights.as_ptr(),
        offsets: r.offsets.as_ptr(),
        sorted: r.sorted.as_ptr(),
        tokens: r.tokens.as_ptr(),
        position: r.position.as_ptr(),
        logits: p.logits.as_ptr::<f32>(),
        num_tokens: int(OP, "num_tokens", p.num_tokens)?,
        num_experts: int(OP, "num_experts", p.num_experts)?,
        top_k: int(OP, "top_k", p.top_k)?,
        renormalise: i32::from(p.renormalise),
    };
    launch!(pagoda_moe_route, raw, stream)
}

/// out[t, :] = sum over a token's pairs of weight * y[position, :]; out: `[num_tokens, hidden]`, y: `[P, hidden]` bf16.
///
/// # Errors
/// See `moe_route`.
pub fn moe_combine(
    out: DeviceBytes,
    y: DeviceBytes,
    routing: &Routing,
    (num_tokens, top_k): (usize, usize),
    hidden: usize,
    stream: Stream,
) -> Result<()> {
    const OP: &str = "moe_combine";
    let pairs = num_tokens * top_k;
    check_range(OP, "out", out, num_tokens * hidden * 2, ALIGNMENT)?;
    check_range(OP, "y", y, pairs * hidden * 2, ALIGNMENT)?;
    check_range(OP, "weights", routing.weights, pairs * 4, 4)?;
    check_range(OP, "position", routing.position, pairs * 4, 4)?;
    let raw = sys::pagoda_moe_combine_params {
        out: out.as_ptr(),
        y: y.as_ptr::<std::ffi::c_void>(),
        weights: routing.weights.as_ptr::<f32>(),
        position: routing.position.as_ptr::<i32>(),
        num_tokens: int(OP, "num_tokens", num_tokens)?,
        hidden: int(OP, "hidden", hidden)?,
        top_k: int(OP, "top_k", top_k)?,
    };
    launch!(pagoda_moe_combine, raw, stream)
}
