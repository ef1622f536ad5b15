//! One 512-bit register a vector.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::mem::transmute;

use super::avx2::e4m3_halves;
use super::{Kernel, LANES, Simd};

/// Proof that the processor has AVX-512 F, BW, DQ, VL (and AVX2, FMA, F16C).
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// The proof, if it holds.
    pub fn detect() -> Option<Avx512> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        all.then_some(Avx512(()))
    }
}

/// Calls one intrinsic, or transmutes an array to or from a vector of its size: `transmute` stands for unaligned loads and stores, whose
/// intrinsics carry overlap checks into every build with debug assertions.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` proves the features; the vectors and arrays are plain data of one size.
        unsafe { $call }
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn entry<K: Kernel>(s: Avx512, kernel: K) -> K::Output {
    kernel.run(s)
}

impl Avx512 {
    /// Lanes i, i + 4, i + 8, i + 12 summed in the order of `sum`.
    #[inline(always)]
    fn fold4(self, v: __m512) -> __m128 {
        op!({
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v))
        })
    }
}

impl Simd for Avx512 {
    type V = __m512;
    type B = __m128i;
    const WIDE: bool = true;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        op!(entry(self, kernel))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        op!(transmute::<[f32; LANES], __m512>(*x))
    }
    #[inline(always)]
    fn load_f32_bytes(self, x: &[u8; 64]) -> Self::V {
        op!(transmute::<[u8; 64], __m512>(*x))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::V {
        op!(_mm512_cvtph_ps(transmute::<[u8; 32], __m256i>(*x)))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Self::V {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(transmute::<[u8; 32], __m256i>(*x)))))
    }
    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        *out = op!(transmute::<__m512, [f32; LANES]>(v));
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        op!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
    }
    #[inline(always)]
    fn pow2(self, v: Self::V) -> Self::V {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127)))))
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        op!({
            let v = self.fold4(v);
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }
    #[inline(always)]
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4] {
        op!({
            let [a, b, c, d] = [self.fold4(v[0]), self.fold4(v[1]), self.fold4(v[2]), self.fold4(v[3])];
            // (x0 + x2, x1 + x3) of two vectors side by side, then the pairs.
            let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
            let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
            let sums = _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd));
            transmute::<__m128, [f32; 4]>(sums)
        })
    }
    #[inline(always)]
    fn max_lane(self, v: Self::V) -> f32 {
        op!(_mm512_reduce_max_ps(v))
    }
    #[inline(always)]
    fn add_where(self, v: Self::V, mask: u16, x: f32) -> Self::V {
        op!(_mm512_mask_add_ps(v, mask, v, _mm512_set1_ps(x)))
    }
    #[inline(always)]
    fn prefetch(self, x: &[u8], ahead: usize) {
        // A prefetch of any address is harmless.
        op!(_mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(ahead).cast()))
    }
    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        op!(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))))
    }
    #[inline(always)]
    fn bytes(self, b: &[u8; 16]) -> Self::B {
        op!(transmute::<[u8; 16], __m128i>(*b))
    }
    #[inline(always)]
    fn and(self, b: Self::B, mask: u8) -> Self::B {
        op!(_mm_and_si128(b, _mm_set1_epi8(mask.cast_signed())))
    }
    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        op!(_mm_or_si128(a, b))
    }
    #[inline(always)]
    fn shr(self, b: Self::B, n: u32) -> Self::B {
        op!(_mm_and_si128(_mm_srl_epi16(b, _mm_cvtsi32_si128(n.cast_signed())), _mm_set1_epi8((0xffu8 >> n).cast_signed())))
    }
    #[inline(always)]
    fn shl(self, b: Self::B, n: u32) -> Self::B {
        op!(_mm_and_si128(_mm_sll_epi16(b, _mm_cvtsi32_si128(n.cast_signed())), _mm_set1_epi8((0xffu8 << n).cast_signed())))
    }
    #[inline(always)]
    fn u8_f32(self, b: Self::B) -> Self::V {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(b)))
    }
    #[inline(always)]
    fn i8_f32(self, b: Self::B) -> Self::V {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b)))
    }
    /// A register holds all 16 values of a nibble: one permute (which reads the low four bits of an index) replaces and + convert + fma.
    #[inline(always)]
    fn affine4(self, b: &[u8; 16], lo: (f32, f32), hi: (f32, f32)) -> (Self::V, Self::V) {
        op!({
            let q = _mm512_cvtepu8_epi32(transmute::<[u8; 16], __m128i>(*b));
            let levels = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
            let low = _mm512_fmadd_ps(levels, _mm512_set1_ps(lo.0), _mm512_set1_ps(lo.1));
            let high = _mm512_fmadd_ps(levels, _mm512_set1_ps(hi.0), _mm512_set1_ps(hi.1));
            (_mm512_permutexvar_ps(q, low), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(q), high))
        })
    }
    /// Each byte in a quadword and shifted into its upper half: two indices, of which the permute reads the low four bits.
    #[inline(always)]
    fn lookup_low_first(self, book: Self::V, codes: &[u8; 8]) -> Self::V {
        op!({
            let q = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*codes)));
            _mm512_permutexvar_ps(_mm512_or_si512(q, _mm512_slli_epi64::<28>(q)), book)
        })
    }
    #[inline(always)]
    fn lookup_high_first(self, book: Self::V, codes: &[u8; 8]) -> Self::V {
        op!({
            let q = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*codes)));
            _mm512_permutexvar_ps(_mm512_or_si512(_mm512_srli_epi64::<4>(q), _mm512_slli_epi64::<32>(q)), book)
        })
    }
    #[inline(always)]
    fn e4m3_f32(self, codes: &[u8; 16]) -> Self::V {
        op!(_mm512_mul_ps(_mm512_cvtph_ps(e4m3_halves(codes)), _mm512_set1_ps(256.0)))
    }
}
