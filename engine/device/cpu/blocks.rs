//! Decoding of weight blocks in registers, for the fused dot products and for panels of dequantised rows.
//!
//! Every decoder hands its values to a `Sink` sixteen at a time in ascending k, each equal bit for bit to `weights/dequant.rs`
//! (but for the sign of zero). Both sinks see the same values in the same order, which makes the matvec and matmul paths agree bitwise.

use super::simd::{LANES, Simd, lanes, lanes_mut};
use crate::weights::format::WeightFormat;

/// Takes the values of a block, sixteen at a time: `index` 0, 1, 2, ...
pub trait Sink<S: Simd> {
    /// Values `16 * index ..` of the block.
    fn put(&mut self, s: S, index: usize, v: S::V);
}

/// acc += w * x.
pub struct Dot<'a, S: Simd> {
    /// The inputs of the block.
    pub x: &'a [f32],
    /// The running sums.
    pub acc: S::V,
}

impl<S: Simd> Sink<S> for Dot<'_, S> {
    #[inline(always)]
    fn put(&mut self, s: S, index: usize, v: S::V) {
        self.acc = s.fma(v, s.load(lanes(self.x, index * LANES)), self.acc);
    }
}

/// out = w.
pub struct Store<'a> {
    /// Room for the block.
    pub out: &'a mut [f32],
}

impl<S: Simd> Sink<S> for Store<'_> {
    #[inline(always)]
    fn put(&mut self, s: S, index: usize, v: S::V) {
        s.store(v, lanes_mut(self.out, index * LANES));
    }
}

/// A weight format in registers.
pub trait Blocks {
    /// Values of a block: a multiple of 16.
    const VALUES: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Decodes one block of `BYTES` bytes.
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K);
}

/// Something to be done with the blocks of a format that is known at run time only.
pub trait ForFormat {
    /// Does it.
    fn run<F: Blocks>(self);
}

/// Runs `work` with the blocks of `format`.
pub fn for_format<W: ForFormat>(format: WeightFormat, work: W) {
    match format {
        WeightFormat::F32 => work.run::<F32>(),
        WeightFormat::F16 => work.run::<F16>(),
        WeightFormat::BF16 => work.run::<BF16>(),
        WeightFormat::Q4_0 => work.run::<Q4_0>(),
        WeightFormat::Q4_1 => work.run::<Q4_1>(),
        WeightFormat::Q5_0 => work.run::<Q5_0>(),
        WeightFormat::Q5_1 => work.run::<Q5_1>(),
        WeightFormat::Q8_0 => work.run::<Q8_0>(),
        WeightFormat::Q4K => work.run::<Q4K>(),
        WeightFormat::Q5K => work.run::<Q5K>(),
        WeightFormat::Q6K => work.run::<Q6K>(),
    }
}

#[inline(always)]
fn bytes<const N: usize>(block: &[u8], start: usize) -> &[u8; N] {
    block[start..start + N].try_into().expect("inside the block")
}

#[inline(always)]
fn half_at<S: Simd>(s: S, block: &[u8], start: usize) -> f32 {
    s.f16(u16::from_le_bytes(*bytes(block, start)))
}

/// Sixteen f32.
pub struct F32;
impl Blocks for F32 {
    const VALUES: usize = 16;
    const BYTES: usize = 64;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        sink.put(s, 0, s.load_f32_bytes(bytes(block, 0)));
    }
}

/// Sixteen IEEE halves.
pub struct F16;
impl Blocks for F16 {
    const VALUES: usize = 16;
    const BYTES: usize = 32;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        sink.put(s, 0, s.load_f16(bytes(block, 0)));
    }
}

/// Sixteen bfloat16.
pub struct BF16;
impl Blocks for BF16 {
    const VALUES: usize = 16;
    const BYTES: usize = 32;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        sink.put(s, 0, s.load_bf16(bytes(block, 0)));
    }
}

/// d * (q - 8), nibbles.
pub struct Q4_0;
impl Blocks for Q4_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 18;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        let d = half_at(s, block, 0);
        let (low, high) = s.affine4(bytes(block, 2), (d, -8.0 * d), (d, -8.0 * d));
        sink.put(s, 0, low);
        sink.put(s, 1, high);
    }
}

/// d * q + m, nibbles.
pub struct Q4_1;
impl Blocks for Q4_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 20;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        let (d, m) = (half_at(s, block, 0), half_at(s, block, 2));
        let (low, high) = s.affine4(bytes(block, 4), (d, m), (d, m));
        sink.put(s, 0, low);
        sink.put(s, 1, high);
    }
}

/// Nibbles at `qs` with a fifth bit from `qh`: d * q + m.
#[inline(always)]
fn five_bits<S: Simd, K: Sink<S>>(s: S, qs: &[u8; 16], qh: &[u8; 4], d: f32, m: f32, sink: &mut K) {
    let q = s.bytes(qs);
    let qh = u32::from_le_bytes(*qh);
    let low = s.add_where(s.u8_f32(s.and(q, 15)), qh as u16, 16.0);
    let high = s.add_where(s.u8_f32(s.shr(q, 4)), (qh >> 16) as u16, 16.0);
    let (d, m) = (s.splat(d), s.splat(m));
    sink.put(s, 0, s.fma(low, d, m));
    sink.put(s, 1, s.fma(high, d, m));
}

/// d * (q - 16), five bits.
pub struct Q5_0;
impl Blocks for Q5_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 22;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        let d = half_at(s, block, 0);
        five_bits(s, bytes(block, 6), bytes(block, 2), d, -16.0 * d, sink);
    }
}

/// d * q + m, five bits.
pub struct Q5_1;
impl Blocks for Q5_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 24;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        let (d, m) = (half_at(s, block, 0), half_at(s, block, 2));
        five_bits(s, bytes(block, 8), bytes(block, 4), d, m, sink);
    }
}

/// d * q, eight bits.
pub struct Q8_0;
impl Blocks for Q8_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 34;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        let d = s.splat(half_at(s, block, 0));
        sink.put(s, 0, s.mul(s.i8_f32(s.bytes(bytes(block, 2))), d));
        sink.put(s, 1, s.mul(s.i8_f32(s.bytes(bytes(block, 18))), d));
    }
}

/// The scale and the negated minimum of sub-block `j` of a Q4_K or Q5_K block.
#[inline(always)]
fn scale_min(b: &[u8; 12], j: usize, d: f32, dmin: f32) -> (f32, f32) {
    let (sc, m) =
        if j < 4 { (b[j] & 63, b[j + 4] & 63) } else { ((b[j + 4] & 15) | (b[j - 4] >> 6 << 4), (b[j + 4] >> 4) | (b[j] >> 6 << 4)) };
    (d * f32::from(sc), -(dmin * f32::from(m)))
}

/// Eight sub-blocks of 32 nibbles with 6-bit scales and minima.
pub struct Q4K;
impl Blocks for Q4K {
    const VALUES: usize = 256;
    const BYTES: usize = 144;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        let (d, dmin) = (half_at(s, block, 0), half_at(s, block, 2));
        let scales: &[u8; 12] = bytes(block, 4);
        for pair in 0..4 {
            let (lo, hi) = (scale_min(scales, 2 * pair, d, dmin), scale_min(scales, 2 * pair + 1, d, dmin));
            let (low0, high0) = s.affine4(bytes(block, 16 + 32 * pair), lo, hi);
            let (low1, high1) = s.affine4(bytes(block, 32 + 32 * pair), lo, hi);
            sink.put(s, 4 * pair, low0);
            sink.put(s, 4 * pair + 1, low1);
            sink.put(s, 4 * pair + 2, high0);
            sink.put(s, 4 * pair + 3, high1);
        }
    }
}

/// As Q4K with a fifth bit: bit `s` of byte `j` belongs to element `j` of sub-block `s`.
pub struct Q5K;
impl Blocks for Q5K {
    const VALUES: usize = 256;
    const BYTES: usize = 176;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        let (d, dmin) = (half_at(s, block, 0), half_at(s, block, 2));
        let scales: &[u8; 12] = bytes(block, 4);
        let high_bits = [s.bytes(bytes(block, 16)), s.bytes(bytes(block, 32))];
        for sub in 0..8 {
            let (d, m) = scale_min(scales, sub, d, dmin);
            let (d, m) = (s.splat(d), s.splat(m));
            for (half, high_bits) in high_bits.iter().enumerate() {
                let q = s.bytes(bytes(block, 48 + 32 * (sub / 2) + 16 * half));
                let q = if sub % 2 == 0 { s.and(q, 15) } else { s.shr(q, 4) };
                let fifth = s.shl(s.and(s.shr(*high_bits, sub as u32), 1), 4);
                sink.put(s, 2 * sub + half, s.fma(s.u8_f32(s.or(q, fifth)), d, m));
            }
        }
    }
}

/// Sixteen sub-blocks of 16 six-bit values with i8 scales: d * sc * (q - 32).
pub struct Q6K;
impl Blocks for Q6K {
    const VALUES: usize = 256;
    const BYTES: usize = 210;
    #[inline(always)]
    fn decode<S: Simd, K: Sink<S>>(s: S, block: &[u8], sink: &mut K) {
        let d = half_at(s, block, 208);
        for half in 0..2 {
            for quarter in 0..4 {
                for part in 0..2 {
                    let low = s.bytes(bytes(block, 64 * half + 32 * (quarter % 2) + 16 * part));
                    let low = if quarter < 2 { s.and(low, 15) } else { s.shr(low, 4) };
                    let high = s.shr(s.bytes(bytes(block, 128 + 32 * half + 16 * part)), 2 * quarter as u32);
                    let index = 8 * half + 2 * quarter + part;
                    let scale = d * f32::from(block[192 + index].cast_signed());
                    let q = s.u8_f32(s.or(low, s.shl(s.and(high, 3), 4)));
                    sink.put(s, index, s.fma(q, s.splat(scale), s.splat(-32.0 * scale)));
                }
            }
        }
    }
}

/// Dequantises one row of `k` values into `out` (at least `k` rounded up to 16; what lies beyond `k` becomes 0).
#[inline(always)]
pub fn store_row<S: Simd, F: Blocks>(s: S, row: &[u8], k: usize, out: &mut [f32]) {
    let whole = k / F::VALUES;
    for b in 0..whole {
        F::decode(s, &row[b * F::BYTES..][..F::BYTES], &mut Store { out: &mut out[b * F::VALUES..][..F::VALUES] });
    }
    if !k.is_multiple_of(F::VALUES) {
        let (block, _) = tail::<F>(row, k, &[]);
        F::decode(s, &block[..F::BYTES], &mut Store { out: &mut out[whole * F::VALUES..][..F::VALUES] });
    }
}

/// The last, partial block of a dense row, and the inputs that belong to it, padded with zeros.
#[inline(always)]
pub fn tail<F: Blocks>(row: &[u8], k: usize, x: &[f32]) -> ([u8; 64], [f32; LANES]) {
    let done = k / F::VALUES;
    let mut block = [0; 64];
    let rest = &row[done * F::BYTES..];
    block[..rest.len()].copy_from_slice(rest);
    let mut inputs = [0.0; LANES];
    let rest = &x[(done * F::VALUES).min(x.len())..];
    inputs[..rest.len()].copy_from_slice(rest);
    (block, inputs)
}
