//! Products with 4-bit weights against an f64 reference on the host. Needs a GPU and a build with nvcc; says so and passes where one is missing.
#![allow(unsafe_code, clippy::print_stderr)]

mod w4_tiles;

use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use half::bf16;
use pagoda_kernels::heuristics::{GpuClass, MAX_W4_TOKENS, SumOrder, W4Kernel, W4Plan, W4Shape, w4_plan};
use pagoda_kernels::ops::gemm::{Epilogue, Start};
use pagoda_kernels::ops::w4::{W4Codes, W4Layout, W4Matrix, w4_pack};
use pagoda_kernels::ops::w4_gemm::{W4Gemm, W4Scratch, w4_gemm};
use pagoda_kernels::ops::{DType, DeviceBytes, Stream};

use self::w4_tiles::{NF4, Noise, RandomMatrix, SCALE_FACTOR, WHOLE};

/// Columns behind every row of the output, which nobody may write.
const GAP: usize = 4;
const POISON: u8 = 0xa5;
/// Of plans of Columns here.
const MAX_SPLIT: usize = 8;
const MAX_CTAS: usize = 1000;

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

fn bytes<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> DeviceBytes {
    let (address, _sync) = slice.device_ptr(stream);
    // SAFETY: the tests keep every slice until they have read the results back, and use one stream.
    unsafe { DeviceBytes::new(address, slice.len() * size_of::<T>()) }
}

fn raw(stream: &CudaStream) -> Stream {
    // SAFETY: cudarc keeps the stream alive, and made its context current on this thread.
    unsafe { Stream::from_raw(stream.cu_stream().cast()) }
}

/// The tiles of a matrix, made on the GPU: what products are given is what loading gives them.
fn packed(stream: &Arc<CudaStream>, layout: W4Layout, book: [f32; 16], matrix: &RandomMatrix, expected: &[u8]) -> CudaSlice<u8> {
    let codes = stream.clone_htod(&matrix.packed_codes()).expect("codes");
    let scales: Vec<f32> = matrix.scales.iter().map(|scale| scale.to_f32() * SCALE_FACTOR).collect();
    let scales = stream.clone_htod(&scales).expect("scales");
    let zeros = stream.clone_htod(&matrix.zeros).expect("zeros");
    let tiles = stream.clone_htod(&vec![POISON; layout.bytes()]).expect("tiles");
    let from = W4Codes {
        codes: bytes(&codes, stream),
        first_high: false,
        scales: bytes(&scales, stream),
        zeros: layout.zeros.then(|| (bytes(&zeros, stream), 0)),
    };
    let matrix = W4Matrix { tiles: bytes(&tiles, stream), layout, book, scale_factor: SCALE_FACTOR, short_scales: false };
    w4_pack(&matrix, &from, raw(stream)).expect("pack");
    let got = stream.clone_dtoh(&tiles).expect("tiles");
    let difference = (0..got.len()).find(|&i| got[i] != expected[i]);
    assert_eq!(difference, None, "{layout:?}: first byte of the tiles that pagoda_w4.h draws otherwise");
    tiles
}

/// How one product is made.
#[derive(Clone, Copy, Debug)]
struct Case {
    num_tokens: usize,
    epilogue: Epilogue,
    out_dtype: DType,
    /// Whether bias and residual are added; the residual is the output.
    extras: bool,
    plan: W4Plan,
}

/// Weights and 64 tokens of one shape on host and device; products take the first tokens.
struct Problem {
    layout: W4Layout,
    book: [f32; 16],
    short_scales: bool,
    /// `[64, n]`: sums, and sums of the sizes of what is added.
    sums: Vec<(f64, f64)>,
    bias: Vec<bf16>,
    /// `[64, n + GAP]`
    residual: Vec<bf16>,
    x_gpu: CudaSlice<bf16>,
    tiles_gpu: CudaSlice<u8>,
    bias_gpu: CudaSlice<f32>,
    /// Of slabs; poison and zeros.
    partials_gpu: CudaSlice<u8>,
    counters_gpu: CudaSlice<u8>,
    stream: Arc<CudaStream>,
}

impl Problem {
    fn new(stream: &Arc<CudaStream>, layout: W4Layout, book: [f32; 16]) -> Problem {
        Problem::with_scales(stream, layout, book, false)
    }

    fn with_scales(stream: &Arc<CudaStream>, layout: W4Layout, book: [f32; 16], short_scales: bool) -> Problem {
        let mut noise = Noise(layout.n as u64 * 7 + layout.k as u64);
        let matrix = RandomMatrix::new(&layout, short_scales, &mut noise);
        let (tiles, weights) = matrix.tiles(&layout, &book);
        let tiles_gpu = packed(stream, layout, book, &matrix, &tiles);
        let (x, bias) = (noise.values(MAX_W4_TOKENS * layout.k), noise.values(layout.n));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).fold((0.0, 0.0), |(sum, size), (a, b)| (sum + a * b, size + (a * b).abs()));
        let x_wide: Vec<f64> = x.iter().map(|v| v.to_f64()).collect();
        let sums = x_wide.chunks(layout.k).flat_map(|x| weights.chunks(layout.k).map(move |w| dot(x, w))).collect();
        Problem {
            sums,
            residual: noise.values(MAX_W4_TOKENS * (layout.n + GAP)),
            x_gpu: stream.clone_htod(&x).expect("x"),
            tiles_gpu,
            bias_gpu: stream.clone_htod(&bias.iter().map(|v| v.to_f32()).collect::<Vec<f32>>()).expect("bias"),
            partials_gpu: stream.clone_htod(&vec![POISON; MAX_SPLIT * layout.n.next_multiple_of(16) * 8 * 4]).expect("partials"),
            counters_gpu: stream.clone_htod(&vec![0; 4 * MAX_CTAS]).expect("counters"),
            bias,
            layout,
            book,
            short_scales,
            stream: stream.clone(),
        }
    }

    fn num_cols(&self, case: &Case) -> usize {
        if case.epilogue == Epilogue::Plain { self.layout.n } else { self.layout.n / 2 }
    }

    fn params(&self, case: &Case, out: DeviceBytes) -> W4Gemm {
        W4Gemm {
            out,
            x: bytes(&self.x_gpu, &self.stream),
            w: self.matrix(),
            bias: case.extras.then(|| bytes(&self.bias_gpu, &self.stream)),
            residual: case.extras.then_some(out),
            scratch: W4Scratch { partials: bytes(&self.partials_gpu, &self.stream), counters: bytes(&self.counters_gpu, &self.stream) },
            num_tokens: case.num_tokens,
            ld_out: self.num_cols(case) + GAP,
            out_dtype: case.out_dtype,
            epilogue: case.epilogue,
            plan: case.plan,
            start: Start::InOrder,
        }
    }

    /// Bytes of the output before the product: the residual where it is added, else poison; always poison in the gaps.
    fn initial(&self, case: &Case) -> Vec<u8> {
        let (size, ld) = (case.out_dtype.size(), self.num_cols(case) + GAP);
        let mut out = vec![POISON; case.num_tokens * ld * size];
        if case.extras {
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
        w4_gemm(&self.params(case, bytes(&out, &self.stream)), raw(&self.stream)).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        self.stream.clone_dtoh(&out).unwrap_or_else(|e| panic!("{:?} {case:?}: {e}", self.layout))
    }

    /// Expected value of one output, and how far it may be off.
    fn expected(&self, case: &Case, token: usize, col: usize) -> (f64, f64) {
        // One rounding of the book to bf16 in the unit chosen for it, sums in f32; one more of scaled codes, where Rows scales them.
        let scales_codes = case.plan.kernel == W4Kernel::Rows && self.layout.scales_per_tile() > 1;
        let relative = if self.book == NF4 { 2e-3 } else { 2e-6 } + if scales_codes { 2e-3 } else { 0.0 };
        let sum = |row: usize| {
            let (sum, size) = self.sums[token * self.layout.n + row];
            (sum + if case.extras { self.bias[row].to_f64() } else { 0.0 }, size * relative + 1e-5)
        };
        let (mut value, mut error) = sum(col);
        if case.epilogue == Epilogue::SiluMul {
            let (up, up_error) = sum(self.layout.n / 2 + col);
            error = error * (1.1 * up.abs() + 1.0) + up_error * (value.abs() + 1.0);
            value = value / (1.0 + (-value).exp()) * up;
            error += 1e-5 * value.abs();
        }
        if case.extras {
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
                assert!(bytes.iter().all(|&b| b == POISON), "{:?} {case:?}: wrote behind row {token}", self.layout);
                continue;
            }
            let value = match case.out_dtype {
                DType::F32 => f64::from(f32::from_le_bytes(bytes.try_into().expect("4 bytes"))),
                _ => bf16::from_le_bytes(bytes.try_into().expect("2 bytes")).to_f64(),
            };
            let (expected, bound) = self.expected(case, token, col);
            let ok = (value - expected).abs() <= bound;
            assert!(ok, "{:?} {case:?}: [{token}, {col}] is {value}, expected {expected} +- {bound}", self.layout);
        }
        assert!(got == self.run(case), "{:?} {case:?}: two runs differ", self.layout);
    }

    fn matrix(&self) -> W4Matrix {
        let tiles = bytes(&self.tiles_gpu, &self.stream);
        W4Matrix { tiles, layout: self.layout, book: self.book, scale_factor: SCALE_FACTOR, short_scales: self.short_scales }
    }

    fn fits_columns(&self) -> bool {
        self.matrix().fits_columns()
    }

    fn shape(&self, num_tokens: usize) -> W4Shape {
        W4Shape { num_tokens, n: self.layout.n, k: self.layout.k, tile_bytes: self.layout.tile_bytes(), fits_columns: self.fits_columns() }
    }
}

fn columns(split_k: usize, num_warps: usize, max_ctas: usize) -> W4Plan {
    W4Plan { kernel: W4Kernel::Columns, split_k, num_stages: 2, num_warps, max_ctas }
}

fn rows(split_k: usize, num_stages: usize, num_warps: usize, max_ctas: usize) -> W4Plan {
    W4Plan { kernel: W4Kernel::Rows, split_k, num_stages, num_warps, max_ctas }
}

const SM80: W4Plan = W4Plan { kernel: W4Kernel::Sm80, split_k: 1, num_stages: 2, num_warps: 8, max_ctas: 3 };

/// Plans of every kernel this GPU has: fewer CTAs than tile rows, blocks that walk, ranges of one column, rings longer than the work.
fn plans(gpu: GpuClass, num_tokens: usize, cols: usize, fits_columns: bool) -> Vec<W4Plan> {
    let mut plans = vec![SM80];
    if gpu.compute_capability == (9, 0) {
        if num_tokens <= 8 && fits_columns {
            let row_warps = |split_k: usize| cols.div_ceil(split_k).div_ceil(4);
            plans.extend([columns(1, 14, 1), columns(1, row_warps(1), 2), columns(1, 14, MAX_CTAS)]);
            plans.extend([2, 3, 8].into_iter().filter(|&split_k| split_k <= cols).map(|split_k| columns(split_k, 14, 2 * split_k + 1)));
        }
        plans.extend([rows(1, 4, 4, 1), rows(1, 2, 12, 1000)]);
        let ranges = [(2, rows(2, 2, 8, 2)), (3, rows(3, 2, 4, 6)), (8, rows(8, 2, 12, 8))];
        plans.extend(ranges.into_iter().filter(|(least, _)| cols >= *least).map(|(_, plan)| plan));
    }
    plans
}

#[test]
fn smallest_products_match_the_reference() {
    let Some((stream, gpu)) = gpu() else { return };
    check_plans(&Problem::new(&stream, layout(16, 192, 64, false, true), NF4), gpu, &[1, 9]);
}

fn layout(n: usize, k: usize, group: usize, zeros: bool, interleaved: bool) -> W4Layout {
    W4Layout { n, k, group, zeros, interleaved }
}

#[test]
fn every_kernel_matches_the_reference() {
    let Some((stream, gpu)) = gpu() else { return };
    // A tile and less, one and several columns, rows that end within a tile, groups of every kind, gate and up.
    let layouts = [
        layout(16, 64, 64, false, true),
        layout(7, 128, 128, true, false),
        layout(40, 192, 32, true, false),
        layout(96, 320, 64, true, true),
        layout(200, 576, 16, false, false),
        layout(272, 1024, 32, false, true),
        layout(416, 832, 64, false, true),
        // Ranges of an odd number of columns, with zero points behind which lies nothing; no groups; groups over several tiles.
        layout(48, 448, 128, true, false),
        layout(80, 320, 32, true, false),
        layout(64, 256, 1000, false, false),
        layout(33, 384, 128, false, false),
        layout(48, 704, 16, false, true),
    ];
    for (i, layout) in layouts.into_iter().enumerate() {
        let book = if i % 2 == 0 && !layout.zeros { NF4 } else { WHOLE };
        check_plans(&Problem::new(&stream, layout, book), gpu, &[1, 2, 7, 8, 9, 16, 17, 33, 64]);
        if layout.scales_per_tile() > 1 && !layout.zeros {
            check_plans(&Problem::with_scales(&stream, layout, book, true), gpu, &[1, 9, 16, 17, 33, 64]);
        }
    }
}

fn check_plans(problem: &Problem, gpu: GpuClass, tokens: &[usize]) {
    let layout = problem.layout;
    for &num_tokens in tokens {
        for plan in plans(gpu, num_tokens, layout.k / 64, problem.fits_columns()) {
            for (out_dtype, extras) in [(DType::F32, false), (DType::BF16, true)] {
                let plain = Case { num_tokens, epilogue: Epilogue::Plain, out_dtype, extras, plan };
                problem.check(&plain);
                if layout.interleaved {
                    problem.check(&Case { epilogue: Epilogue::SiluMul, ..plain });
                }
            }
        }
    }
}

#[test]
fn the_chosen_plans_match_the_reference() {
    let Some((stream, gpu)) = gpu() else { return };
    // qkv, o, gate and up, down of a 0.5B model; more rows than multiprocessors times tiles.
    for (n, k, interleaved) in [(1152, 896, false), (896, 896, false), (9728, 896, true), (896, 4864, false), (20016, 128, false)] {
        let problem = Problem::new(&stream, layout(n, k, 64, false, interleaved), NF4);
        let epilogue = if interleaved { Epilogue::SiluMul } else { Epilogue::Plain };
        for num_tokens in [1, 4, 8, 16, 32, 64] {
            for order in [SumOrder::Fastest, SumOrder::BatchInvariant] {
                let plan = w4_plan(problem.shape(num_tokens), gpu, order).expect("supported");
                problem.check(&Case { num_tokens, epilogue, out_dtype: DType::BF16, extras: false, plan });
            }
        }
    }
}

/// One token alone has the same bits as among others.
#[test]
fn a_token_does_not_depend_on_its_batch() {
    let Some((stream, gpu)) = gpu() else { return };
    for (n, k, interleaved, group) in [(1152, 896, false, 64), (9728, 896, true, 128), (896, 4864, false, 32)] {
        let problem = Problem::new(&stream, layout(n, k, group, false, interleaved), NF4);
        let row = |num_tokens: usize, plan: W4Plan| {
            let epilogue = if interleaved { Epilogue::SiluMul } else { Epilogue::Plain };
            let case = Case { num_tokens, epilogue, out_dtype: DType::F32, extras: false, plan };
            let mut out = problem.run(&case);
            out.truncate(problem.num_cols(&case) * 4);
            out
        };
        let chosen = |num_tokens| w4_plan(problem.shape(num_tokens), gpu, SumOrder::BatchInvariant).expect("supported");
        for num_tokens in [2, 8, 9, 17, 33, 64] {
            assert!(row(1, chosen(1)) == row(num_tokens, chosen(num_tokens)), "{n} x {k}: 1 and {num_tokens} tokens");
            assert!(row(1, SM80) == row(num_tokens, SM80), "{n} x {k}: 1 and {num_tokens} tokens, sm80");
        }
    }
}

/// Products of which each reads what the one before wrote, as a graph of early starts and one by one.
#[test]
fn early_starts_in_a_graph_change_nothing() {
    let Some((stream, gpu)) = gpu() else { return };
    let (hidden, num_layers) = (1024, 24);
    let problem = Problem::new(&stream, layout(hidden, hidden, 64, false, false), NF4);
    for num_tokens in [1, 5, 40] {
        let mut plans = vec![SM80, w4_plan(problem.shape(num_tokens), gpu, SumOrder::Fastest).expect("supported")];
        plans.push(w4_plan(problem.shape(num_tokens), gpu, SumOrder::BatchInvariant).expect("supported"));
        let x: Vec<bf16> = Noise(6).values(num_tokens * hidden).iter().map(|v| bf16::from_f32(v.to_f32() * 0.01)).collect();
        let run = |start: Start| {
            let buffers = [stream.clone_htod(&x).expect("x"), stream.clone_htod(&x).expect("x")];
            // Asked for before the capture: cudarc may record events when it hands out addresses.
            let layers: Vec<W4Gemm> = (0..num_layers)
                .map(|layer| {
                    let (epilogue, out_dtype) = (Epilogue::Plain, DType::BF16);
                    let case = Case { num_tokens, epilogue, out_dtype, extras: false, plan: plans[layer % plans.len()] };
                    let w = W4Matrix { scale_factor: 1.0 / 32768.0, ..problem.params(&case, bytes(&buffers[0], &stream)).w };
                    let (x, out) = (bytes(&buffers[layer % 2], &stream), bytes(&buffers[(layer + 1) % 2], &stream));
                    W4Gemm { x, w, ld_out: hidden, start, ..problem.params(&case, out) }
                })
                .collect();
            let launch_all = || layers.iter().try_for_each(|params| w4_gemm(params, raw(&stream)));
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
        assert!(
            plain.iter().any(|&bits| bits & 0x7fff != 0) && plain.iter().all(|&bits| bf16::from_bits(bits).is_finite()),
            "{num_tokens} tokens"
        );
        for _ in 0..20 {
            assert!(run(Start::Early) == plain, "{num_tokens} tokens");
        }
    }
}
