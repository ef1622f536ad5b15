//! Times products of many tokens on the first GPU, over the shapes of common models: the library's and our own, and a mixture of experts.
//! `bench_products [--sweep] [--tokens 512,8192] [--model 7b,moe]`
//!
//! Weights are random and rotate over more than the 50 MB of L2. Prints one JSON line a case: microseconds, TFLOP/s, GB/s of weights.
//! `tuned_ms` is what the choice of the library's algorithm took.
#![allow(unsafe_code)]

mod random_weights;

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use pagoda_kernels::cublaslt::Matmul;
use pagoda_kernels::graph::{Capture, Graph};
use pagoda_kernels::heuristics::{
    GpuClass, GroupedPlan, GroupedShape, ProductPlan, ProductShape, SkinnyShape, SumOrder, WidePlan, grouped_plan, product_plan,
    skinny_plan,
};
use pagoda_kernels::ops::gemm::{Epilogue, SkinnyGemmParams, SkinnyGroups, Start, skinny_gemm};
use pagoda_kernels::ops::step::{Activation, gated_activation};
use pagoda_kernels::ops::wide::{WideGemm, wide_gemm};
use pagoda_kernels::ops::{DType, DeviceBytes};
use pagoda_kernels::{CublasLt, DeviceMemory, Event, Gpu, Result};
use random_weights::random_bits;

const WEIGHT_BYTES: usize = 3 << 30;
const MIN_ROTATED_BYTES: usize = 200 << 20;
const ROUND_MS: f64 = 4.0;
const ROUNDS: usize = 5;

type Launch<'a> = Box<dyn Fn(DeviceBytes) -> Result<()> + 'a>;
type Variant<'a> = (String, Launch<'a>);

/// Name, hidden, columns of qkv, columns of attention, intermediate.
const MODELS: [(&str, usize, usize, usize, usize); 7] = [
    ("0.5b", 896, 1152, 896, 4864),
    ("1.5b", 1536, 2048, 1536, 8960),
    ("3b", 2048, 2560, 2048, 11008),
    ("7b", 3584, 4608, 3584, 18944),
    ("14b", 5120, 7168, 5120, 13824),
    ("32b", 5120, 7168, 5120, 27648),
    ("llama-8b", 4096, 6144, 4096, 14336),
];
/// Qwen3-30B-A3B: experts, chosen, hidden, intermediate.
const MOE: (usize, usize, usize, usize) = (128, 8, 2048, 768);

struct Bench {
    gpu: Arc<Gpu>,
    class: GpuClass,
    blas: Option<CublasLt>,
    /// The same, called in captures alone, where it takes the library's first proposal.
    untuned: Option<CublasLt>,
    weights: DeviceMemory,
    x: DeviceMemory,
    out: DeviceMemory,
    offsets: DeviceMemory,
}

/// Random bf16, as bytes.
fn random_bytes(len: usize) -> Vec<u8> {
    random_bits(len / 2).into_iter().flat_map(u16::to_le_bytes).collect()
}

/// The first `len` bytes.
fn first(range: DeviceBytes, len: usize) -> DeviceBytes {
    assert!(len <= range.len(), "{len} of {}", range.len());
    // SAFETY: part of a range that is alive.
    unsafe { DeviceBytes::new(range.address(), len) }
}

impl Bench {
    fn new(max_tokens: usize) -> Result<Bench> {
        let gpu = Gpu::open(0)?;
        let class = GpuClass { num_sms: gpu.info().num_sms, compute_capability: gpu.info().compute_capability };
        let random = |len: usize| -> Result<DeviceMemory> {
            let memory = DeviceMemory::zeroed(&gpu, len)?;
            let pattern = random_bytes((32 << 20) + 6);
            for begin in (0..len).step_by(pattern.len()) {
                gpu.copy_to_device(memory.bytes().from(begin), &pattern[..pattern.len().min(len - begin)])?;
            }
            gpu.synchronize()?;
            Ok(memory)
        };
        Ok(Bench {
            class,
            blas: CublasLt::open(&gpu)?,
            untuned: CublasLt::open(&gpu)?,
            weights: random(WEIGHT_BYTES)?,
            x: random(max_tokens * 27648 * 2)?,
            out: DeviceMemory::zeroed(&gpu, max_tokens * 2 * 27648 * 2)?,
            offsets: DeviceMemory::zeroed(&gpu, (MOE.0 + 1) * 4)?,
            gpu,
        })
    }

    /// Median microseconds of one launch of each variant; `launch(w)` uses one copy of the weights. Variants take turns, so that all meet
    /// the same clocks: a GPU at its power limit slows down while a bench goes on.
    fn race(&self, w_bytes: usize, variants: &[Variant<'_>]) -> Result<Vec<f64>> {
        let copies = (WEIGHT_BYTES / w_bytes).min(MIN_ROTATED_BYTES.div_ceil(w_bytes).max(3));
        let w = |i: usize| first(self.weights.bytes().from(i % copies * w_bytes), w_bytes);
        let marks = (Event::new(&self.gpu)?, Event::new(&self.gpu)?);
        let record = |launch: &Launch<'_>, launches: usize| -> Result<Graph> {
            let capture = Capture::begin(&self.gpu)?;
            (0..launches).try_for_each(|i| launch(w(i)))?;
            capture.end()
        };
        let round = |graph: &Graph| -> Result<f64> {
            marks.0.record()?;
            graph.launch()?;
            marks.1.record()?;
            marks.1.wait()?;
            Ok(f64::from(marks.1.ms_since(&marks.0)?))
        };
        let graphs: Vec<(Graph, usize)> = variants
            .iter()
            .map(|(_, launch)| {
                let few = record(launch, 4)?;
                round(&few)?;
                let launches = (4.0 * ROUND_MS / round(&few)?).ceil().clamp(3.0, 300.0) as usize;
                Ok((record(launch, launches)?, launches))
            })
            .collect::<Result<_>>()?;
        let mut times = vec![Vec::new(); variants.len()];
        for _ in 0..ROUNDS {
            for (times, (graph, launches)) in times.iter_mut().zip(&graphs) {
                times.push(round(graph)? * 1e3 / *launches as f64);
            }
        }
        Ok(times
            .into_iter()
            .map(|mut times| {
                times.sort_by(f64::total_cmp);
                times[ROUNDS / 2]
            })
            .collect())
    }

    fn report(&self, what: &str, how: &str, (tokens, n, k): (usize, usize, usize), w_bytes: usize, us: f64, note: &str) {
        let tflops = 2.0 * tokens as f64 * n as f64 * k as f64 / us * 1e-6;
        let gb_s = w_bytes as f64 / us * 1e-3;
        let line = format!(
            "{{\"product\":\"{what}\",\"by\":\"{how}\",\"tokens\":{tokens},\"n\":{n},\"k\":{k},\"us\":{us:.1},\"tflops\":{tflops:.0},\"gb_s\":{gb_s:.0}{note}}}"
        );
        let _ = writeln!(std::io::stdout(), "{line}");
    }

    fn library(&self, blas: &Option<CublasLt>, (num_tokens, n, k): (usize, usize, usize), bias: bool, w: DeviceBytes) -> Result<()> {
        let Some(blas) = blas else { return Ok(()) };
        let (out, x) = (self.out.bytes(), self.x.bytes());
        let bias = bias.then(|| self.weights.bytes());
        blas.matmul(&Matmul { out, x, w, bias, num_tokens, n, k, ld_out: n, out_dtype: DType::BF16 })
    }

    fn wide(&self, (num_rows, n, k): (usize, usize, usize), epilogue: Epilogue, plan: WidePlan, w: DeviceBytes) -> Result<()> {
        let ld_out = if epilogue == Epilogue::SiluMul { n / 2 } else { n };
        let (out, x, bias, groups, start) = (self.out.bytes(), self.x.bytes(), None, None, Start::Early);
        wide_gemm(&WideGemm { out, x, w, bias, groups, num_rows, n, k, ld_out, epilogue, plan, start }, self.gpu.stream()?)
    }

    fn dense(&self, model: &str, matrix: &str, shape: (usize, usize, usize)) -> Result<()> {
        let (tokens, n, k) = shape;
        let w_bytes = n * k * 2;
        let gated = matrix == "gate_up";
        let begin = Instant::now();
        self.library(&self.blas, shape, false, first(self.weights.bytes(), w_bytes))?;
        self.gpu.synchronize()?;
        let tuned_ms = begin.elapsed().as_secs_f64() * 1e3;
        let mut variants: Vec<Variant<'_>> = vec![("library".into(), Box::new(move |w| self.library(&self.blas, shape, false, w)))];
        variants.push(("library untuned".into(), Box::new(move |w| self.library(&self.untuned, shape, false, w))));
        if matrix == "qkv" {
            self.library(&self.blas, shape, true, first(self.weights.bytes(), w_bytes))?;
            variants.push(("library+bias".into(), Box::new(move |w| self.library(&self.blas, shape, true, w))));
        }
        if gated {
            let halves = move |w| {
                self.library(&self.blas, shape, false, w)?;
                let (out, gate_up) = (self.x.bytes(), self.out.bytes());
                gated_activation(out, gate_up, tokens, n / 2, Activation::Silu, self.gpu.stream()?)
            };
            variants.push(("library+silu".into(), Box::new(halves)));
        }
        let epilogue = if gated { Epilogue::SiluMul } else { Epilogue::Plain };
        for order in [SumOrder::Fastest, SumOrder::BatchInvariant] {
            let product = ProductShape { num_tokens: tokens, n, k, gated, whole: true, library: false };
            let ProductPlan::Wide(plan) = product_plan(&product, self.class, order) else { continue };
            let plans = if order == SumOrder::Fastest { wide_plans(plan) } else { vec![plan] };
            for plan in plans {
                let WidePlan { block_rows, block_cols, cluster, num_ranges, raster, .. } = plan;
                let name = format!("wide {block_rows}x{block_cols} cluster {cluster} ranges {num_ranges} raster {raster}");
                variants.push((name, Box::new(move |w| self.wide(shape, epilogue, plan, w))));
            }
        }
        if let Some(plan) = skinny_plan(SkinnyShape { num_tokens: tokens, n, k }, self.class, SumOrder::Fastest) {
            variants.push(("skinny".into(), Box::new(move |w| self.skinny(shape, epilogue, plan, None, w))));
        }
        for ((name, _), us) in variants.iter().zip(self.race(w_bytes, &variants)?) {
            let note = if name == "library" { format!(",\"tuned_ms\":{tuned_ms:.1}") } else { String::new() };
            self.report(&format!("{model} {matrix}"), name, shape, w_bytes, us, &note);
        }
        Ok(())
    }

    fn skinny(
        &self,
        (num_tokens, n, k): (usize, usize, usize),
        epilogue: Epilogue,
        plan: pagoda_kernels::heuristics::SkinnyPlan,
        groups: Option<SkinnyGroups>,
        w: DeviceBytes,
    ) -> Result<()> {
        let ld_out = if epilogue == Epilogue::SiluMul { n / 2 } else { n };
        let (out, x, bias, residual, start, out_dtype) = (self.out.bytes(), self.x.bytes(), None, None, Start::Early, DType::BF16);
        let shape = SkinnyShape { num_tokens, n, k };
        skinny_gemm(
            &SkinnyGemmParams { out, x, w, bias, residual, shape, ld_out, out_dtype, epilogue, plan, start, groups },
            self.gpu.stream()?,
        )
    }

    /// Both products of the experts, pairs spread at random.
    fn mixture(&self, tokens: usize) -> Result<()> {
        let (num_groups, top_k, hidden, intermediate) = MOE;
        let pairs = tokens * top_k;
        let mut counts = vec![0i32; num_groups];
        for (i, pair) in random_bytes(4 * pairs).chunks_exact(4).enumerate() {
            // The experts of one token differ.
            let expert = (usize::from(pair[0]) + usize::from(pair[2]) * 256 + i) % num_groups;
            counts[if tokens == 1 { i * 11 % num_groups } else { expert }] += 1;
        }
        let touched = counts.iter().filter(|&&count| count > 0).count();
        let offsets: Vec<u8> = std::iter::once(0)
            .chain(counts.iter().scan(0, |sum, count| {
                *sum += count;
                Some(*sum)
            }))
            .flat_map(i32::to_le_bytes)
            .collect();
        self.gpu.copy_to_device(self.offsets.bytes(), &offsets)?;
        self.gpu.synchronize()?;
        let offsets = self.offsets.bytes();
        for (matrix, n, k, epilogue) in
            [("gate_up+silu", 2 * intermediate, hidden, Epilogue::SiluMul), ("down", hidden, intermediate, Epilogue::Plain)]
        {
            let ld_out = if epilogue == Epilogue::SiluMul { n / 2 } else { n };
            let plan = grouped_plan(&GroupedShape { num_rows: pairs, num_groups, whole: true }, self.class);
            let launch = |w| match plan {
                GroupedPlan::Skinny(plan, block_tokens) => {
                    self.skinny((pairs, n, k), epilogue, plan, Some(SkinnyGroups { offsets, num_groups, block_tokens }), w)
                }
                GroupedPlan::Wide(plan) => {
                    let (out, x, bias, start, groups) = (self.out.bytes(), self.x.bytes(), None, Start::Early, Some((offsets, num_groups)));
                    wide_gemm(
                        &WideGemm { out, x, w, bias, groups, num_rows: pairs, n, k, ld_out, epilogue, plan, start },
                        self.gpu.stream()?,
                    )
                }
                GroupedPlan::Portable => Ok(()),
            };
            let us = self.race(num_groups * n * k * 2, &[(String::new(), Box::new(launch))])?[0];
            let how = if matches!(plan, GroupedPlan::Wide(_)) { "wide groups" } else { "skinny groups" };
            self.report(&format!("moe {matrix}"), how, (pairs, n, k), touched * n * k * 2, us, &format!(",\"steps_tokens\":{tokens}"));
        }
        Ok(())
    }
}

/// With `--sweep` also other tiles than the chosen ones.
fn wide_plans(chosen: WidePlan) -> Vec<WidePlan> {
    if !std::env::args().any(|a| a == "--sweep") {
        return vec![chosen];
    }
    let plan = |block_rows, block_cols, raster| WidePlan { block_rows, block_cols, raster, cluster: 2, ..chosen };
    vec![plan(128, 256, 2), plan(128, 256, 4), plan(128, 256, 8), plan(256, 128, 2), plan(256, 128, 4), plan(256, 128, 8)]
}

/// The value after `--name` as a list, or the default.
fn list(name: &str, default: &str) -> Vec<String> {
    let mut args = std::env::args().skip_while(|a| a != name).skip(1);
    args.next().unwrap_or_else(|| default.to_string()).split(',').map(str::to_string).collect()
}

fn main() -> Result<()> {
    if !pagoda_kernels::available() || pagoda_kernels::probe()?.is_empty() {
        let _ = writeln!(std::io::stdout(), "no GPU, or built without nvcc");
        return Ok(());
    }
    let tokens: Vec<usize> = list("--tokens", "128,256,512,1024,2048,4096,8192").iter().filter_map(|t| t.parse().ok()).collect();
    let names = list("--model", "0.5b,7b,llama-8b,moe");
    let bench = Bench::new(tokens.iter().copied().max().unwrap_or(1).max(4096))?;
    for (model, hidden, qkv, attention, intermediate) in MODELS.into_iter().filter(|m| names.iter().any(|n| n == m.0)) {
        let matrices =
            [("qkv", qkv, hidden), ("o", hidden, attention), ("gate_up", 2 * intermediate, hidden), ("down", hidden, intermediate)];
        for (matrix, n, k) in matrices {
            tokens.iter().try_for_each(|&num_tokens| bench.dense(model, matrix, (num_tokens, n, k)))?;
        }
    }
    if names.iter().any(|n| n == "moe") {
        [1, 8, 64, 512, 4096].into_iter().try_for_each(|num_tokens| bench.mixture(num_tokens))?;
    }
    Ok(())
}
