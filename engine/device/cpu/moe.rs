//! Mixture of experts: router, choice of experts, each expert's layers over the tokens that chose it, weighted sum.
//!
//! A token's sum runs over its experts in ascending order, whatever batch it is in.

use super::CpuDevice;
use super::activation::Gated;
use crate::device::MoeWeights;

/// Scratch of the op; grows to the largest step (the workspace bounds its tokens) and stays.
#[derive(Default)]
pub struct MoeScratch {
    /// `[tokens, num_experts]`.
    probabilities: Vec<f32>,
    /// (expert, token, weight), sorted.
    choices: Vec<(usize, usize, f32)>,
    /// Expert ids of one token, best first.
    ranking: Vec<usize>,
    /// `[tokens of an expert, hidden]`.
    inputs: Vec<f32>,
    /// `[tokens of an expert, 2 * intermediate]`.
    gate_up: Vec<f32>,
    /// `[tokens of an expert, intermediate]`.
    activated: Vec<f32>,
    /// `[tokens of an expert, hidden]`.
    outputs: Vec<f32>,
}

/// The first `len` elements, after growing.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl CpuDevice {
    /// out, x: `[tokens, hidden]`.
    pub(super) fn moe_slices(&self, out: &mut [f32], x: &[f32], tokens: usize, weights: &MoeWeights<CpuDevice>) {
        let hidden = weights.router.k;
        assert_eq!(out.len(), x.len(), "moe keeps its shape");
        out.fill(0.0);
        let mut scratch = self.moe_scratch.lock();
        let scratch = &mut *scratch;
        self.choose(scratch, x, tokens, weights);
        let mut rest = &scratch.choices[..];
        while let Some(&(expert, ..)) = rest.first() {
            let count = rest.iter().take_while(|choice| choice.0 == expert).count();
            let (mine, others) = rest.split_at(count);
            rest = others;
            let (gate_up, down) = (&weights.gate_up[expert], &weights.down[expert]);
            let inputs = sized(&mut scratch.inputs, count * hidden);
            for (row, (_, token, _)) in inputs.chunks_exact_mut(hidden).zip(mine) {
                row.copy_from_slice(&x[token * hidden..][..hidden]);
            }
            let both = sized(&mut scratch.gate_up, count * gate_up.n);
            self.linear_slices(both, inputs, count, gate_up);
            let activated = sized(&mut scratch.activated, count * down.k);
            self.gated_slices(activated, both, count, weights.activation);
            let outputs = sized(&mut scratch.outputs, count * hidden);
            self.linear_slices(outputs, activated, count, down);
            for (row, (_, token, weight)) in outputs.chunks_exact(hidden).zip(mine) {
                out[token * hidden..][..hidden].iter_mut().zip(row).for_each(|(out, x)| *out += weight * x);
            }
        }
    }

    fn choose(&self, scratch: &mut MoeScratch, x: &[f32], tokens: usize, weights: &MoeWeights<CpuDevice>) {
        let experts = weights.router.n;
        assert!(weights.top_k >= 1 && weights.top_k <= experts, "top {} of {experts} experts", weights.top_k);
        let probabilities = sized(&mut scratch.probabilities, tokens * experts);
        self.linear_slices(probabilities, x, tokens, &weights.router);
        scratch.choices.clear();
        for (token, row) in probabilities.chunks_exact_mut(experts).enumerate() {
            softmax(row);
            scratch.ranking.clear();
            scratch.ranking.extend(0..experts);
            scratch.ranking.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            let chosen = &scratch.ranking[..weights.top_k];
            let sum: f32 = if weights.renormalise { chosen.iter().map(|e| row[*e]).sum() } else { 1.0 };
            scratch.choices.extend(chosen.iter().map(|e| (*e, token, row[*e] / sum)));
        }
        scratch.choices.sort_by_key(|choice| (choice.0, choice.1));
    }

    /// out[t, i] = act(gate_up[t, i]) * gate_up[t, n + i].
    pub(super) fn gated_slices(&self, out: &mut [f32], gate_up: &[f32], tokens: usize, activation: crate::models::config::Activation) {
        assert_eq!(gate_up.len(), 2 * out.len(), "gate and up");
        if tokens == 0 {
            return;
        }
        let cols = out.len() / tokens;
        self.for_rows(tokens, cols * 8, out, cols, |token, out| {
            self.dispatch.run(Gated { gate_up: &gate_up[token * 2 * cols..][..2 * cols], out, activation });
        });
    }
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}
