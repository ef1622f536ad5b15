//! Which intermediate values are rounded to bf16, and the rounding.

use half::bf16;

/// A place where a device that stores bf16 rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Point {
    /// Matrices at load (none in a bf16 checkpoint; dequantised blocks lose up to 2^-9).
    Weights,
    /// Scaled embeddings (Gemma).
    Embedding,
    /// Outputs of norms.
    Norm,
    /// q, k and v as the product leaves them.
    Qkv,
    /// Products before their bias is added (on GPUs and for biases where that is a kernel of its own).
    BeforeBias,
    /// q and k after norm and rotation: what the cache holds.
    Rope,
    /// Unnormalised probabilities, the operand of the product with v.
    Probabilities,
    /// Output of attention.
    Attention,
    /// What attention and MLP add to the residual stream.
    Delta,
    /// The residual stream after each addition.
    Residual,
    /// gate and up of a GELU.
    GateUp,
    /// gate and up of a SiLU, where that is not part of the product.
    SiluGateUp,
    /// act(gate) * up.
    Activated,
    /// What the router reads, where that is the output of a norm.
    Router,
    /// Outputs of experts before their weighted sum.
    Expert,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 15] = [
        Point::Weights,
        Point::Embedding,
        Point::Norm,
        Point::Qkv,
        Point::BeforeBias,
        Point::Rope,
        Point::Probabilities,
        Point::Attention,
        Point::Delta,
        Point::Residual,
        Point::GateUp,
        Point::SiluGateUp,
        Point::Activated,
        Point::Router,
        Point::Expert,
    ];
}

/// A set of points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounding(u32);

impl Rounding {
    /// Exact but for f32.
    pub const NONE: Rounding = Rounding(0);

    /// Where the CUDA device rounds on an H100: the residual stream is f32, biases and SiLU are part of their products. With
    /// `Point::SiluGateUp` it is what steps of some sizes do, for which a product and a SiLU apart are faster.
    pub fn cuda() -> Rounding {
        let all = Point::ALL.into_iter().fold(Rounding::NONE, Rounding::with);
        [Point::Residual, Point::Embedding, Point::BeforeBias, Point::SiluGateUp].into_iter().fold(all, Rounding::without)
    }

    /// This and `point`.
    #[must_use]
    pub fn with(self, point: Point) -> Rounding {
        Rounding(self.0 | 1 << point as u32)
    }

    /// This but for `point`.
    #[must_use]
    pub fn without(self, point: Point) -> Rounding {
        Rounding(self.0 & !(1 << point as u32))
    }

    /// Whether `point` is in it.
    pub fn has(self, point: Point) -> bool {
        self.0 & (1 << point as u32) != 0
    }

    /// Rounds `values` if `point` is in the set.
    pub fn apply(self, point: Point, values: &mut [f32]) {
        if self.has(point) {
            values.iter_mut().for_each(|v| *v = rounded(*v));
        }
    }
}

/// The nearest bf16, ties to even.
pub fn rounded(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}
