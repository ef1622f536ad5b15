//! Gated activations and the soft cap.

use super::math;
use super::norm::{map_in_place, piece_of, put};
use super::simd::{Kernel, LANES, Simd};
use crate::models::config::Activation;

/// out[i] = act(gate_up[i]) * gate_up[n + i], one row.
pub struct Gated<'a> {
    /// `[2n]`.
    pub gate_up: &'a [f32],
    /// `[n]`.
    pub out: &'a mut [f32],
    /// The function.
    pub activation: Activation,
}

impl Kernel for Gated<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (gate, up) = self.gate_up.split_at(self.out.len());
        match self.activation {
            Activation::Silu => gated(s, gate, up, self.out, |v| math::silu(s, v)),
            Activation::GeluTanh => gated(s, gate, up, self.out, |v| math::gelu_tanh(s, v)),
            Activation::Gelu => gated(s, gate, up, self.out, |v| math::gelu(s, v)),
        }
    }
}

#[inline(always)]
fn gated<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32], f: impl Fn(S::V) -> S::V) {
    // As in `map_in_place`: one call of `f`.
    for (out, (gate, up)) in out.chunks_mut(LANES).zip(gate.chunks(LANES).zip(up.chunks(LANES))) {
        let v = f(s.load(&piece_of(gate)));
        put(s, s.mul(v, s.load(&piece_of(up))), out);
    }
}

/// x = cap * tanh(x / cap).
pub struct SoftCap<'a> {
    /// Updated.
    pub x: &'a mut [f32],
    /// The cap.
    pub cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        map_in_place(s, self.x, |v| math::soft_cap(s, v, self.cap));
    }
}

/// x = act(x).
pub struct Activate<'a> {
    /// Updated.
    pub x: &'a mut [f32],
    /// The function.
    pub activation: Activation,
}

impl Kernel for Activate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.activation {
            Activation::Silu => map_in_place(s, self.x, |v| math::silu(s, v)),
            Activation::GeluTanh => map_in_place(s, self.x, |v| math::gelu_tanh(s, v)),
            Activation::Gelu => map_in_place(s, self.x, |v| math::gelu(s, v)),
        }
    }
}
