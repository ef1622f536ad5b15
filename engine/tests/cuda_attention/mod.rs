//! Rotation, the paged cache and attention of the CUDA device against the CPU device.

use pagoda_engine::device::{AttentionParams, DType, Device, KvScales, KvShape, RopeKvParams, RopeStyle, RopeTable, StepTensors, Tensor};

use crate::cuda_pair::{Case, Inputs, Pair, noise};

/// A cache full of NaN, prompts computed in chunks, single tokens beside a last chunk, then single tokens alone.
#[derive(Clone)]
struct Attend {
    heads: (usize, usize, usize),
    block_size: usize,
    /// (computed before the last step, tokens of the last step) of each sequence.
    seqs: Vec<(usize, usize)>,
    window: Option<usize>,
    soft_cap: Option<f32>,
    norm: bool,
    rope: (usize, RopeStyle),
    /// Of the cache.
    dtype: DType,
}

impl Attend {
    fn blocks(&self, seq: usize, len: usize) -> Vec<u32> {
        // Physical blocks of the sequences interleave, and block 0 belongs to nobody.
        (0..len.div_ceil(self.block_size)).map(|i| (1 + i * self.seqs.len() + (self.seqs.len() - 1 - seq)) as u32).collect()
    }

    fn step<D: Device>(&self, inputs: &Inputs<'_, D>, lens: &[(usize, usize)]) -> StepTensors<D> {
        let rows: Vec<_> = lens.iter().enumerate().map(|(s, &(start, len))| (start, len, self.blocks(s, start + len))).collect();
        inputs.paged_step(&rows, self.block_size)
    }
}

impl Case for Attend {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let (num_heads, num_kv_heads, head_dim) = self.heads;
        let longest = SINGLE_STEPS + self.seqs.iter().map(|(a, b)| a + b).max().unwrap();
        let num_blocks = 2 + longest.div_ceil(self.block_size) * self.seqs.len();
        let shape = KvShape { num_blocks, block_size: self.block_size, num_kv_heads, head_dim, dtype: self.dtype };
        let mut kv = device.alloc_kv(shape).unwrap();
        let scales = |first: f32| (0..num_kv_heads).map(|head| first * (1.0 + head as f32)).collect();
        device.set_kv_scales(&mut kv, &KvScales { k: scales(0.01), v: scales(0.003) }).unwrap();
        let rotary_dim = self.rope.0;
        let angles: Vec<f32> = (0..(longest + 1) * rotary_dim / 2).map(|i| (i as f32 * 0.37) % 6.0).collect();
        let vector = |f: fn(f32) -> f32| device.load_vector(&angles.iter().map(|a| f(*a)).collect::<Vec<f32>>()).unwrap();
        let rope = RopeTable { cos: vector(f32::cos), sin: vector(f32::sin), rotary_dim, style: self.rope.1 };
        let norm = |seed| self.norm.then(|| device.load_vector(&noise(seed, head_dim)).unwrap());
        let (q_norm, k_norm) = (norm(8), norm(9));
        let (q_norm, k_norm) = (q_norm.as_ref(), k_norm.as_ref());
        let params = RopeKvParams { num_heads, num_kv_heads, head_dim, q_norm, k_norm, eps: 1e-6, rope: &rope };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention = AttentionParams { num_heads, num_kv_heads, head_dim, scale, window: self.window, soft_cap: self.soft_cap };
        let cols = (num_heads + 2 * num_kv_heads) * head_dim;

        let slots = num_blocks * self.block_size;
        let poison = inputs.paged_step(&[(0, slots, (0..num_blocks as u32).collect())], self.block_size);
        let zero_positions = vec![0; slots];
        let mut poison = poison;
        device.write_ints(&mut poison.positions, &zero_positions).unwrap();
        let mut nan = inputs.filled(f32::NAN, slots, cols);
        device.rope_kv_store(&mut nan, &mut kv, &poison, &params).unwrap();

        let before: Vec<_> = self.seqs.iter().map(|s| (0, s.0)).collect();
        let mut outputs = Vec::new();
        for (seed, lens) in [(30, before), (31, self.seqs.clone())] {
            let step = self.step(inputs, &lens);
            if step.num_tokens == 0 {
                continue;
            }
            let mut qkv = inputs.tensor(seed, step.num_tokens, cols);
            device.rope_kv_store(&mut qkv, &mut kv, &step, &params).unwrap();
            let mut out = device.alloc(step.num_tokens, num_heads * head_dim, device.activation_dtype()).unwrap();
            device.attention(&mut out, &qkv, &kv, &step, &attention).unwrap();
            outputs.extend([qkv, out]);
        }
        for single in 0..SINGLE_STEPS {
            let lens: Vec<_> = self.seqs.iter().map(|s| (s.0 + s.1 + single, 1)).collect();
            let step = self.step(inputs, &lens);
            let mut qkv = inputs.tensor(32 + single as u64, step.num_tokens, cols);
            let mut out = device.alloc(step.num_tokens, num_heads * head_dim, device.activation_dtype()).unwrap();
            device.rope_attention(&mut out, &mut qkv, &mut kv, &step, &params, &attention).unwrap();
            outputs.push(out);
        }
        outputs
    }
}

/// Steps of one token a sequence that `Attend` ends with; each reads what the one before stored.
const SINGLE_STEPS: usize = 2;

fn attend(heads: (usize, usize, usize), seqs: &[(usize, usize)]) -> Attend {
    let rope = (heads.2, RopeStyle::HalfSplit);
    Attend { heads, block_size: 16, seqs: seqs.to_vec(), window: None, soft_cap: None, norm: false, rope, dtype: DType::BF16 }
}

fn check_attend(pair: &Pair, case: &Attend) {
    let Attend { heads, block_size, seqs, window, soft_cap, norm, rope, dtype } = case;
    pair.check(
        &format!("attention {dtype:?} {heads:?} blocks {block_size} {seqs:?} window {window:?} cap {soft_cap:?} norm {norm} {rope:?}"),
        case,
    );
}

#[test]
fn attention_agrees_for_every_head_size() {
    let Some(pair) = Pair::new() else { return };
    for heads in [(2, 1, 16), (4, 2, 32), (14, 2, 64), (4, 4, 80), (3, 1, 96), (28, 4, 128), (4, 1, 256), (24, 2, 64)] {
        check_attend(&pair, &attend(heads, &[(0, 1), (1, 1), (14, 1), (15, 1), (16, 1), (62, 1), (63, 1), (64, 1)]));
        check_attend(&pair, &attend(heads, &[(0, 2), (0, 65), (37, 1), (100, 30)]));
    }
}

#[test]
fn attention_over_a_cache_of_codes_agrees() {
    let Some(pair) = Pair::new() else { return };
    for heads in [(2, 1, 16), (4, 2, 32), (14, 2, 64), (4, 4, 80), (3, 1, 96), (28, 4, 128), (4, 1, 256)] {
        for block_size in [16, 4] {
            let codes = |seqs: &[(usize, usize)]| Attend { block_size, dtype: DType::E4M3, ..attend(heads, seqs) };
            check_attend(&pair, &codes(&[(0, 1), (1, 1), (15, 1), (16, 1), (63, 1), (130, 1)]));
            check_attend(&pair, &codes(&[(0, 2), (0, 65), (37, 1), (100, 30)]));
        }
    }
    let long =
        Attend { dtype: DType::E4M3, window: Some(200), soft_cap: Some(8.0), norm: true, ..attend((7, 1, 128), &[(700, 33), (900, 1)]) };
    check_attend(&pair, &long);
    check_attend(&pair, &Attend { window: None, soft_cap: None, ..long });
}

/// Heads that have a kernel of warpgroups on Hopper: several items a sequence and a CTA, windows, capped scores, blocks of every size.
#[test]
fn prompts_over_a_cache_of_codes_agree() {
    let Some(pair) = Pair::new() else { return };
    let codes = |heads, seqs: &[(usize, usize)]| Attend { dtype: DType::E4M3, ..attend(heads, seqs) };
    let chunks = [(0, 2), (0, 127), (1, 128), (129, 129), (600, 150), (40, 1), (13, 300)];
    for heads in [(2, 2, 64), (28, 4, 128), (8, 1, 128), (4, 2, 256)] {
        let base = codes(heads, &chunks);
        check_attend(&pair, &base);
        check_attend(&pair, &Attend { soft_cap: Some(30.0), norm: true, ..base.clone() });
        for window in [1, 24, 64, 100, 290] {
            check_attend(&pair, &Attend { window: Some(window), ..base.clone() });
        }
        for block_size in [1, 8, 32, 128, 256] {
            check_attend(&pair, &Attend { block_size, seqs: vec![(0, 40), (90, 7), (23, 1), (280, 90)], ..base.clone() });
        }
        let many: Vec<_> = (0..70).map(|i| (i * 7 % 50, 1 + i % 5)).collect();
        check_attend(&pair, &codes(heads, &many));
    }
}

#[test]
fn attention_agrees_over_long_contexts() {
    let Some(pair) = Pair::new() else { return };
    for heads in [(8, 2, 64), (7, 1, 128)] {
        check_attend(&pair, &attend(heads, &[(254, 1), (255, 1), (256, 1), (511, 1), (1300, 1)]));
        check_attend(&pair, &attend(heads, &[(700, 333), (900, 1)]));
    }
}

#[test]
fn attention_of_chunks_agrees_for_every_group() {
    let Some(pair) = Pair::new() else { return };
    for heads in [(2, 2, 64), (4, 2, 128), (14, 2, 64), (7, 1, 128), (8, 1, 64), (16, 2, 128)] {
        check_attend(&pair, &attend(heads, &[(0, 2), (0, 127), (1, 128), (129, 129), (600, 150), (40, 1), (13, 300)]));
    }
    let many: Vec<_> = (0..70).map(|i| (i * 7 % 50, 1 + i % 5)).collect();
    check_attend(&pair, &attend((4, 1, 128), &many));
}

#[test]
fn attention_variants_agree() {
    let Some(pair) = Pair::new() else { return };
    let seqs = [(0, 40), (300, 1), (90, 7), (23, 1), (24, 1), (280, 90)];
    for heads in [(4, 2, 64), (4, 1, 128), (2, 1, 96)] {
        let base = attend(heads, &seqs);
        for window in [1, 24, 63, 64, 100, 128, 290] {
            check_attend(&pair, &Attend { window: Some(window), ..base.clone() });
        }
        check_attend(&pair, &Attend { soft_cap: Some(1.5), window: Some(24), ..base.clone() });
        check_attend(&pair, &Attend { soft_cap: Some(30.0), ..base.clone() });
        for block_size in [1, 2, 4, 8, 32, 128, 256] {
            check_attend(&pair, &Attend { block_size, norm: true, ..base.clone() });
        }
    }
    let base = attend((4, 2, 64), &seqs);
    for style in [RopeStyle::HalfSplit, RopeStyle::Interleaved] {
        for rotary_dim in [16, 48, 64] {
            check_attend(&pair, &Attend { rope: (rotary_dim, style), norm: rotary_dim == 48, ..base.clone() });
        }
        // Halves that are no whole vectors.
        check_attend(&pair, &Attend { rope: (20, style), norm: true, ..attend((4, 2, 80), &seqs) });
    }
}

/// Single tokens of sequences that begin with the same blocks, once as one group and once as two that share less.
struct SharedPrefix {
    heads: (usize, usize, usize),
    /// Keys that all share, and keys of each sequence after them.
    shared: usize,
    own: Vec<usize>,
    /// Whether q, k and v still have to be rotated and stored.
    rotate: bool,
    /// Of the cache.
    dtype: DType,
}

impl SharedPrefix {
    fn blocks(&self, seq: usize, len: usize) -> Vec<u32> {
        let own = |i: usize| 1 + self.shared / 16 + seq + (i - self.shared / 16) * self.own.len();
        (0..len.div_ceil(16)).map(|i| if i < self.shared / 16 { 1 + i } else { own(i) } as u32).collect()
    }

    /// Sequence 1 belongs to no group.
    fn group<D: Device>(&self, device: &D, step: &mut StepTensors<D>, two: bool) {
        let members: Vec<i32> = (0..self.own.len() as i32).rev().filter(|&seq| seq != 1).collect();
        let (count, shared) = (members.len() as i32, self.shared as i32);
        let (first, less) = (if two { count / 2 } else { count }, shared - 32);
        let mut lens = vec![0; self.own.len()];
        members.iter().enumerate().for_each(|(i, &seq)| lens[seq as usize] = if (i as i32) < first { shared } else { less });
        let groups = [i32::from(two) + 1, count, shared, 0, first, shared, first, count - first, less];
        step.num_prefix_groups = groups[0] as usize;
        device.write_ints(&mut step.prefix_groups, &groups).unwrap();
        device.write_ints(&mut step.prefix_members, &members).unwrap();
        device.write_ints(&mut step.prefix_lens, &lens).unwrap();
    }
}

impl Case for SharedPrefix {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let (num_heads, num_kv_heads, head_dim) = self.heads;
        let longest = self.shared + self.own.iter().max().unwrap();
        let num_blocks = 2 + self.shared / 16 + longest.div_ceil(16) * self.own.len();
        let mut kv = device.alloc_kv(KvShape { num_blocks, block_size: 16, num_kv_heads, head_dim, dtype: self.dtype }).unwrap();
        let scales = |first: f32| (0..num_kv_heads).map(|head| first * (1.0 + head as f32)).collect();
        device.set_kv_scales(&mut kv, &KvScales { k: scales(0.01), v: scales(0.003) }).unwrap();
        let angles: Vec<f32> = (0..(longest + 1) * head_dim / 2).map(|i| (i as f32 * 0.37) % 6.0).collect();
        let vector = |f: fn(f32) -> f32| device.load_vector(&angles.iter().map(|a| f(*a)).collect::<Vec<f32>>()).unwrap();
        let rope = RopeTable { cos: vector(f32::cos), sin: vector(f32::sin), rotary_dim: head_dim, style: RopeStyle::HalfSplit };
        let params = RopeKvParams { num_heads, num_kv_heads, head_dim, q_norm: None, k_norm: None, eps: 1e-6, rope: &rope };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention = AttentionParams { num_heads, num_kv_heads, head_dim, scale, window: None, soft_cap: None };
        let cols = (num_heads + 2 * num_kv_heads) * head_dim;
        let tokens = |lens: &[(usize, usize)]| -> Vec<_> {
            lens.iter().enumerate().map(|(seq, &(start, len))| (start, len, self.blocks(seq, start + len))).collect()
        };
        let mut before: Vec<_> = self.own.iter().map(|own| (self.shared, own - 1)).collect();
        before[0] = (0, self.shared + self.own[0] - 1);
        let step = inputs.paged_step(&tokens(&before), 16);
        let mut qkv = inputs.tensor(40, step.num_tokens, cols);
        device.rope_kv_store(&mut qkv, &mut kv, &step, &params).unwrap();
        let last: Vec<_> = self.own.iter().map(|own| (self.shared + own - 1, 1)).collect();
        let mut outputs = Vec::new();
        for two in [false, true] {
            let mut step = inputs.paged_step(&tokens(&last), 16);
            self.group(device, &mut step, two);
            let mut qkv = inputs.tensor(41, step.num_tokens, cols);
            let mut out = device.alloc(step.num_tokens, num_heads * head_dim, device.activation_dtype()).unwrap();
            if self.rotate {
                device.rope_attention(&mut out, &mut qkv, &mut kv, &step, &params, &attention).unwrap();
            } else {
                device.rope_kv_store(&mut qkv, &mut kv, &step, &params).unwrap();
                device.attention(&mut out, &qkv, &kv, &step, &attention).unwrap();
            }
            outputs.push(out);
        }
        outputs
    }
}

/// Each kernel once: single tokens, pieces of a context, chunks, shared beginnings; heads that tensor copies fetch and others.
pub fn check_smallest(pair: &Pair) {
    for heads in [(2, 1, 64), (2, 1, 128), (2, 1, 80)] {
        check_attend(pair, &attend(heads, &[(0, 1), (17, 1)]));
        check_attend(pair, &Attend { norm: true, window: Some(24), soft_cap: Some(5.0), ..attend(heads, &[(0, 2), (40, 20), (30, 1)]) });
    }
    let quarter = (16, RopeStyle::Interleaved);
    check_attend(pair, &Attend { rope: quarter, ..attend((2, 1, 64), &[(300, 1), (3, 5)]) });
    check_attend(pair, &Attend { rope: (20, RopeStyle::HalfSplit), ..attend((2, 1, 80), &[(3, 1), (3, 5)]) });
    for (rotate, dtype) in [(false, DType::BF16), (true, DType::BF16), (true, DType::E4M3)] {
        pair.check("shared prefix", &SharedPrefix { heads: (4, 2, 64), shared: 64, own: vec![1, 20, 3], rotate, dtype });
    }
    check_attend(pair, &Attend { dtype: DType::E4M3, ..attend((2, 1, 64), &[(0, 2), (40, 20), (30, 1)]) });
}

#[test]
fn attention_over_shared_prefixes_agrees() {
    let Some(pair) = Pair::new() else { return };
    let own = |seqs: usize| (0..seqs).map(|i| 1 + i * 37 % 300).collect::<Vec<_>>();
    for heads in [(28, 4, 128), (14, 2, 64), (4, 1, 256), (6, 2, 32)] {
        for (shared, seqs) in [(64, 9), (1056, 20), (2048, 3)] {
            for (rotate, dtype) in [(false, DType::BF16), (true, DType::BF16), (false, DType::E4M3), (true, DType::E4M3)] {
                let case = SharedPrefix { heads, shared, own: own(seqs), rotate, dtype };
                pair.check(&format!("shared prefix {heads:?} of {shared}, {seqs} sequences, rotate {rotate}, {dtype:?}"), &case);
            }
        }
    }
}
