//! Every op of the CUDA device against the CPU device, on the same bf16 inputs. Needs a GPU and a build with nvcc; says so and passes
//! where one is missing.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

mod cuda_attention;
#[allow(dead_code, reason = "each test binary uses its part")]
mod cuda_pair;
mod cuda_w8;

use cuda_pair::{Case, Inputs, Pair, noise};
use pagoda_engine::device::{AttentionParams, DType, Device, KvShape, Linear, MoeWeights, RopeKvParams, RopeStyle, RopeTable, Tensor};
use pagoda_engine::models::config::Activation;

/// The three norms and the gated activation on `[rows, cols]`.
struct Rowwise {
    rows: usize,
    cols: usize,
    activation: Activation,
}

impl Case for Rowwise {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let (rows, cols) = (self.rows, self.cols);
        let weight = device.load_vector(&noise(7, cols).iter().map(|v| 1.0 + 0.2 * v).collect::<Vec<f32>>()).unwrap();
        let x = inputs.tensor(1, rows, cols);
        let new = |cols| device.alloc(rows, cols, device.activation_dtype()).unwrap();
        let (mut plain, mut of_stream) = (new(cols), new(cols));
        device.rms_norm(&mut plain, &x, &weight, 1e-5).unwrap();
        device.rms_norm(&mut of_stream, &inputs.residual(1, rows, cols), &weight, 1e-5).unwrap();
        let (mut residual, mut added) = (inputs.residual(2, rows, cols), new(cols));
        device.add_rms_norm(&mut added, &mut residual, &x, &weight, 1e-5).unwrap();
        let mut post = inputs.residual(3, rows, cols);
        device.norm_add(&mut post, &x, &weight, 1e-5).unwrap();
        let mut gated = new(cols);
        device.gated_activation(&mut gated, &inputs.tensor(4, rows, 2 * cols), self.activation).unwrap();
        vec![plain, of_stream, residual, added, post, gated]
    }
}

#[test]
fn norms_and_activations_agree() {
    let Some(pair) = Pair::new() else { return };
    for (rows, cols) in [(1, 8), (3, 64), (2, 264), (5, 896), (65, 3584), (2, 16384)] {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            pair.check(&format!("rowwise {rows} x {cols} {activation:?}"), &Rowwise { rows, cols, activation });
        }
    }
}

/// Stacked parts, bias, both output types.
struct Product {
    rows: usize,
    parts: Vec<usize>,
    k: usize,
    bias: bool,
}

impl Case for Product {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let n = self.parts.iter().sum();
        let parts = self.parts.iter().enumerate().map(|(i, &n)| inputs.weight(10 + i as u64, n, self.k)).collect();
        let bias = self.bias.then(|| device.load_vector(&noise(20, n)).unwrap());
        let linear = Linear { parts, bias, n, k: self.k };
        let x = inputs.tensor(1, self.rows, self.k);
        let mut out = device.alloc(self.rows + 3, n, device.activation_dtype()).unwrap();
        device.linear(&mut out, &x, &linear).unwrap();
        let mut logits = device.alloc(self.rows, n, DType::F32).unwrap();
        device.linear(&mut logits, &x, &linear).unwrap();
        vec![out, logits]
    }
}

#[test]
fn products_agree() {
    let Some(pair) = Pair::new() else { return };
    for rows in [1, 2, 3, 4, 5, 8, 16, 17, 64, 129, 300] {
        for (parts, k, bias) in [
            (vec![64], 64, false),
            (vec![48, 16, 16], 128, true),
            (vec![1], 8, false),
            (vec![130, 7], 264, true),
            (vec![1024, 256, 256], 1024, true),
            (vec![3072], 520, false),
        ] {
            pair.check(&format!("product {rows} x {parts:?} x {k} bias {bias}"), &Product { rows, parts, k, bias });
        }
    }
    pair.check("product of a long matrix", &Product { rows: 2, parts: vec![20000], k: 896, bias: false });
    for rows in [100, 1100] {
        pair.check("product with library and bias", &Product { rows, parts: vec![1024, 128, 128], k: 1024, bias: true });
    }
}

/// Gate and up of one layer, joined at once.
struct GatedProduct {
    rows: usize,
    cols: usize,
    k: usize,
    bias: bool,
    activation: Activation,
}

impl Case for GatedProduct {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let GatedProduct { rows, cols, k, .. } = *self;
        let parts = vec![inputs.weight(10, cols, k), inputs.weight(11, cols, k)];
        let bias = self.bias.then(|| device.load_vector(&noise(20, 2 * cols)).unwrap());
        let gate_up = Linear { parts, bias, n: 2 * cols, k };
        let x = inputs.tensor(1, rows, k);
        let new = |cols| device.alloc(rows, cols, device.activation_dtype()).unwrap();
        let (mut out, mut scratch) = (new(cols), new(2 * cols));
        device.linear_gated(&mut out, &mut scratch, &x, &gate_up, self.activation).unwrap();
        vec![out]
    }
}

#[test]
fn gated_products_agree() {
    let Some(pair) = Pair::new() else { return };
    for rows in [1, 2, 16, 64, 65, 129, 300, 1025] {
        for (cols, k, bias) in [(8, 8, false), (72, 64, true), (264, 200, false), (1024, 520, true)] {
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let case = GatedProduct { rows, cols, k, bias, activation };
                pair.check(&format!("gated product {rows} x 2 x {cols} x {k} bias {bias} {activation:?}"), &case);
            }
        }
    }
}

/// Embedding with a scale, gathered rows, soft cap of logits.
struct Gather;

impl Case for Gather {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let (vocab, cols) = (100, 136);
        let mut step = inputs.step(&[]);
        step.num_tokens = 5;
        device.write_ints(&mut step.token_ids, &[99, -1, 3, 3, 50]).unwrap();
        device.write_ints(&mut step.token_source, &[-1, 2, -1, -1, -1]).unwrap();
        let mut last_tokens = device.alloc_ints(4).unwrap();
        device.write_ints(&mut last_tokens, &[1, 2, 42, 4]).unwrap();
        device.resolve_tokens(&mut step, &last_tokens).unwrap();
        let mut out = device.alloc(8, cols, device.activation_dtype()).unwrap();
        device.embedding(&mut out, &inputs.weight(1, vocab, cols), &step, 11.5).unwrap();
        let mut stream = device.alloc(8, cols, device.residual_dtype()).unwrap();
        device.embedding(&mut stream, &inputs.weight(1, vocab, cols), &step, 11.5).unwrap();
        step.num_logit_rows = 3;
        device.write_ints(&mut step.logit_rows, &[4, 0, 1]).unwrap();
        let mut gathered = device.alloc(4, cols, device.activation_dtype()).unwrap();
        device.gather_rows(&mut gathered, &out, &step).unwrap();
        let mut of_stream = device.alloc(4, cols, device.residual_dtype()).unwrap();
        device.gather_rows(&mut of_stream, &stream, &step).unwrap();
        let mut logits = inputs.logits(5, 3, 264);
        device.soft_cap(&mut logits, 0.5).unwrap();
        vec![out, stream, gathered, of_stream, logits]
    }
}

#[test]
fn rows_and_soft_cap_agree() {
    let Some(pair) = Pair::new() else { return };
    pair.check("gather", &Gather);
}

/// A copied block is read like its source.
struct CopyBlocks;

impl Case for CopyBlocks {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let shape = KvShape { num_blocks: 8, block_size: 16, num_kv_heads: 2, head_dim: 32, dtype: DType::BF16 };
        let mut kv = device.alloc_kv(shape).unwrap();
        let ones = |len| device.load_vector(&vec![1.0; len]).unwrap();
        let rope = RopeTable { cos: ones(64 * 16), sin: ones(64 * 16), rotary_dim: 32, style: RopeStyle::HalfSplit };
        let params = RopeKvParams { num_heads: 2, num_kv_heads: 2, head_dim: 32, q_norm: None, k_norm: None, eps: 0.0, rope: &rope };
        let mut qkv = inputs.tensor(1, 32, 6 * 32);
        device.rope_kv_store(&mut qkv, &mut kv, &inputs.paged_step(&[(0, 32, vec![3, 5])], 16), &params).unwrap();
        device.copy_blocks(&mut kv, &[(3, 1), (5, 7)]).unwrap();
        let attention = AttentionParams { num_heads: 2, num_kv_heads: 2, head_dim: 32, scale: 0.2, window: None, soft_cap: None };
        let mut out = device.alloc(32, 64, device.activation_dtype()).unwrap();
        device.attention(&mut out, &qkv, &kv, &inputs.paged_step(&[(0, 32, vec![1, 7])], 16), &attention).unwrap();
        vec![out]
    }
}

#[test]
fn copied_blocks_agree() {
    let Some(pair) = Pair::new() else { return };
    pair.check("copy blocks", &CopyBlocks);
}

/// Router and experts.
struct Mixture {
    tokens: usize,
    num_experts: usize,
    top_k: usize,
    renormalise: bool,
}

impl Case for Mixture {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let (hidden, intermediate) = (64, 48);
        let linear = |seeds: &[u64], n: usize, k: usize| Linear::<D> {
            parts: seeds.iter().map(|&seed| inputs.weight(seed, n / seeds.len(), k)).collect(),
            bias: None,
            n,
            k,
        };
        let experts = 0..self.num_experts as u64;
        let weights = MoeWeights {
            router: linear(&[5], self.num_experts, hidden),
            gate_up: experts.clone().map(|e| linear(&[100 + 2 * e, 101 + 2 * e], 2 * intermediate, hidden)).collect(),
            down: experts.map(|e| linear(&[1000 + e], hidden, intermediate)).collect(),
            top_k: self.top_k,
            renormalise: self.renormalise,
            activation: Activation::Silu,
        };
        let x = inputs.tensor(1, self.tokens, hidden);
        let mut out = device.alloc(self.tokens, hidden, device.activation_dtype()).unwrap();
        device.moe(&mut out, &x, &weights).unwrap();
        vec![out]
    }
}

#[test]
fn mixtures_agree() {
    let Some(pair) = Pair::new() else { return };
    for (tokens, num_experts, top_k) in [(1, 4, 2), (3, 8, 8), (5, 128, 8), (70, 8, 2), (200, 3, 1), (300, 40, 6), (1100, 16, 4)] {
        for renormalise in [false, true] {
            let case = Mixture { tokens, num_experts, top_k, renormalise };
            pair.check(&format!("mixture {tokens} tokens, {top_k} of {num_experts}, renormalise {renormalise}"), &case);
        }
    }
}

/// The smallest shape of every op, and of every kernel that an op chooses among on this GPU: compute-sanitizer takes hundreds of times as
/// long as the kernels alone, and goes through these (scripts/gpu-table.sh).
#[test]
fn smallest_shapes_agree() {
    let (Some(pair), Some(deterministic)) = (Pair::new(), Pair::deterministic()) else { return };
    for (rows, cols, activation) in [(1, 8, Activation::Silu), (2, 264, Activation::GeluTanh), (1, 64, Activation::Gelu)] {
        pair.check("rowwise", &Rowwise { rows, cols, activation });
    }
    for rows in [1, 5, 65] {
        for pair in [&pair, &deterministic] {
            pair.check("product", &Product { rows, parts: vec![48, 16], k: 72, bias: true });
            pair.check("gated product", &GatedProduct { rows, cols: 16, k: 72, bias: true, activation: Activation::Silu });
        }
    }
    for (tokens, num_experts, top_k) in [(1, 4, 2), (100, 2, 1)] {
        pair.check("mixture", &Mixture { tokens, num_experts, top_k, renormalise: true });
    }
    pair.check("gather", &Gather);
    pair.check("copy blocks", &CopyBlocks);
    pair.check_sampling(1, 300);
    cuda_attention::check_smallest(&pair);
    cuda_w8::check_smallest(&pair);
}

#[test]
fn deterministic_products_give_a_row_the_same_bits_in_any_batch() {
    let Some(pair) = Pair::deterministic() else { return };
    let many = [2, 9, 64, 65, 130, 700];
    for (parts, k, bias) in [(vec![896, 128, 128], 896, true), (vec![130, 6], 264, true), (vec![896], 4864, false), (vec![9000], 64, false)]
    {
        let row = |rows| pair.first_rows(&Product { rows, parts: parts.clone(), k, bias });
        let alone = row(1);
        assert!(many.iter().all(|&rows| row(rows) == alone), "product {parts:?} x {k}");
    }
    for (cols, k, bias) in [(4864, 896, false), (264, 200, true), (1001, 520, false)] {
        let row = |rows| pair.first_rows(&GatedProduct { rows, cols, k, bias, activation: Activation::Silu });
        let alone = row(1);
        assert!(many.iter().all(|&rows| row(rows) == alone), "gated product {cols} x {k}");
    }
    let row = |tokens| pair.first_rows(&Mixture { tokens, num_experts: 8, top_k: 3, renormalise: true });
    let alone = row(1);
    assert!(many.iter().all(|&tokens| row(tokens) == alone), "mixture");
}

#[test]
fn sampling_agrees() {
    let Some(pair) = Pair::new() else { return };
    pair.check_sampling(9, 5000);
    pair.check_sampling(1, 151_936);
}
