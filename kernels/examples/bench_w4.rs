//! Times products with 4-bit weights on the first GPU: `bench_w4 [--model 7b] [--tokens 1,8,64] [--group 64] [--read-limit 4330]`; with groups
//! of 16 as NVFP4 has them.
//!
//! Every product is captured into a graph of launches that start early and rotate over copies of random tiles (more than L2 holds); a layer
//! is its four products in turn. Prints one JSON line a case: microseconds, GB/s of tiles, share of what plain reads reach in GB/s.
#![allow(unsafe_code)]

use std::io::Write;
use std::sync::Arc;

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use pagoda_kernels::heuristics::{GpuClass, MAX_W4_TOKENS, SumOrder, W4Shape, w4_plan};
use pagoda_kernels::ops::gemm::{Epilogue, Start};
use pagoda_kernels::ops::w4::{W4Layout, W4Matrix};
use pagoda_kernels::ops::w4_gemm::{W4Gemm, W4Scratch, w4_gemm};
use pagoda_kernels::ops::{DType, DeviceBytes, Stream};

const ARENA_BYTES: usize = 1 << 30;
const MAX_K: usize = 32768;
const MAX_N: usize = 160_000;
const PARTIALS_BYTES: usize = 64 << 20;
const COUNTERS_BYTES: usize = 4096;
/// Values of the codes: NF4 to four digits.
const BOOK: [f32; 16] =
    [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.723, 1.0];

/// A matrix of a layer.
#[derive(Clone, Copy)]
struct Matrix {
    name: &'static str,
    n: usize,
    k: usize,
    gated: bool,
}

/// Name, and qkv, o, gate and up, down.
const fn model(name: &'static str, hidden: usize, qkv: usize, attention: usize, intermediate: usize) -> (&'static str, [Matrix; 4]) {
    let matrices = [
        Matrix { name: "qkv", n: qkv, k: hidden, gated: false },
        Matrix { name: "o", n: hidden, k: attention, gated: false },
        Matrix { name: "gate_up", n: 2 * intermediate, k: hidden, gated: true },
        Matrix { name: "down", n: hidden, k: intermediate, gated: false },
    ];
    (name, matrices)
}

/// Qwen2.5 and Llama 3.1.
const MODELS: [(&str, [Matrix; 4]); 5] = [
    model("0.5b", 896, 1152, 896, 4864),
    model("1.5b", 1536, 2048, 1536, 8960),
    model("3b", 2048, 2560, 2048, 11008),
    model("7b", 3584, 4608, 3584, 18944),
    model("llama-8b", 4096, 6144, 4096, 14336),
];

impl Matrix {
    fn layout(&self, group: usize) -> W4Layout {
        W4Layout { n: self.n, k: self.k, group, zeros: false, interleaved: self.gated }
    }
}

struct Bench {
    /// Columns of a scale.
    group: usize,
    stream: Arc<CudaStream>,
    gpu: GpuClass,
    tiles: CudaSlice<u32>,
    x: CudaSlice<u16>,
    out: CudaSlice<u16>,
    partials: CudaSlice<u8>,
    counters: CudaSlice<u8>,
}

/// Pairs of f16 between 2^-8 and 2, whatever they stand for.
fn random_words(len: usize) -> Vec<u32> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u32
    };
    (0..len).map(|_| next() & 0xbfff_bfff | 0x2000_2000).collect()
}

fn range<T>(slice: &CudaSlice<T>, stream: &CudaStream, offset: usize, len: usize) -> DeviceBytes {
    let (address, _sync) = slice.device_ptr(stream);
    assert!(offset + len <= slice.len() * size_of::<T>(), "range lies in its buffer");
    // SAFETY: the buffers live as long as the bench, which uses one stream.
    unsafe { DeviceBytes::new(address + offset as u64, len) }
}

impl Bench {
    fn new(group: usize) -> Option<Bench> {
        let gpu = *pagoda_kernels::probe().ok()?.first().map(|g| (g.num_sms, g.compute_capability)).as_ref()?;
        let context = CudaContext::new(0).ok()?;
        // SAFETY: everything here runs on one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().ok()?;
        let mut tiles = stream.alloc_zeros::<u32>(ARENA_BYTES / 4).ok()?;
        let pattern = stream.clone_htod(&random_words(7_000_003)).ok()?;
        for begin in (0..tiles.len()).step_by(pattern.len()) {
            let len = pattern.len().min(tiles.len() - begin);
            stream.memcpy_dtod(&pattern.slice(..len), &mut tiles.slice_mut(begin..begin + len)).ok()?;
        }
        let x: Vec<u16> =
            random_words(MAX_W4_TOKENS * MAX_K / 2).iter().flat_map(|w| [*w as u16 & 0xbfff, (w >> 16) as u16 & 0xbfff]).collect();
        let x = stream.clone_htod(&x).ok()?;
        let out = stream.alloc_zeros::<u16>(MAX_W4_TOKENS * MAX_N).ok()?;
        let partials = stream.alloc_zeros::<u8>(PARTIALS_BYTES).ok()?;
        let counters = stream.alloc_zeros::<u8>(COUNTERS_BYTES).ok()?;
        Some(Bench { group, stream, gpu: GpuClass { num_sms: gpu.0, compute_capability: gpu.1 }, tiles, x, out, partials, counters })
    }

    fn launch(&self, matrix: &Matrix, num_tokens: usize, order: SumOrder, offset: usize) -> Option<()> {
        let layout = matrix.layout(self.group);
        let ld_out = if matrix.gated { matrix.n / 2 } else { matrix.n };
        let tiles = range(&self.tiles, &self.stream, offset, layout.bytes());
        // No time depends on what the scales are.
        let w = W4Matrix { tiles, layout, book: BOOK, scale_factor: 1.0 / 1024.0, short_scales: layout.group == 16 };
        let shape = W4Shape { num_tokens, n: matrix.n, k: matrix.k, tile_bytes: layout.tile_bytes(), fits_columns: w.fits_columns() };
        let params = W4Gemm {
            out: range(&self.out, &self.stream, 0, num_tokens * ld_out * 2),
            x: range(&self.x, &self.stream, 0, num_tokens * matrix.k * 2),
            w,
            bias: None,
            residual: None,
            scratch: W4Scratch {
                partials: range(&self.partials, &self.stream, 0, PARTIALS_BYTES),
                counters: range(&self.counters, &self.stream, 0, COUNTERS_BYTES),
            },
            num_tokens,
            ld_out,
            out_dtype: DType::BF16,
            epilogue: if matrix.gated { Epilogue::SiluMul } else { Epilogue::Plain },
            plan: w4_plan(shape, self.gpu, order)?,
            start: Start::Early,
        };
        // SAFETY: cudarc keeps the stream alive, and made its context current on this thread.
        let stream = unsafe { Stream::from_raw(self.stream.cu_stream().cast()) };
        w4_gemm(&params, stream).ok()
    }

    /// Microseconds of the products one after the other, best of three replays; None where one does not run.
    fn time(&self, matrices: &[Matrix], num_tokens: usize, order: SumOrder) -> Option<f64> {
        let bytes: usize = matrices.iter().map(|m| m.layout(self.group).bytes()).sum();
        let num_copies = ARENA_BYTES / bytes;
        let num_turns = num_copies.clamp(8, 100);
        let turn = |i: usize| {
            let mut offset = i % num_copies * bytes;
            matrices.iter().try_for_each(|matrix| {
                let at = offset;
                offset += matrix.layout(self.group).bytes();
                self.launch(matrix, num_tokens, order, at)
            })
        };
        turn(0)?;
        self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).ok()?;
        let all = (0..num_turns).try_for_each(turn);
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0)).ok()??;
        all?;
        graph.launch().ok()?;
        let event = || self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let begin = event().ok()?;
            graph.launch().ok()?;
            let end = event().ok()?;
            best = best.min(f64::from(begin.elapsed_ms(&end).ok()?) * 1e3 / num_turns as f64);
        }
        Some(best)
    }

    fn report(&self, what: &str, matrices: &[Matrix], num_tokens: usize, read_limit: f64) {
        let bytes: usize = matrices.iter().map(|m| m.layout(self.group).bytes()).sum();
        let time = |order| self.time(matrices, num_tokens, order).unwrap_or(f64::NAN);
        let us = time(SumOrder::Fastest);
        let gb_s = bytes as f64 / us * 1e-3;
        say(&format!(
            "{{\"op\":\"w4_gemm\",\"matrix\":\"{what}\",\"tokens\":{num_tokens},\"us\":{us:.2},\"gb_s\":{gb_s:.0},\"share\":{:.3},\"batch_invariant_us\":{:.2}}}",
            gb_s / read_limit,
            time(SumOrder::BatchInvariant),
        ));
    }
}

/// A closed pipe ends the bench's output, not the bench.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The value after `--name` as a list, or the default.
fn list(name: &str, default: &str) -> Vec<String> {
    let mut args = std::env::args().skip_while(|a| a != name).skip(1);
    args.next().unwrap_or_else(|| default.to_string()).split(',').map(str::to_string).collect()
}

fn main() {
    let group = list("--group", "64").first().and_then(|v| v.parse().ok()).unwrap_or(64);
    let Some(bench) = Bench::new(group).filter(|_| pagoda_kernels::available()) else {
        say("no GPU, or built without nvcc");
        return;
    };
    let names = list("--model", "0.5b,1.5b,3b,7b,llama-8b");
    let tokens: Vec<usize> = list("--tokens", "1,2,4,8,16,32,64").iter().filter_map(|t| t.parse().ok()).collect();
    let read_limit = list("--read-limit", "3150").first().and_then(|v| v.parse().ok()).unwrap_or(f64::NAN);
    for (name, matrices) in MODELS.iter().filter(|(name, _)| names.iter().any(|n| n == name)) {
        for &num_tokens in &tokens {
            for matrix in matrices {
                bench.report(&format!("{name} {}", matrix.name), &[*matrix], num_tokens, read_limit);
            }
            bench.report(&format!("{name} layer"), matrices, num_tokens, read_limit);
        }
    }
}
