//! Skinny products against an f64 reference on the host. Needs a GPU and a build with nvcc; says so and passes where one is missing.
#![allow(unsafe_code, clippy::print_stderr)]

use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use half::bf16;
use pagoda_kernels::heuristics::{GpuClass, SkinnyKernel, SkinnyPlan, SkinnyShape, SumOrder, skinny_plan};
use pagoda_kernels::ops::gemm::{Epilogue, SkinnyGemmParams, Start, skinny_gemm};
use pagoda_kernels::ops::{DType, DeviceBytes, Stream};

const MAX_TOKENS: usize = 64;
/// Columns behind every row of the output, which nobody may write.
const GAP: usize = 4;
const POISON: u8 = 0xa5;

/// A stream on the first GPU and its class, or None with the reason on stderr.
fn gpu() -> Option<(Arc<CudaStream>, GpuClass)> {
    let gpus = pagoda_kernels::probe().expect("a driver that is there works");
    let Some(first) = gpus.first().filter(|_| pagoda_kernels::available()) else {
        eprintln!("SKIPPED: {} GPUs, kernels compiled: {}", gpus.len(), pagoda_kernels::available());
        return None;
    };
    let class = GpuClass { num_sms: first.num_sms, compute_capability: first.compute_capability };
    let context = CudaContext::new(0).expect("context on GPU 0");
    Some((context.new_stream().expect("stream"), class))
}

/// SplitMix64 in [-1, 1), as bf16.
fn noise(seed: u64, len: usize) -> Vec<bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| bf16::from_f64(next())).collect()
}

fn bytes<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> DeviceBytes {
    let (address, _sync) = slice.device_ptr(stream);
    // SAFETY: the tests keep every slice until they have read the results back, and use one stream.
    unsafe { DeviceBytes::new(address, slice.len() * size_of::<T>()) }
}

fn raw(stream: &CudaStream) -> Stream {
    // SAFETY: cudarc keeps the stream alive, and made its context current on this thread.
    unsafe { Stream::from_raw(stream.cu_stream().cast()) }
}

/// How one product is made.
#[derive(Clone, Copy, Debug)]
struct Case {
    num_tokens: usize,
    epilogue: Epilogue,
    out_dtype: DType,
    extras: Extras,
    plan: SkinnyPlan,
    start: Start,
}

/// Whether bias and residual are added; the residual is the output.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Extras {
    None,
    BiasAndResidual,
}

/// Weights and 64 tokens of one shape on host and device; products take the first tokens.
struct Problem {
    n: usize,
    k: usize,
    /// `[64, n]`
    sums: Vec<f64>,
    bias: Vec<bf16>,
    /// `[64, n + GAP]`
    residual: Vec<bf16>,
    x_gpu: CudaSlice<bf16>,
    w_gpu: CudaSlice<bf16>,
    bias_gpu: CudaSlice<f32>,
    stream: Arc<CudaStream>,
}

impl Problem {
    fn new(stream: &Arc<CudaStream>, n: usize, k: usize) -> Problem {
        let (x, w, bias) = (noise(1, MAX_TOKENS * k), noise(2, n * k), noise(3, n));
        let wide = |values: &[bf16]| values.iter().map(|v| v.to_f32()).collect::<Vec<f32>>();
        let (x_wide, w_wide, bias_wide) = (wide(&x), wide(&w), wide(&bias));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>(); // bf16 products are exact in f32
        let sums = x_wide.chunks(k).flat_map(|x| w_wide.chunks(k).map(move |w| dot(x, w))).collect();
        Problem {
            n,
            k,
            sums,
            residual: noise(4, MAX_TOKENS * (n + GAP)),
            x_gpu: stream.clone_htod(&x).expect("x"),
            w_gpu: stream.clone_htod(&w).expect("w"),
            bias_gpu: stream.clone_htod(&bias_wide).expect("bias"),
            bias,
            stream: stream.clone(),
        }
    }

    fn num_cols(&self, case: &Case) -> usize {
        if case.epilogue == Epilogue::Plain { self.n } else { self.n / 2 }
    }

    fn params(&self, case: &Case, out: DeviceBytes) -> SkinnyGemmParams {
        let extras = case.extras == Extras::BiasAndResidual;
        SkinnyGemmParams {
            out,
            x: bytes(&self.x_gpu, &self.stream),
            w: bytes(&self.w_gpu, &self.stream),
            bias: extras.then(|| bytes(&self.bias_gpu, &self.stream)),
            residual: extras.then_some(out),
            shape: SkinnyShape { num_tokens: case.num_tokens, n: self.n, k: self.k },
            ld_out: self.num_cols(case) + GAP,
            out_dtype: case.out_dtype,
            epilogue: case.epilogue,
            plan: case.plan,
            start: case.start,
            groups: None,
        }
    }

    /// Bytes of the output before the product: the residual where it is added, else poison; always poison in the gaps.
    fn initial(&self, case: &Case) -> Vec<u8> {
        let (size, ld) = (case.out_dtype.size(), self.num_cols(case) + GAP);
        let mut out = vec![POISON; case.num_tokens * ld * size];
        if case.extras == Extras::BiasAndResidual {
            for (i, v) in out.chunks_mut(size).enumerate().filter(|(i, _)| i % ld < ld - GAP) {
                match case.out_dtype {
                    DType::F32 => v.copy_from_slice(&self.residual[i].to_f32().to_le_bytes()),
                    _ => v.copy_from_slice(&self.residual[i].to_le_bytes()),
                }
            }
        }
        out
    }

    /// Output bytes, `[num_tokens, num_cols + GAP]`.
    fn run(&self, case: &Case) -> Vec<u8> {
        let out = self.stream.clone_htod(&self.initial(case)).expect("out");
        skinny_gemm(&self.params(case, bytes(&out, &self.stream)), raw(&self.stream)).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        self.stream.clone_dtoh(&out).unwrap_or_else(|e| panic!("{} x {} {case:?}: {e}", self.n, self.k))
    }

    /// Expected value of one output, and how far it may be off.
    fn expected(&self, case: &Case, token: usize, col: usize) -> (f64, f64) {
        let extras = case.extras == Extras::BiasAndResidual;
        let sum = |row: usize| self.sums[token * self.n + row] + if extras { self.bias[row].to_f64() } else { 0.0 };
        let sum_error = 1e-6 * self.k as f64;
        let (mut value, mut error) = (sum(col), sum_error);
        if case.epilogue == Epilogue::SiluMul {
            let up = sum(self.n / 2 + col);
            error = sum_error * (1.0 + up.abs() + value.abs());
            value = value / (1.0 + (-value).exp()) * up;
        }
        if extras {
            value += self.residual[token * (self.num_cols(case) + GAP) + col].to_f64();
        }
        let ulp = if case.out_dtype == DType::F32 { 1e-6 } else { 1.0 / 256.0 };
        (value, error + ulp * value.abs())
    }

    fn check(&self, case: &Case) {
        let (size, ld) = (case.out_dtype.size(), self.num_cols(case) + GAP);
        let got = self.run(case);
        for (i, bytes) in got.chunks(size).enumerate() {
            let (token, col) = (i / ld, i % ld);
            if col >= ld - GAP {
                assert!(bytes.iter().all(|&b| b == POISON), "{} x {} {case:?}: wrote behind row {token}", self.n, self.k);
                continue;
            }
            let value = match case.out_dtype {
                DType::F32 => f64::from(f32::from_le_bytes(bytes.try_into().expect("4 bytes"))),
                _ => bf16::from_le_bytes(bytes.try_into().expect("2 bytes")).to_f64(),
            };
            let (expected, bound) = self.expected(case, token, col);
            let ok = (value - expected).abs() <= bound;
            assert!(ok, "{} x {} {case:?}: [{token}, {col}] is {value}, expected {expected} +- {bound}", self.n, self.k);
        }
        assert!(got == self.run(case), "{} x {} {case:?}: two runs differ", self.n, self.k);
    }
}

fn ring(split_k: u32, num_stages: u32, max_ctas: u32) -> SkinnyPlan {
    SkinnyPlan { kernel: SkinnyKernel::Sm90, block_n: 64, split_k, num_stages, max_ctas }
}

fn gemv(block_n: u32, max_ctas: u32) -> SkinnyPlan {
    SkinnyPlan { kernel: SkinnyKernel::Gemv, block_n, split_k: 1, num_stages: 2, max_ctas }
}

const SM80: SkinnyPlan = SkinnyPlan { kernel: SkinnyKernel::Sm80, block_n: 16, split_k: 1, num_stages: 2, max_ctas: 1 };

/// Plans of every kernel this GPU has: fewer CTAs than tiles, more ranges of k than boxes, rings longer and shorter than the work.
fn plans(gpu: GpuClass, num_tokens: usize) -> Vec<SkinnyPlan> {
    let mut plans = vec![SM80];
    if num_tokens == 1 {
        plans.extend([gemv(1, 1), gemv(1, 1000), gemv(2, 3)]);
    }
    if gpu.compute_capability.0 >= 9 {
        plans.extend([ring(1, 2, 1), ring(1, 4, 2), ring(2, 2, 1), ring(3, 3, 1), ring(8, 4, 1)]);
    }
    plans
}

/// Each kernel once, for compute-sanitizer (scripts/gpu-table.sh).
#[test]
fn smallest_products_match_the_reference() {
    let Some((stream, gpu)) = gpu() else { return };
    let problem = Problem::new(&stream, 66, 72);
    for num_tokens in [1, 9] {
        for plan in plans(gpu, num_tokens) {
            for epilogue in [Epilogue::Plain, Epilogue::SiluMul] {
                let (out_dtype, extras) = (DType::BF16, Extras::BiasAndResidual);
                problem.check(&Case { num_tokens, epilogue, out_dtype, extras, plan, start: Start::Early });
            }
        }
    }
}

#[test]
fn every_kernel_matches_the_reference() {
    let Some((stream, gpu)) = gpu() else { return };
    // One row and one vector; a tile, a box and their neighbours; a length that is no whole box; several tiles.
    for (n, k) in [(1, 8), (16, 64), (63, 56), (64, 72), (66, 200), (127, 128), (130, 1000), (260, 904)] {
        let problem = Problem::new(&stream, n, k);
        for num_tokens in [1, 2, 7, 8, 9, 16, 17, 33, 64] {
            for plan in plans(gpu, num_tokens) {
                for (out_dtype, extras) in [(DType::F32, Extras::None), (DType::BF16, Extras::BiasAndResidual)] {
                    let plain = Case { num_tokens, epilogue: Epilogue::Plain, out_dtype, extras, plan, start: Start::InOrder };
                    problem.check(&plain);
                    if n % 2 == 0 {
                        problem.check(&Case { epilogue: Epilogue::SiluMul, ..plain });
                    }
                }
            }
        }
    }
}

#[test]
fn the_chosen_plans_match_the_reference() {
    let Some((stream, gpu)) = gpu() else { return };
    // qkv, o, gate and up, down of a 0.5B model; rows beyond one wave of tiles.
    for (n, k) in [(1152, 896), (896, 896), (9728, 896), (896, 4864), (40000, 128)] {
        let problem = Problem::new(&stream, n, k);
        for num_tokens in [1, 8, 16, 64] {
            for order in [SumOrder::Fastest, SumOrder::BatchInvariant] {
                let plan = skinny_plan(SkinnyShape { num_tokens, n, k }, gpu, order).expect("supported");
                let extras = Extras::BiasAndResidual;
                problem.check(&Case { num_tokens, epilogue: Epilogue::Plain, out_dtype: DType::BF16, extras, plan, start: Start::Early });
            }
        }
    }
}

#[test]
fn a_token_alone_equals_the_same_token_among_others() {
    let Some((stream, gpu)) = gpu() else { return };
    for (n, k) in [(66, 200), (1152, 896), (896, 4864), (17000, 512)] {
        let problem = Problem::new(&stream, n, k);
        for epilogue in [Epilogue::Plain, Epilogue::SiluMul] {
            let row = |num_tokens: usize, plan: SkinnyPlan| {
                let case = Case { num_tokens, epilogue, out_dtype: DType::F32, extras: Extras::None, plan, start: Start::InOrder };
                let mut out = problem.run(&case);
                out.truncate(problem.num_cols(&case) * 4);
                out
            };
            let chosen = |num_tokens| skinny_plan(SkinnyShape { num_tokens, n, k }, gpu, SumOrder::BatchInvariant).expect("supported");
            for num_tokens in [2, 8, 9, 17, 33, 64] {
                assert!(row(1, chosen(1)) == row(num_tokens, chosen(num_tokens)), "{n} x {k} {epilogue:?}: 1 and {num_tokens} tokens");
                assert!(row(1, SM80) == row(num_tokens, SM80), "{n} x {k} {epilogue:?}: 1 and {num_tokens} tokens, sm80");
            }
        }
    }
}

/// Three products of which each reads what the one before wrote, as a graph of early starts and one by one.
#[test]
fn early_starts_in_a_graph_change_nothing() {
    let Some((stream, gpu)) = gpu() else { return };
    let (hidden, num_layers) = (1024, 24);
    let w = stream.clone_htod(&noise(5, hidden * hidden)).expect("w");
    for num_tokens in [1, 5, 40] {
        let shape = SkinnyShape { num_tokens, n: hidden, k: hidden };
        let mut plans = vec![SM80, skinny_plan(shape, gpu, SumOrder::Fastest).expect("supported")];
        plans.push(skinny_plan(shape, gpu, SumOrder::BatchInvariant).expect("supported"));
        let x: Vec<bf16> = noise(6, num_tokens * hidden).iter().map(|v| bf16::from_f32(v.to_f32() * 0.01)).collect();
        let run = |start: Start| {
            let buffers = [stream.clone_htod(&x).expect("x"), stream.clone_htod(&x).expect("x")];
            // Asked for before the capture: cudarc may record events when it hands out addresses.
            let layers: Vec<SkinnyGemmParams> = (0..num_layers)
                .map(|layer| SkinnyGemmParams {
                    out: bytes(&buffers[(layer + 1) % 2], &stream),
                    x: bytes(&buffers[layer % 2], &stream),
                    w: bytes(&w, &stream),
                    bias: None,
                    residual: None,
                    shape,
                    ld_out: hidden,
                    out_dtype: DType::BF16,
                    epilogue: Epilogue::Plain,
                    plan: plans[layer % plans.len()],
                    start,
                    groups: None,
                })
                .collect();
            let launch_all = || layers.iter().try_for_each(|params| skinny_gemm(params, raw(&stream)));
            if start == Start::Early {
                stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
                launch_all().expect("launch");
                let graph = stream.end_capture(CUgraphInstantiate_flags(0)).expect("capture").expect("a graph");
                graph.launch().expect("launch");
                stream.synchronize().expect("graph ran");
            } else {
                launch_all().expect("launch");
            }
            stream.clone_dtoh(&buffers[num_layers % 2]).expect("copy back").iter().map(|v| v.to_bits()).collect::<Vec<u16>>()
        };
        let plain = run(Start::InOrder);
        assert!(plain.iter().any(|&bits| bits != 0), "{num_tokens} tokens");
        for _ in 0..20 {
            assert!(run(Start::Early) == plain, "{num_tokens} tokens");
        }
    }
}
