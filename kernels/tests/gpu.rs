//! Kernels against an f64 reference on the host. Needs a GPU and a build with nvcc; says so and passes where one is missing.
#![allow(unsafe_code, clippy::print_stderr)]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use half::bf16;
use pagoda_kernels::ops::elementwise::{RmsNorm, RmsNormParams, rms_norm};
use pagoda_kernels::ops::{DType, DeviceBytes, Stream};

const EPS: f32 = 1e-3;

/// A stream on the first GPU, or None with the reason on stderr.
fn gpu() -> Option<Arc<CudaStream>> {
    let gpus = pagoda_kernels::probe().expect("a driver that is there works");
    if gpus.is_empty() || !pagoda_kernels::available() {
        eprintln!("SKIPPED: {} GPUs, kernels compiled: {}", gpus.len(), pagoda_kernels::available());
        return None;
    }
    let context = CudaContext::new(0).expect("context on GPU 0");
    Some(context.new_stream().expect("stream"))
}

/// One matrix in the element type of a case.
trait Element: Copy + cudarc::driver::DeviceRepr {
    const DTYPE: DType;
    /// Relative error of one rounding.
    const ULP: f64;
    fn of(v: f64) -> Self;
    fn to_f64(self) -> f64;
}

macro_rules! element {
    ($type:ty, $dtype:expr, $ulp:expr, $of:expr, $to:expr) => {
        impl Element for $type {
            const DTYPE: DType = $dtype;
            const ULP: f64 = $ulp;
            fn of(v: f64) -> Self {
                $of(v)
            }
            fn to_f64(self) -> f64 {
                $to(self)
            }
        }
    };
}
element!(f32, DType::F32, 1e-6, |v| v as f32, f64::from);
element!(bf16, DType::BF16, 1.0 / 256.0, bf16::from_f64, bf16::to_f64);

/// SplitMix64 in [-1, 1).
fn noise(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn reference(row: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
    row.iter().zip(weight).map(|(v, w)| v * scale * f64::from(*w)).collect()
}

fn bytes<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> DeviceBytes {
    let (address, _sync) = slice.device_ptr(stream);
    // SAFETY: the tests keep every slice until they have read the results back, and use one stream.
    unsafe { DeviceBytes::new(address, slice.len() * size_of::<T>()) }
}

fn assert_close<T: Element>(got: &[T], expected: &[f64], what: &str) {
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let bound = 2.0 * T::ULP * e.abs() + T::ULP * 0.05;
        assert!((g.to_f64() - e).abs() <= bound, "{what}: element {i} is {}, expected {e}", g.to_f64());
    }
}

/// All three norms on `[num_tokens, hidden]` with a residual stream of `T`; inputs small enough that eps matters.
fn check<T: Element>(stream: &Arc<CudaStream>, num_tokens: usize, hidden: usize) {
    let what = format!("{:?} {num_tokens} x {hidden}", T::DTYPE);
    let len = num_tokens * hidden;
    let x: Vec<bf16> = noise(1, len).into_iter().map(|v| bf16::from_f64(v * 0.1)).collect();
    let residual: Vec<T> = noise(2, len).into_iter().map(|v| T::of(v * 0.1)).collect();
    let weight: Vec<f32> = noise(3, hidden).into_iter().map(|v| (1.0 + 0.2 * v) as f32).collect();
    let norm_rows = |values: &[f64]| values.chunks(hidden).flat_map(|row| reference(row, &weight)).collect::<Vec<f64>>();
    let sum: Vec<f64> = x.iter().zip(&residual).map(|(a, b)| T::of(a.to_f64() + b.to_f64()).to_f64()).collect();

    let weight_gpu = stream.clone_htod(&weight).expect("weight");
    let run = |pick: &dyn Fn(DeviceBytes, DeviceBytes, DeviceBytes) -> (RmsNorm, DeviceBytes)| {
        let x_gpu = stream.clone_htod(&x).expect("x");
        let residual_gpu = stream.clone_htod(&residual).expect("residual");
        let out_gpu = stream.clone_htod(&vec![bf16::from_f64(7.0); len]).expect("out");
        let (norm, x) = pick(bytes(&out_gpu, stream), bytes(&residual_gpu, stream), bytes(&x_gpu, stream));
        let weight = bytes(&weight_gpu, stream);
        let params = RmsNormParams { norm, x, weight, num_tokens, hidden, eps: EPS, stream_dtype: T::DTYPE };
        // SAFETY: cudarc keeps the stream alive, and made its context current on this thread.
        let raw = unsafe { Stream::from_raw(stream.cu_stream().cast()) };
        rms_norm(&params, raw).expect("launch");
        (stream.clone_dtoh(&out_gpu).expect("copy back"), stream.clone_dtoh(&residual_gpu).expect("copy back"))
    };

    let (out, _) = run(&|out, residual, _| (RmsNorm::Plain { out }, residual));
    let wide: Vec<f64> = residual.iter().map(|v| v.to_f64()).collect();
    assert_close(&out, &norm_rows(&wide), &format!("norm {what}"));
    let (out, added) = run(&|out, residual, x| (RmsNorm::AddThenNorm { out, residual }, x));
    assert_close(&added, &sum, &format!("add {what}"));
    assert_close(&out, &norm_rows(&sum), &format!("add, norm {what}"));
    let (_, added) = run(&|_, residual, x| (RmsNorm::NormThenAdd { residual }, x));
    let wide: Vec<f64> = x.iter().map(|v| v.to_f64()).collect();
    let expected: Vec<f64> = norm_rows(&wide).iter().zip(&residual).map(|(n, r)| n + r.to_f64()).collect();
    assert_close(&added, &expected, &format!("norm, add {what}"));
}

#[test]
fn rms_norm_matches_the_reference() {
    let Some(stream) = gpu() else { return };
    // One vector, one warp and its neighbours, one CTA of single vectors and its neighbours, the longest row.
    for hidden in [8, 64, 248, 256, 264, 576, 896, 3584, 4096, 8184, 8192, 8200, 16384] {
        for num_tokens in [1, 3, 65] {
            check::<f32>(&stream, num_tokens, hidden);
            check::<bf16>(&stream, num_tokens, hidden);
        }
    }
    check::<bf16>(&stream, 2, 32768);
}
