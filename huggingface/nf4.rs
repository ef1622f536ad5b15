//! `Nf4`: a matrix in bitsandbytes' NF4 with double quantisation, and candle operations over it.
//!
//! Encoded by the engine's own code (`four_bit.rs`): blocks of 64 weights share an absmax, which is itself a byte of a map of 256 values
//! times the absmax of 256 of them, plus an offset: 4.127 bits a weight. On a CPU a few rows of activations are multiplied with the codes
//! as they are; for more, and on a GPU, weights are made dense for one product, some rows at a time.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::books::NF4;
use crate::four_bit::{BLOCK, dynamic_map, nested, nf4};

/// Blocks that share a factor of their absmax.
const OUTER: usize = 256;
/// Rows of activations up to which a CPU multiplies with codes.
const MAX_CODED_ROWS: usize = 4;
/// Weights that are dense at once.
const CHUNK_VALUES: usize = 16 << 20;
/// Rows of a matrix that one task multiplies.
const TASK_ROWS: usize = 16;

/// A matrix `[n, k]`.
pub struct Nf4 {
    n: usize,
    k: usize,
    /// Two codes a byte, the first in the high nibble: `[n * k / 2]`.
    codes: Tensor,
    /// One byte a block, filled up to whole groups of `OUTER`: `[groups * OUTER]`.
    absmax: Tensor,
    /// One f32 a group: `[groups]`.
    outer: Tensor,
    scales: Arc<Scales>,
}

/// What turns a byte of absmax into a factor.
#[derive(Debug)]
struct Scales {
    map: [f32; 256],
    outer: Vec<f32>,
    offset: f32,
}

impl Scales {
    fn of(&self, absmax: &[u8], block: usize) -> f32 {
        self.map[usize::from(absmax[block])] * self.outer[block / OUTER] + self.offset
    }
}

/// Both weights of a byte of codes.
fn pairs() -> &'static [[f32; 2]; 256] {
    static PAIRS: OnceLock<[[f32; 2]; 256]> = OnceLock::new();
    PAIRS.get_or_init(|| std::array::from_fn(|byte| [NF4[byte >> 4], NF4[byte & 15]]))
}

impl Nf4 {
    /// Whether rows of `k` weights are whole blocks.
    pub fn takes(k: usize) -> bool {
        k.is_multiple_of(BLOCK)
    }

    /// Quantises a matrix `[n, k]` in host memory.
    pub fn new(weight: &Tensor, device: &Device) -> Result<Nf4> {
        let (n, k) = weight.dims2()?;
        let blocks = nf4(&weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?, BLOCK);
        let map = dynamic_map();
        let mut nested = nested(&blocks.absmax, &map, OUTER);
        nested.codes.resize(nested.absmax.len() * OUTER, 0);
        let num_bytes = blocks.codes.len();
        Ok(Nf4 {
            n,
            k,
            codes: Tensor::from_vec(blocks.codes, num_bytes, device)?,
            absmax: Tensor::from_slice(&nested.codes, nested.codes.len(), device)?,
            outer: Tensor::from_slice(&nested.absmax, nested.absmax.len(), device)?,
            scales: Arc::new(Scales { map, outer: nested.absmax, offset: nested.offset }),
        })
    }

    /// Bytes of codes and factors.
    pub fn bytes(&self) -> usize {
        self.codes.elem_count() + self.absmax.elem_count() + 4 * self.outer.elem_count()
    }

    /// x: `[t, k]`, out: `[t, n]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (num_rows, _) = x.dims2()?;
        if num_rows <= MAX_CODED_ROWS && x.device().is_cpu() {
            let op = CodedProduct { n: self.n, k: self.k, scales: self.scales.clone() };
            return x.contiguous()?.apply_op3_no_bwd(&self.codes, &self.absmax, &op);
        }
        let step = (CHUNK_VALUES / self.k).max(1);
        let parts = (0..self.n).step_by(step).map(|first| x.matmul(&self.dense(first, step.min(self.n - first), x.dtype())?.t()?));
        match parts.collect::<Result<Vec<_>>>()?.as_slice() {
            [part] => Ok(part.clone()),
            parts => Tensor::cat(parts, D::Minus1),
        }
    }

    /// Rows of the matrix in `dtype`: `[num_rows, k]`.
    pub fn dense(&self, first: usize, num_rows: usize, dtype: DType) -> Result<Tensor> {
        if self.codes.device().is_cpu() {
            let op = Dequantise { first, num_rows, k: self.k, scales: self.scales.clone() };
            return self.codes.apply_op2_no_bwd(&self.absmax, &op)?.to_dtype(dtype);
        }
        self.looked_up(first, num_rows, dtype)
    }

    /// The same by candle's own operations, for devices that have no other way.
    pub fn looked_up(&self, first: usize, num_rows: usize, dtype: DType) -> Result<Tensor> {
        let device = self.codes.device();
        let (per_row, num_blocks) = (self.k / BLOCK, num_rows * self.k / BLOCK);
        let map = Tensor::from_slice(&self.scales.map, 256, device)?;
        let groups = map.index_select(&self.absmax, 0)?.reshape((self.outer.elem_count(), OUTER))?;
        let factors = (groups.broadcast_mul(&self.outer.unsqueeze(1)?)? + f64::from(self.scales.offset))?.flatten_all()?;
        let factors = factors.narrow(0, first * per_row, num_blocks)?.unsqueeze(1)?;
        let pairs = Tensor::from_slice(pairs().as_flattened(), (256, 2), device)?;
        let codes = self.codes.narrow(0, first * self.k / 2, num_rows * self.k / 2)?.contiguous()?;
        let weights = pairs.index_select(&codes, 0)?.reshape((num_blocks, BLOCK))?;
        weights.broadcast_mul(&factors)?.reshape((num_rows, self.k))?.to_dtype(dtype)
    }
}

/// out[t, r] = sum over i of x[t, i] * w[r, i], from codes. Operands: x f32 `[t, k]`, codes, absmax.
struct CodedProduct {
    n: usize,
    k: usize,
    scales: Arc<Scales>,
}

impl CustomOp3 for CodedProduct {
    fn name(&self) -> &'static str {
        "nf4-product"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, codes, absmax) =
            (contiguous(s1.as_slice::<f32>()?, l1)?, contiguous(s2.as_slice::<u8>()?, l2)?, contiguous(s3.as_slice::<u8>()?, l3)?);
        let (n, k) = (self.n, self.k);
        let num_rows = x.len() / k;
        let mut out = vec![0.0f32; num_rows * n];
        for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
            let tasks = out.par_chunks_mut(TASK_ROWS).zip(codes.par_chunks(TASK_ROWS * k / 2)).enumerate();
            tasks.for_each(|(task, (out, codes))| {
                for (r, (out, codes)) in out.iter_mut().zip(codes.chunks_exact(k / 2)).enumerate() {
                    let first_block = (task * TASK_ROWS + r) * k / BLOCK;
                    let blocks = codes.as_chunks::<{ BLOCK / 2 }>().0.iter().zip(x.as_chunks::<BLOCK>().0).enumerate();
                    *out = blocks.map(|(b, (codes, x))| self.scales.of(absmax, first_block + b) * block_product(codes, x)).sum();
                }
            });
        }
        Ok((CpuStorage::F32(out), Shape::from((num_rows, n))))
    }
}

/// One block's part of a sum, without its factor.
fn block_product(codes: &[u8; BLOCK / 2], x: &[f32; BLOCK]) -> f32 {
    let pairs = pairs();
    let mut sums = [0.0f32; 8];
    for (codes, x) in codes.as_chunks::<4>().0.iter().zip(x.as_chunks::<8>().0) {
        for (i, code) in codes.iter().enumerate() {
            let [high, low] = pairs[usize::from(*code)];
            sums[2 * i] += high * x[2 * i];
            sums[2 * i + 1] += low * x[2 * i + 1];
        }
    }
    sums.iter().sum()
}

/// Rows of weights in f32. Operands: codes, absmax.
struct Dequantise {
    first: usize,
    num_rows: usize,
    k: usize,
    scales: Arc<Scales>,
}

impl CustomOp2 for Dequantise {
    fn name(&self) -> &'static str {
        "nf4-dequantise"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (codes, absmax) = (contiguous(s1.as_slice::<u8>()?, l1)?, contiguous(s2.as_slice::<u8>()?, l2)?);
        let (first_block, values) = (self.first * self.k / BLOCK, self.num_rows * self.k);
        let codes = &codes[first_block * BLOCK / 2..][..values / 2];
        let mut out = vec![0.0f32; values];
        out.par_chunks_mut(BLOCK).zip(codes.par_chunks(BLOCK / 2)).enumerate().for_each(|(b, (out, codes))| {
            let factor = self.scales.of(absmax, first_block + b);
            for (out, code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *out = pairs()[usize::from(*code)].map(|value| value * factor);
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((self.num_rows, self.k))))
    }
}

fn contiguous<'a, T>(values: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((begin, end)) => Ok(&values[begin..end]),
        None => bail!("an operand of NF4 is not contiguous"),
    }
}
