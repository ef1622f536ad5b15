//! Times skinny products on the first GPU, over the shapes of common models: `bench_gemm [--sweep] [--tokens 1,8] [--model 7b]`.
//!
//! Every product is captured into a graph of launches that rotate over copies of the weights (random, more than the 50 MB of L2), as a
//! chain of early starts and one after the other. Prints one JSON line a case: microseconds, GB/s of weights, share of plain
//! reads of this GPU, measured first.
//! `--sweep` times every plan instead of the chosen one, fastest first.
#![allow(unsafe_code)]

mod random_weights;

use std::io::Write;
use std::sync::Arc;

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use pagoda_kernels::heuristics::{GpuClass, SkinnyKernel, SkinnyPlan, SkinnyShape, SumOrder, skinny_plan};
use pagoda_kernels::ops::gemm::{Epilogue, SkinnyGemmParams, Start, skinny_gemm};
use pagoda_kernels::ops::{DType, DeviceBytes, Stream};
use pagoda_kernels::{Gpu, read_rate};
use random_weights::random_bits;

const ARENA_BYTES: usize = 4 << 30;
const MIN_ROTATED_BYTES: usize = 300 << 20;
const MAX_LAUNCHES: usize = 64;

struct Model {
    name: &'static str,
    hidden: usize,
    qkv: usize,
    attention: usize,
    intermediate: usize,
    vocab: usize,
}

const fn model(name: &'static str, hidden: usize, qkv: usize, attention: usize, intermediate: usize, vocab: usize) -> Model {
    Model { name, hidden, qkv, attention, intermediate, vocab }
}

/// Qwen2.5 and Llama 3.1.
const MODELS: [Model; 5] = [
    model("0.5b", 896, 1152, 896, 4864, 151_936),
    model("1.5b", 1536, 2048, 1536, 8960, 151_936),
    model("3b", 2048, 2560, 2048, 11008, 151_936),
    model("7b", 3584, 4608, 3584, 18944, 152_064),
    model("llama-8b", 4096, 6144, 4096, 14336, 128_256),
];

impl Model {
    /// Name, n and k of the matrices of a layer and of the head.
    fn matrices(&self) -> [(&'static str, usize, usize); 5] {
        [
            ("qkv", self.qkv, self.hidden),
            ("o", self.hidden, self.attention),
            ("gate_up", 2 * self.intermediate, self.hidden),
            ("down", self.hidden, self.intermediate),
            ("lm_head", self.vocab, self.hidden),
        ]
    }
}

struct Bench {
    stream: Arc<CudaStream>,
    gpu: GpuClass,
    /// Plain reads, GB/s.
    read_gb_s: f64,
    weights: CudaSlice<u16>,
    x: CudaSlice<u16>,
    out: CudaSlice<u16>,
}

fn range(slice: &CudaSlice<u16>, stream: &CudaStream, offset: usize, len: usize) -> DeviceBytes {
    let (address, _sync) = slice.device_ptr(stream);
    assert!(offset + len <= slice.len() * 2, "range lies in its buffer");
    // SAFETY: the buffers live as long as the bench, which uses one stream.
    unsafe { DeviceBytes::new(address + offset as u64, len) }
}

impl Bench {
    fn new() -> Option<Bench> {
        let gpu = *pagoda_kernels::probe().ok()?.first().map(|g| (g.num_sms, g.compute_capability)).as_ref()?;
        let read_gb_s = Gpu::open(0).and_then(|gpu| read_rate(&gpu)).ok()? / 1e9;
        let context = CudaContext::new(0).ok()?;
        // SAFETY: everything here runs on one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().ok()?;
        let mut weights = stream.alloc_zeros::<u16>(ARENA_BYTES / 2).ok()?;
        let pattern = stream.clone_htod(&random_bits(31_000_003)).ok()?;
        for begin in (0..weights.len()).step_by(pattern.len()) {
            let len = pattern.len().min(weights.len() - begin);
            stream.memcpy_dtod(&pattern.slice(..len), &mut weights.slice_mut(begin..begin + len)).ok()?;
        }
        let x = stream.clone_htod(&random_bits(64 * 32768)).ok()?;
        let out = stream.alloc_zeros::<u16>(64 * 160_000).ok()?;
        Some(Bench { stream, gpu: GpuClass { num_sms: gpu.0, compute_capability: gpu.1 }, read_gb_s, weights, x, out })
    }

    /// Microseconds of one product, best of two replays; None where the plan does not run.
    fn time(&self, shape: SkinnyShape, plan: SkinnyPlan, epilogue: Epilogue, start: Start) -> Option<f64> {
        let SkinnyShape { num_tokens, n, k } = shape;
        let num_cols = if epilogue == Epilogue::Plain { n } else { n / 2 };
        let w_bytes = n * k * 2;
        let num_copies = (ARENA_BYTES / w_bytes).min(MIN_ROTATED_BYTES.div_ceil(w_bytes).max(4));
        let num_launches = num_copies.max(MAX_LAUNCHES.min(1 + (1 << 30) / w_bytes)).min(160);
        let launch = |i: usize| {
            let params = SkinnyGemmParams {
                out: range(&self.out, &self.stream, 0, num_tokens * num_cols * 2),
                x: range(&self.x, &self.stream, 0, num_tokens * k * 2),
                w: range(&self.weights, &self.stream, i % num_copies * w_bytes, w_bytes),
                bias: None,
                residual: None,
                shape,
                ld_out: num_cols,
                out_dtype: DType::BF16,
                epilogue,
                plan,
                start,
                groups: None,
            };
            // SAFETY: cudarc keeps the stream alive, and made its context current on this thread.
            let stream = unsafe { Stream::from_raw(self.stream.cu_stream().cast()) };
            skinny_gemm(&params, stream)
        };
        launch(0).ok()?;
        self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).ok()?;
        let all = (0..num_launches).try_for_each(launch);
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0)).ok()??;
        all.ok()?;
        graph.launch().ok()?;
        let event = || self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let mut best = f64::INFINITY;
        for _ in 0..2 {
            let begin = event().ok()?;
            graph.launch().ok()?;
            let end = event().ok()?;
            best = best.min(f64::from(begin.elapsed_ms(&end).ok()?) * 1e3 / num_launches as f64);
        }
        Some(best)
    }

    /// Every plan worth a try for this shape.
    fn candidates(&self, shape: SkinnyShape) -> Vec<SkinnyPlan> {
        let mut plans = Vec::new();
        let slots = 2 * self.gpu.num_sms;
        if shape.num_tokens == 1 {
            let gemv = |block_n, ctas| SkinnyPlan {
                kernel: SkinnyKernel::Gemv,
                block_n,
                split_k: 1,
                num_stages: 2,
                max_ctas: ctas * self.gpu.num_sms,
            };
            plans.extend([gemv(1, 9), gemv(2, 9), gemv(2, 2)]);
        }
        let num_tiles = (shape.n as u32).div_ceil(64);
        for split_k in (1..=8).filter(|s| *s == 1 || (slots / 4..=slots * 3 / 2).contains(&(num_tiles * s))) {
            for num_stages in [3, 4, 5, 6, 8] {
                let grids = [slots / 2, slots, slots * 3 / 2, num_tiles];
                for &max_ctas in grids.iter().take(if split_k == 1 { 4 } else { 1 }).filter(|&&ctas| split_k > 1 || ctas <= num_tiles) {
                    plans.push(SkinnyPlan { kernel: SkinnyKernel::Sm90, block_n: 64, split_k, num_stages, max_ctas });
                }
            }
        }
        plans
    }

    fn sweep(&self, what: &str, shape: SkinnyShape) {
        let mut timed: Vec<(f64, SkinnyPlan)> =
            self.candidates(shape).into_iter().filter_map(|p| Some((self.time(shape, p, Epilogue::Plain, Start::Early)?, p))).collect();
        timed.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (us, plan) in &timed {
            self.report(what, shape, *plan, *us, f64::NAN);
        }
    }

    fn report(&self, what: &str, shape: SkinnyShape, plan: SkinnyPlan, early_us: f64, in_order_us: f64) {
        let gb_s = |us: f64| (shape.n * shape.k * 2) as f64 / us * 1e-3;
        let SkinnyPlan { kernel, block_n, split_k, num_stages, max_ctas } = plan;
        let line = format!(
            "{{\"op\":\"skinny_gemm\",\"matrix\":\"{what}\",\"tokens\":{},\"n\":{},\"k\":{},\"us\":{early_us:.2},\"gb_s\":{:.0},\"share\":{:.3},\
             \"in_order_us\":{in_order_us:.2},\"plan\":\"{kernel:?} n{block_n} split{split_k} stages{num_stages} ctas{max_ctas}\"}}",
            shape.num_tokens,
            shape.n,
            shape.k,
            gb_s(early_us),
            gb_s(early_us) / self.read_gb_s,
        );
        say(&line);
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
    let Some(bench) = Bench::new().filter(|_| pagoda_kernels::available()) else {
        say("no GPU, or built without nvcc");
        return;
    };
    let names = list("--model", "0.5b,1.5b,3b,7b,llama-8b");
    let tokens: Vec<usize> = list("--tokens", "1,2,4,8,16,32,64").iter().filter_map(|t| t.parse().ok()).collect();
    let sweep = std::env::args().any(|a| a == "--sweep");
    for model in MODELS.iter().filter(|m| names.iter().any(|n| n == m.name)) {
        for (matrix, n, k) in model.matrices() {
            for &num_tokens in &tokens {
                let (shape, what) = (SkinnyShape { num_tokens, n, k }, format!("{} {matrix}", model.name));
                if sweep {
                    bench.sweep(&what, shape);
                    continue;
                }
                for order in [SumOrder::Fastest, SumOrder::BatchInvariant] {
                    let Some(plan) = skinny_plan(shape, bench.gpu, order).filter(|_| order == SumOrder::Fastest || num_tokens == 1) else {
                        continue;
                    };
                    for epilogue in [Epilogue::Plain, Epilogue::SiluMul] {
                        if epilogue == Epilogue::SiluMul && matrix != "gate_up" {
                            continue;
                        }
                        let time = |start| bench.time(shape, plan, epilogue, start).unwrap_or(f64::NAN);
                        let name = if epilogue == Epilogue::Plain { what.clone() } else { format!("{what}+silu") };
                        bench.report(&name, shape, plan, time(Start::Early), time(Start::InOrder));
                    }
                }
            }
        }
    }
}
