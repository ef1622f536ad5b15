//! Speed of the CPU device: every kernel per shape and format against the memory's read bandwidth, then whole steps of a 135M model's shape.
//!
//! `cargo run --release --example cpu_kernels -- [threads] [portable|avx2|avx512] [section ...]`
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use pagoda_engine::device::cpu::simd::SimdLevel;
use pagoda_engine::device::cpu::{CpuDevice, CpuKv};
use pagoda_engine::device::{
    AttentionParams, DType, Device, HostMatrix, HostWeight, KvShape, Linear, MatrixLoad, MatrixUse, RopeKvParams, RopeStyle, RopeTable,
    RowGather, StepTensors, Tensor,
};
use pagoda_engine::models::config::Activation;
use pagoda_engine::weights::format::WeightFormat;
use pagoda_engine::weights::mapped::MappedBytes;
use pagoda_engine::weights::quant::LoadFormat;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads = args.first().map_or(2, |a| a.parse().unwrap());
    let level = match args.get(1).map(String::as_str) {
        Some("portable") => SimdLevel::Portable,
        Some("avx2") => SimdLevel::Avx2,
        Some("avx512") => SimdLevel::Avx512,
        _ => SimdLevel::best(),
    };
    let wanted = |section: &str| args.len() < 3 || args[2..].iter().any(|a| a == section);
    let device = CpuDevice::with_level(Some(threads), level).unwrap();
    println!("{} with {threads} threads", device.name());
    let bandwidth = if wanted("matvec") || wanted("codes") { read_bandwidth(threads) } else { f64::NAN };
    if wanted("matvec") {
        println!("memory read: {bandwidth:.1} GB/s");
        for (n, k) in [(1536, 512), (576, 1536), (32768, 1024)] {
            WeightFormat::ALL.iter().for_each(|format| linear(&device, *format, n, k, 1, bandwidth));
        }
    }
    if wanted("matmul") {
        for tokens in [2, 4, 16, 512] {
            [WeightFormat::F32, WeightFormat::BF16, WeightFormat::Q4_1, WeightFormat::Q6K]
                .iter()
                .for_each(|format| linear(&device, *format, 1536, 512, tokens, bandwidth));
        }
    }
    if wanted("codes") {
        for (n, k) in [(1536, 512), (576, 1536), (32768, 1024)] {
            for format in [LoadFormat::Nf4, LoadFormat::Fp4, LoadFormat::Fp8, LoadFormat::Int8] {
                [1, 16].iter().for_each(|tokens| codes(&device, format, n, k, *tokens, bandwidth));
            }
        }
    }
    if wanted("attention") {
        for dtype in [DType::F32, DType::F16] {
            [(1, 128), (1, 1024), (1, 8192), (512, 512), (512, 4096)].iter().for_each(|(q, c)| attention(&device, *q, *c, dtype));
        }
    }
    if wanted("model") {
        let mut model = Model::new(&device, 1024);
        for (runs, tokens, context) in [(100, 1, 128), (40, 1, 1024), (3, 512, 512)] {
            let cpu = cpu_seconds();
            let rate = tokens as f64 / best(runs, || model.step(&device, tokens, context));
            let busy = (cpu_seconds() - cpu) / ((runs + 1) * tokens) as f64;
            println!("model, {tokens} of {context}: {rate:.1} tok/s, {:.2} ms a token on the calling thread", busy * 1e3);
        }
    }
}

/// Seconds of the fastest of `runs` calls after one that is not counted.
fn best(runs: usize, mut body: impl FnMut()) -> f64 {
    body();
    let time = |body: &mut dyn FnMut()| {
        let start = Instant::now();
        body();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(|_| time(&mut body)).fold(f64::INFINITY, f64::min)
}

/// Seconds that the calling thread has run: what a busy machine does not distort. 0 where the system does not say.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn read_bandwidth(threads: usize) -> f64 {
    let data = vec![1u64; 64 << 20];
    let seconds = best(5, || {
        std::thread::scope(|scope| {
            for part in data.chunks(data.len() / threads) {
                scope.spawn(move || std::hint::black_box(part.iter().fold(0u64, |sum, x| sum ^ x)));
            }
        });
    });
    (data.len() * 8) as f64 / seconds / 1e9
}

/// Random codes with scales of a usual size, so that no denormals slow the arithmetic.
fn weight(format: WeightFormat, n: usize, k: usize) -> HostWeight {
    let (_, block) = format.block();
    let mut state = 1u64;
    let mut bytes: Vec<u8> = Vec::with_capacity(n * format.row_bytes(k));
    while bytes.len() < n * format.row_bytes(k) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(n * format.row_bytes(k));
    let scale_at: &[usize] = match format {
        WeightFormat::F32 => &[2],
        WeightFormat::F16 | WeightFormat::BF16 | WeightFormat::Q4_0 | WeightFormat::Q5_0 | WeightFormat::Q8_0 => &[0],
        WeightFormat::Q6K => &[208],
        _ => &[0, 2],
    };
    let scale = if matches!(format, WeightFormat::F32 | WeightFormat::BF16) { 0x3c23u16 } else { 0x2111 };
    for block in bytes.chunks_exact_mut(block) {
        scale_at.iter().for_each(|at| block[*at..*at + 2].copy_from_slice(&scale.to_le_bytes()));
    }
    HostWeight { name: "bench".into(), format, n, k, bytes: MappedBytes::from_slice(&bytes) }
}

fn layer(device: &CpuDevice, format: WeightFormat, ns: &[usize], k: usize) -> Linear<CpuDevice> {
    let parts = ns.iter().map(|n| device.load_weight(weight(format, *n, k)).unwrap()).collect();
    Linear { parts, bias: None, n: ns.iter().sum(), k }
}

/// A layer whose dense weights were quantised as at load.
fn codes(device: &CpuDevice, format: LoadFormat, n: usize, k: usize, tokens: usize, bandwidth: f64) {
    let HostMatrix::Coded(matrix) = format.convert(HostMatrix::Rows(weight(WeightFormat::BF16, n, k))).expect("finite values") else {
        panic!("{format:?}")
    };
    let bytes = matrix.bytes() as f64;
    let layer = Linear {
        parts: vec![device.load_matrix(HostMatrix::Coded(matrix), MatrixLoad { usage: MatrixUse::Projection, quantize: None }).unwrap()],
        bias: None,
        n,
        k,
    };
    let (x, mut out) = (tensor(device, tokens, k), tensor(device, tokens, n));
    let runs = (1usize << 31).div_ceil(n * k * tokens).clamp(3, 400);
    let seconds = best(runs, || device.linear(&mut out, &x, &layer).unwrap());
    let (gb, gflop) = (bytes / seconds / 1e9, 2.0 * (n * k * tokens) as f64 / seconds / 1e9);
    let share = if tokens == 1 { format!("{:4.0} % of memory", 100.0 * gb / bandwidth) } else { String::new() };
    println!("codes {format:?} [{n}, {k}] x {tokens}: {:.1} us {gb:.1} GB/s {gflop:.1} GFLOP/s {share}", seconds * 1e6);
}

fn tensor(device: &CpuDevice, rows: usize, cols: usize) -> Tensor<CpuDevice> {
    let mut tensor = device.alloc(rows, cols, DType::F32).unwrap();
    tensor.set_rows(rows);
    tensor
}

fn linear(device: &CpuDevice, format: WeightFormat, n: usize, k: usize, tokens: usize, bandwidth: f64) {
    let layer = layer(device, format, &[n], k);
    let (x, mut out) = (tensor(device, tokens, k), tensor(device, tokens, n));
    let runs = (1usize << 31).div_ceil(n * k * tokens).clamp(3, 400);
    let seconds = best(runs, || device.linear(&mut out, &x, &layer).unwrap());
    let (bytes, flops) = ((n * format.row_bytes(k)) as f64, 2.0 * (n * k * tokens) as f64);
    let (gb, gflop) = (bytes / seconds / 1e9, flops / seconds / 1e9);
    let share = if tokens == 1 { format!("{:4.0} % of memory", 100.0 * gb / bandwidth) } else { String::new() };
    println!("linear {format:?} [{n}, {k}] x {tokens}: {:.1} us {gb:.1} GB/s {gflop:.1} GFLOP/s {share}", seconds * 1e6);
}

const BLOCK: usize = 16;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;

/// The last `tokens` tokens of one sequence of `context`.
fn step(tokens: usize, context: usize) -> StepTensors<CpuDevice> {
    let first = context - tokens;
    let blocks = context.div_ceil(BLOCK);
    StepTensors {
        num_tokens: tokens,
        num_seqs: 1,
        max_query_len: tokens,
        max_context_len: context,
        token_ids: (0..tokens as i32).collect(),
        token_source: vec![-1; tokens],
        positions: (first as i32..context as i32).collect(),
        slot_mapping: (first as i32..context as i32).collect(),
        cu_seqlens_q: vec![0, tokens as i32],
        context_lens: vec![context as i32],
        block_tables: (0..blocks as i32).collect(),
        max_blocks_per_seq: blocks,
        logit_rows: vec![tokens as i32 - 1],
        first_logit_row: 0,
        num_logit_rows: 1,
        gather: RowGather::Head,
        num_prefix_groups: 0,
        prefix_groups: Vec::new(),
        prefix_members: Vec::new(),
        prefix_lens: Vec::new(),
    }
}

fn kv(device: &CpuDevice, context: usize, dtype: DType) -> CpuKv {
    let shape = KvShape { num_blocks: context.div_ceil(BLOCK), block_size: BLOCK, num_kv_heads: KV_HEADS, head_dim: DIM, dtype };
    device.alloc_kv(shape).unwrap()
}

fn attention_params() -> AttentionParams {
    AttentionParams { num_heads: HEADS, num_kv_heads: KV_HEADS, head_dim: DIM, scale: 0.125, window: None, soft_cap: None }
}

fn attention(device: &CpuDevice, tokens: usize, context: usize, dtype: DType) {
    let cache = kv(device, context, dtype);
    let qkv = tensor(device, tokens, (HEADS + 2 * KV_HEADS) * DIM);
    let mut out = tensor(device, tokens, HEADS * DIM);
    let step = step(tokens, context);
    let seconds = best(20, || device.attention(&mut out, &qkv, &cache, &step, &attention_params()).unwrap());
    let pairs = (context * tokens - tokens * (tokens - 1) / 2) as f64;
    let bytes = (context * KV_HEADS * DIM * 2 * dtype.size()) as f64;
    let gflop = pairs * (HEADS * DIM * 4) as f64 / seconds / 1e9;
    println!("attention {dtype:?} {tokens} of {context}: {:.1} us {:.1} GB/s {gflop:.1} GFLOP/s", seconds * 1e6, bytes / seconds / 1e9);
}

struct Layer {
    qkv: Linear<CpuDevice>,
    o: Linear<CpuDevice>,
    gate_up: Linear<CpuDevice>,
    down: Linear<CpuDevice>,
    kv: CpuKv,
}

/// The shape of SmolLM2-135M in Q4_1 with a Q8_0 embedding; every layer has its own bytes.
struct Model {
    layers: Vec<Layer>,
    head: Linear<CpuDevice>,
    rope: RopeTable<CpuDevice>,
    norm: <CpuDevice as Device>::Vector,
    tensors: [Tensor<CpuDevice>; 8],
}

impl Model {
    fn new(device: &CpuDevice, context: usize) -> Model {
        let format = WeightFormat::Q4_1;
        let layers = (0..30).map(|_| Layer {
            qkv: layer(device, format, &[576, 192, 192], 576),
            o: layer(device, format, &[576], 576),
            gate_up: layer(device, format, &[1536, 1536], 576),
            down: layer(device, format, &[576], 1536),
            kv: kv(device, context, DType::F32),
        });
        Model {
            layers: layers.collect(),
            head: layer(device, WeightFormat::Q8_0, &[49152], 576),
            rope: RopeTable {
                cos: device.load_vector(&vec![1.0; context * 32]).unwrap(),
                sin: device.load_vector(&vec![0.0; context * 32]).unwrap(),
                rotary_dim: DIM,
                style: RopeStyle::Interleaved,
            },
            norm: device.load_vector(&[1.0; 576]).unwrap(),
            tensors: [576, 576, 960, 576, 3072, 1536, 576, 49152].map(|cols| tensor(device, if cols == 49152 { 1 } else { 512 }, cols)),
        }
    }

    fn step(&mut self, device: &CpuDevice, tokens: usize, context: usize) {
        let step = step(tokens, context);
        let rope = &self.rope;
        let params = RopeKvParams { num_heads: HEADS, num_kv_heads: KV_HEADS, head_dim: DIM, q_norm: None, k_norm: None, eps: 1e-5, rope };
        let [residual, x, qkv, attended, gate_up, activated, last, logits] = &mut self.tensors;
        device.embedding(x, &self.head.parts[0], &step, 1.0).unwrap();
        device.rms_norm(residual, x, &self.norm, 1e-5).unwrap();
        for layer in &mut self.layers {
            device.linear(qkv, x, &layer.qkv).unwrap();
            device.rope_kv_store(qkv, &mut layer.kv, &step, &params).unwrap();
            device.attention(attended, qkv, &layer.kv, &step, &attention_params()).unwrap();
            device.linear(last, attended, &layer.o).unwrap();
            device.add_rms_norm(x, residual, last, &self.norm, 1e-5).unwrap();
            device.linear(gate_up, x, &layer.gate_up).unwrap();
            device.gated_activation(activated, gate_up, Activation::Silu).unwrap();
            device.linear(last, activated, &layer.down).unwrap();
            device.add_rms_norm(x, residual, last, &self.norm, 1e-5).unwrap();
        }
        device.gather_rows(last, x, &step).unwrap();
        device.linear(logits, last, &self.head).unwrap();
    }
}
