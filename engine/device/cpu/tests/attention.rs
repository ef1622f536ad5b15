//! Rope, store and attention through the paged cache against f64, and equality of chunks, batches, splits and block sizes.

use super::*;
use crate::device::{AttentionParams, KvScales, KvShape, RopeKvParams, RopeStyle, RopeTable, RowGather, StepTensors};
use crate::weights::quant::books::e4m3;
use crate::weights::quant::quantize::floats::to_e4m3;

/// A layer's shape and options.
#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    block_size: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
    dtype: DType,
}

const BASE: Case = Case { heads: 6, kv_heads: 2, dim: 64, block_size: 16, window: None, soft_cap: None, dtype: DType::F32 };

/// One sequence: how many of its tokens each step computes.
type Chunks = Vec<usize>;

impl Case {
    fn cols(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    fn params(&self) -> AttentionParams {
        AttentionParams {
            num_heads: self.heads,
            num_kv_heads: self.kv_heads,
            head_dim: self.dim,
            scale: 1.0 / (self.dim as f32).sqrt(),
            window: self.window,
            soft_cap: self.soft_cap,
        }
    }
}

/// Metadata of a step in which sequence `s` computes `chunks[s]` tokens after `computed[s]`, with blocks `s, s + n, s + 2n, ..`.
pub fn step(block_size: usize, chunks: &[usize], computed: &[usize], max_blocks: usize) -> StepTensors<CpuDevice> {
    let n = chunks.len();
    let (mut positions, mut slots, mut cu, mut lens, mut tables) = (vec![], vec![], vec![0], vec![], vec![]);
    for seq in 0..n {
        for position in computed[seq]..computed[seq] + chunks[seq] {
            positions.push(position as i32);
            slots.push(((position / block_size * n + seq) * block_size + position % block_size) as i32);
        }
        cu.push(positions.len() as i32);
        lens.push((computed[seq] + chunks[seq]) as i32);
        tables.extend((0..max_blocks).map(|block| (block * n + seq) as i32));
    }
    let num_tokens = positions.len();
    StepTensors {
        num_tokens,
        num_seqs: n,
        max_query_len: chunks.iter().copied().max().unwrap_or(0),
        max_context_len: lens.iter().copied().max().unwrap_or(0) as usize,
        token_ids: vec![0; num_tokens],
        token_source: vec![-1; num_tokens],
        positions,
        slot_mapping: slots,
        cu_seqlens_q: cu,
        context_lens: lens,
        block_tables: tables,
        max_blocks_per_seq: max_blocks,
        num_prefix_groups: 0,
        prefix_groups: vec![],
        prefix_members: vec![],
        prefix_lens: vec![],
        logit_rows: vec![],
        first_logit_row: 0,
        num_logit_rows: 0,
        gather: RowGather::Head,
    }
}

/// A table that rotates nothing.
fn no_rotation(device: &CpuDevice, dim: usize, positions: usize) -> RopeTable<CpuDevice> {
    let half = dim / 2;
    RopeTable {
        cos: vector(device, &vec![1.0; positions * half]),
        sin: vector(device, &vec![0.0; positions * half]),
        rotary_dim: dim / 2 * 2,
        style: RopeStyle::HalfSplit,
    }
}

/// Runs the sequences step by step and returns each one's outputs in order.
fn run(device: &CpuDevice, case: Case, sequences: &[(Vec<f32>, Chunks)]) -> Vec<Vec<f32>> {
    let cols = case.cols();
    let longest = sequences.iter().map(|(x, _)| x.len() / cols).max().unwrap();
    let max_blocks = longest.div_ceil(case.block_size);
    let shape = KvShape {
        num_blocks: max_blocks * sequences.len(),
        block_size: case.block_size,
        num_kv_heads: case.kv_heads,
        head_dim: case.dim,
        dtype: case.dtype,
    };
    let mut kv = device.alloc_kv(shape).unwrap();
    let rope = no_rotation(device, case.dim, longest);
    let rope_params = RopeKvParams {
        num_heads: case.heads,
        num_kv_heads: case.kv_heads,
        head_dim: case.dim,
        q_norm: None,
        k_norm: None,
        eps: 0.0,
        rope: &rope,
    };
    let mut computed = vec![0; sequences.len()];
    let mut outputs = vec![vec![]; sequences.len()];
    for index in 0..sequences.iter().map(|(_, chunks)| chunks.len()).max().unwrap() {
        let chunks: Vec<usize> = sequences.iter().map(|(_, chunks)| chunks.get(index).copied().unwrap_or(0)).collect();
        let rows = sequences.iter().zip(&chunks).zip(&computed).flat_map(|(((x, _), len), done)| &x[done * cols..(done + len) * cols]);
        let mut qkv = tensor(device, cols, &rows.copied().collect::<Vec<f32>>());
        let step = step(case.block_size, &chunks, &computed, max_blocks);
        device.rope_kv_store(&mut qkv, &mut kv, &step, &rope_params).unwrap();
        let mut out = empty(device, step.num_tokens, case.heads * case.dim);
        device.attention(&mut out, &qkv, &kv, &step, &case.params()).unwrap();
        let mut values = out.values();
        for (seq, len) in chunks.iter().enumerate() {
            let (mine, rest) = values.split_at(len * case.heads * case.dim);
            outputs[seq].extend_from_slice(mine);
            values = rest;
            computed[seq] += len;
        }
    }
    outputs
}

/// f64 attention of one sequence.
fn reference(case: Case, x: &[f32]) -> Vec<f64> {
    let (cols, dim, group) = (case.cols(), case.dim, case.heads / case.kv_heads);
    let tokens = x.len() / cols;
    let mut out = Vec::new();
    for t in 0..tokens {
        for h in 0..case.heads {
            let q = &x[t * cols + h * dim..][..dim];
            let oldest = case.window.map_or(0, |window| (t + 1).saturating_sub(window));
            let key = |p: usize| &x[p * cols + (case.heads + h / group) * dim..][..dim];
            let value = |p: usize| &x[p * cols + (case.heads + case.kv_heads + h / group) * dim..][..dim];
            let scores: Vec<f64> = (oldest..=t)
                .map(|p| {
                    let score = dot(q, key(p)).0 * f64::from(case.params().scale);
                    case.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for i in 0..dim {
                let weighted = (oldest..=t).zip(&scores).map(|(p, s)| (s - max).exp() * f64::from(value(p)[i]));
                out.push(weighted.sum::<f64>() / sum);
            }
        }
    }
    out
}

/// Keys and queries of some size, so that the softmax is not flat.
fn sequence(random: &mut Random, case: Case, tokens: usize) -> Vec<f32> {
    random.vec(tokens * case.cols()).iter().map(|x| 3.0 * x).collect()
}

#[test]
fn shapes_windows_caps_and_page_tails_equal_f64() {
    let mut random = Random(11);
    let mut cases = vec![];
    for (heads, kv_heads, dim) in [(6, 2, 64), (1, 1, 80), (7, 1, 96), (2, 2, 128), (3, 3, 256), (4, 2, 20)] {
        cases.push(Case { heads, kv_heads, dim, ..BASE });
    }
    for (window, soft_cap) in [(Some(1), None), (Some(24), None), (Some(64), Some(5.0)), (None, Some(30.0)), (Some(1000), None)] {
        cases.push(Case { window, soft_cap, ..BASE });
    }
    for block_size in [1, 5, 32, 256] {
        cases.push(Case { block_size, dim: 32, ..BASE });
    }
    for device in devices() {
        for case in &cases {
            let lens: &[usize] = if case.block_size == 16 && case.dim == 64 { &[1, 15, 16, 17, 63, 64, 65, 300] } else { &[1, 17, 70] };
            for &len in lens {
                let x = sequence(&mut random, *case, len);
                let out = run(&device, *case, &[(x.clone(), vec![len])]);
                assert_close(&out[0], &reference(*case, &x), 2e-5, &format!("{} {case:?} {len}", device.name()));
            }
        }
    }
}

#[test]
fn half_precision_caches_are_close() {
    let mut random = Random(12);
    for device in devices() {
        for (dtype, tolerance) in [(DType::F16, 1e-2), (DType::BF16, 1e-1)] {
            let case = Case { dtype, ..BASE };
            let x = sequence(&mut random, case, 100);
            let out = run(&device, case, &[(x.clone(), vec![60, 39, 1])]);
            assert_close(&out[0], &reference(case, &x), tolerance, &format!("{} {dtype:?}", device.name()));
        }
    }
}

#[test]
fn chunks_batches_and_splits_give_the_same_bits() {
    let mut random = Random(13);
    for device in devices() {
        for window in [None, Some(40), Some(300)] {
            let case = Case { window, heads: 3, kv_heads: 1, ..BASE };
            let lens = [600, 37, 1, 270];
            let inputs: Vec<Vec<f32>> = lens.iter().map(|len| sequence(&mut random, case, *len)).collect();
            let whole: Vec<Vec<f32>> =
                inputs.iter().zip(lens).map(|(x, len)| run(&device, case, &[(x.clone(), vec![len])]).remove(0)).collect();
            let chunked = [vec![255, 1, 1, 300, 43], vec![1; 37], vec![1], vec![16, 17, 200, 36, 1]];
            let batch: Vec<(Vec<f32>, Chunks)> = inputs.into_iter().zip(chunked).collect();
            for (seq, (batched, alone)) in run(&device, case, &batch).iter().zip(&whole).enumerate() {
                assert!(bits(batched) == bits(alone), "{} window {window:?} sequence {seq}", device.name());
            }
        }
    }
}

#[test]
fn codes_are_the_nearest_multiples_of_their_heads_scale() {
    let device = CpuDevice::new(Some(2)).unwrap();
    let shape = KvShape { num_blocks: 2, block_size: 16, num_kv_heads: 2, head_dim: 8, dtype: DType::E4M3 };
    let mut kv = device.alloc_kv(shape).unwrap();
    let scales = KvScales { k: vec![0.5, 0.01], v: vec![2.0, 1.0] };
    device.set_kv_scales(&mut kv, &scales).unwrap();
    let rope = no_rotation(&device, 8, 16);
    let params = RopeKvParams { num_heads: 1, num_kv_heads: 2, head_dim: 8, q_norm: None, k_norm: None, eps: 0.0, rope: &rope };
    let rows = Random(15).vec(16 * 40);
    let mut qkv = tensor(&device, 40, &rows);
    device.rope_kv_store(&mut qkv, &mut kv, &step(16, &[16], &[0], 1), &params).unwrap();
    for (token, row) in rows.chunks(40).enumerate() {
        for head in 0..2 {
            for dim in 0..8 {
                let nearest = |x: f32, scale: f32| e4m3(to_e4m3(x / scale)) * scale;
                let (k, v) = (kv.k.get(kv.k_at(0, head, token) + dim * 16), kv.v.get(kv.v_at(0, head, token) + dim));
                assert_eq!(k, nearest(row[8 + head * 8 + dim], scales.k[head]), "key of token {token}, head {head}, {dim}");
                assert_eq!(v, nearest(row[24 + head * 8 + dim], scales.v[head]), "value of token {token}, head {head}, {dim}");
            }
        }
    }
}

#[test]
fn copied_blocks_hold_what_the_source_held() {
    let device = CpuDevice::new(Some(2)).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::E4M3] {
        let shape = KvShape { num_blocks: 4, block_size: 16, num_kv_heads: 2, head_dim: 8, dtype };
        let mut kv = device.alloc_kv(shape).unwrap();
        let rope = no_rotation(&device, 8, 16);
        let params = RopeKvParams { num_heads: 1, num_kv_heads: 2, head_dim: 8, q_norm: None, k_norm: None, eps: 0.0, rope: &rope };
        let mut qkv = tensor(&device, 40, &Random(14).vec(16 * 40));
        device.rope_kv_store(&mut qkv, &mut kv, &step(16, &[16], &[0], 1), &params).unwrap();
        device.copy_blocks(&mut kv, &[(0, 2), (2, 3)]).unwrap();
        for at in 0..16 * 16 {
            for block in [2, 3] {
                assert_eq!(kv.k.get(at), kv.k.get(block * 256 + at));
                assert_eq!(kv.v.get(at), kv.v.get(block * 256 + at));
            }
            assert_eq!(kv.k.get(256 + at), 0.0);
        }
        assert_ne!(kv.k.get(3), 0.0);
    }
}
