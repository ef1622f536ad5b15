//! Mixture of experts of the rounding device, token by token, with a record of every router decision.

use super::RoundedDevice;
use super::product::product;
use super::rounding::{Point, Rounding};
use crate::device::MoeWeights;
use crate::models::config::Activation;

/// What the router said about one token in one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Logit of each expert.
    pub logits: Vec<f32>,
    /// Chosen experts, best first.
    pub experts: Vec<usize>,
}

impl Route {
    fn new(logits: &[f32], top_k: usize) -> Route {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        order.truncate(top_k);
        Route { logits: logits.to_vec(), experts: order }
    }

    /// How much the last chosen logit is above the best one that is not chosen.
    pub fn margin(&self) -> f32 {
        let chosen = self.experts.last().map_or(f32::INFINITY, |last| self.logits[*last]);
        let others = (0..self.logits.len()).filter(|expert| !self.experts.contains(expert)).map(|expert| self.logits[expert]);
        chosen - others.fold(f32::NEG_INFINITY, f32::max)
    }

    /// Whether another route chooses the same set.
    pub fn agrees(&self, other: &Route) -> bool {
        self.experts.iter().all(|expert| other.experts.contains(expert))
    }
}

/// out = act(gate) * up, one row.
pub fn gated(rounding: Rounding, out: &mut [f32], gate_up: &[f32], activation: Activation) {
    let mut gate_up = gate_up.to_vec();
    rounding.apply(if activation == Activation::Silu { Point::SiluGateUp } else { Point::GateUp }, &mut gate_up);
    let (gate, up) = gate_up.split_at(out.len());
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        let x = f64::from(*gate);
        let activated = match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        };
        *out = activated as f32 * up;
    }
    rounding.apply(Point::Activated, out);
}

/// The error function by its Taylor series; 1 to f64 beyond 6.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// The weighted sum of each token's experts; every choice is added to `routes`. `x` is what the experts and what the router read.
pub fn mixture(
    rounding: Rounding,
    out: &mut [f32],
    (x, router_x): (&[f32], &[f32]),
    weights: &MoeWeights<RoundedDevice>,
    routes: &mut Vec<Route>,
) {
    let (hidden, num_experts) = (weights.router.k, weights.router.n);
    let logits = product(rounding, router_x, &weights.router);
    for ((out, x), logits) in out.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden)).zip(logits.chunks_exact(num_experts)) {
        let route = Route::new(logits, weights.top_k);
        let max = logits[route.experts[0]];
        let sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
        let probability = |expert: usize| (logits[expert] - max).exp() / sum;
        let chosen: f32 = route.experts.iter().map(|e| probability(*e)).sum();
        out.fill(0.0);
        for &expert in &route.experts {
            let gate_up = product(rounding, x, &weights.gate_up[expert]);
            let mut activated = vec![0.0; gate_up.len() / 2];
            gated(rounding, &mut activated, &gate_up, weights.activation);
            let mut y = product(rounding, &activated, &weights.down[expert]);
            rounding.apply(Point::Expert, &mut y);
            let weight = if weights.renormalise { probability(expert) / chosen } else { probability(expert) };
            out.iter_mut().zip(&y).for_each(|(out, y)| *out += weight * y);
        }
        routes.push(route);
    }
}
