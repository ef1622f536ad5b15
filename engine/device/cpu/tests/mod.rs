//! Every op against a naive f64 reference at every SIMD level of this machine, and against itself in other batches, chunks and threads.

mod attention;
mod coded;
mod elementwise;
mod linear;
mod moe;
mod pool;
mod sampling;
mod step;

use super::simd::SimdLevel;
use super::{CpuDevice, CpuVector, CpuWeight};
use crate::device::{DType, Device, HostMatrix, HostWeight, Linear, MatrixLoad, MatrixUse, Tensor};
use crate::weights::dequant::dequantize_row;
use crate::weights::format::WeightFormat;
use crate::weights::mapped::MappedBytes;

/// SplitMix64; the seeds are literals in the tests.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }
}

/// A device at each level, and each with one and three threads.
pub fn devices() -> Vec<CpuDevice> {
    let levels = SimdLevel::available();
    levels.into_iter().flat_map(|level| [1, 3].map(|threads| CpuDevice::with_level(Some(threads), level).unwrap())).collect()
}

pub fn tensor(device: &CpuDevice, cols: usize, values: &[f32]) -> Tensor<CpuDevice> {
    let rows = values.len() / cols;
    let mut tensor = device.alloc(rows.max(1), cols, DType::F32).unwrap();
    tensor.values_mut(rows).copy_from_slice(values);
    tensor
}

pub fn empty(device: &CpuDevice, rows: usize, cols: usize) -> Tensor<CpuDevice> {
    device.alloc(rows.max(1), cols, DType::F32).unwrap()
}

pub fn vector(device: &CpuDevice, values: &[f32]) -> CpuVector {
    device.load_vector(values).unwrap()
}

/// Random bits for codes, tame scales; the bytes start at an odd address.
pub fn host_weight(random: &mut Random, format: WeightFormat, n: usize, k: usize) -> HostWeight {
    let (values, block_bytes) = format.block();
    let mut bytes = vec![0u8];
    for _ in 0..n * (k / values) {
        let mut block: Vec<u8> = (0..block_bytes).map(|_| random.next() as u8).collect();
        let scales: &[usize] = match format {
            WeightFormat::F32 => {
                block = random.unit().to_le_bytes().to_vec();
                &[]
            }
            WeightFormat::BF16 => {
                block = half::bf16::from_f32(random.unit()).to_le_bytes().to_vec();
                &[]
            }
            WeightFormat::F16 | WeightFormat::Q4_0 | WeightFormat::Q5_0 | WeightFormat::Q8_0 => &[0],
            WeightFormat::Q4_1 | WeightFormat::Q5_1 | WeightFormat::Q4K | WeightFormat::Q5K => &[0, 2],
            WeightFormat::Q6K => &[208],
        };
        for at in scales {
            block[*at..*at + 2].copy_from_slice(&half::f16::from_f32(random.unit() * 0.02).to_le_bytes());
        }
        bytes.extend(block);
    }
    let len = bytes.len() - 1;
    HostWeight { name: "test".into(), format, n, k, bytes: MappedBytes::from_slice(&bytes).slice(1, len) }
}

/// `[n, k]` values of a weight.
pub fn dense(weight: &HostWeight) -> Vec<f32> {
    let mut out = vec![0.0; weight.n * weight.k];
    for (row, out) in weight.bytes.as_slice().chunks_exact(weight.row_bytes()).zip(out.chunks_exact_mut(weight.k)) {
        dequantize_row(weight.format, row, out);
    }
    out
}

pub fn linear_layer(device: &CpuDevice, parts: &[HostWeight], bias: Option<&[f32]>) -> Linear<CpuDevice> {
    let parts: Vec<HostMatrix> = parts.iter().cloned().map(HostMatrix::Rows).collect();
    layer_of(device, &parts, bias)
}

pub fn layer_of(device: &CpuDevice, parts: &[HostMatrix], bias: Option<&[f32]>) -> Linear<CpuDevice> {
    let (n, k) = (parts.iter().map(HostMatrix::n).sum(), parts[0].k());
    let parts: Vec<CpuWeight> = parts
        .iter()
        .map(|part| device.load_matrix(part.clone(), MatrixLoad { usage: MatrixUse::Projection, quantize: None }).unwrap())
        .collect();
    Linear { parts, bias: bias.map(|bias| vector(device, bias)), n, k }
}

/// (sum of x * w, sum of |x * w|) in f64.
pub fn dot(x: &[f32], w: &[f32]) -> (f64, f64) {
    x.iter().zip(w).fold((0.0, 0.0), |(sum, size), (x, w)| {
        let product = f64::from(*x) * f64::from(*w);
        (sum + product, size + product.abs())
    })
}

/// Fails unless the two agree within `tolerance` relative to the larger of 1 and the expected value.
pub fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(*a) - e).abs();
        assert!(error <= tolerance * e.abs().max(1.0), "{what}: element {i} is {a}, expected {e}");
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
