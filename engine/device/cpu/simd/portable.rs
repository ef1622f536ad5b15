//! Sixteen lanes as an array: the compiler vectorises it for whatever the target has.

use super::{Kernel, LANES, Simd};

/// The portable level.
#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn map<T: Copy, U: Copy + Default>(a: [T; LANES], f: impl Fn(T) -> U) -> [U; LANES] {
    let mut out = [U::default(); LANES];
    for i in 0..LANES {
        out[i] = f(a[i]);
    }
    out
}

impl Simd for Portable {
    type V = [f32; LANES];
    type B = [u8; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }
    #[inline(always)]
    fn load_f32_bytes(self, x: &[u8; 64]) -> Self::V {
        let mut out = [0.0; LANES];
        for (out, bytes) in out.iter_mut().zip(x.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bytes);
        }
        out
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::V {
        let mut out = [0.0; LANES];
        for (out, bytes) in out.iter_mut().zip(x.as_chunks::<2>().0) {
            *out = half::f16::from_le_bytes(*bytes).to_f32();
        }
        out
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Self::V {
        let mut out = [0.0; LANES];
        for (out, bytes) in out.iter_mut().zip(x.as_chunks::<2>().0) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
        out
    }
    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        *out = v;
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // A fused product is a library call where the target has none, so it is used where it is an instruction.
        let mut out = c;
        for i in 0..LANES {
            out[i] = if cfg!(target_arch = "aarch64") { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] };
        }
        out
    }
    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 leaves no fraction bits; exact for |v| < 2^22, and exp is clamped far below that.
        const MAGIC: f32 = 12_582_912.0;
        map(v, |v| (v + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn pow2(self, v: Self::V) -> Self::V {
        map(v, |v| f32::from_bits(((v as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut s = [0.0f32; 8];
        for i in 0..8 {
            s[i] = v[i] + v[i + 8];
        }
        let s = [s[0] + s[4], s[1] + s[5], s[2] + s[6], s[3] + s[7]];
        (s[0] + s[2]) + (s[1] + s[3])
    }
    #[inline(always)]
    fn max_lane(self, v: Self::V) -> f32 {
        let mut best = v[0];
        for x in v {
            best = if x > best { x } else { best };
        }
        best
    }
    #[inline(always)]
    fn add_where(self, v: Self::V, mask: u16, x: f32) -> Self::V {
        let mut out = v;
        for (i, out) in out.iter_mut().enumerate() {
            *out += if mask >> i & 1 == 1 { x } else { 0.0 };
        }
        out
    }
    #[inline(always)]
    fn prefetch(self, _: &[u8], _: usize) {}
    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        half::f16::from_bits(bits).to_f32()
    }
    #[inline(always)]
    fn bytes(self, b: &[u8; 16]) -> Self::B {
        *b
    }
    #[inline(always)]
    fn and(self, b: Self::B, mask: u8) -> Self::B {
        map(b, |b| b & mask)
    }
    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        let mut out = a;
        for i in 0..LANES {
            out[i] |= b[i];
        }
        out
    }
    #[inline(always)]
    fn shr(self, b: Self::B, n: u32) -> Self::B {
        map(b, |b| b >> n)
    }
    #[inline(always)]
    fn shl(self, b: Self::B, n: u32) -> Self::B {
        map(b, |b| b << n)
    }
    #[inline(always)]
    fn u8_f32(self, b: Self::B) -> Self::V {
        map(b, f32::from)
    }
    #[inline(always)]
    fn i8_f32(self, b: Self::B) -> Self::V {
        map(b, |b| f32::from(b.cast_signed()))
    }
    #[inline(always)]
    fn lookup_low_first(self, book: Self::V, codes: &[u8; 8]) -> Self::V {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = book[usize::from(codes[i / 2] >> (4 * (i % 2)) & 15)];
        }
        out
    }
    #[inline(always)]
    fn lookup_high_first(self, book: Self::V, codes: &[u8; 8]) -> Self::V {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = book[usize::from(codes[i / 2] >> (4 - 4 * (i % 2)) & 15)];
        }
        out
    }
    #[inline(always)]
    fn e4m3_f32(self, codes: &[u8; 16]) -> Self::V {
        // The same 4 exponent and 3 mantissa bits read as an f32 are 2^120 times too small.
        map(*codes, |b| f32::from_bits(u32::from(b & 0x80) << 24 | u32::from(b & 0x7f) << 20) * f32::from_bits((127 + 120) << 23))
    }
}
