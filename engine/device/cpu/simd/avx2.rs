//! Two 256-bit registers a vector: lanes 0..8 and 8..16.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{Kernel, LANES, Simd, unroll};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The proof, if it holds.
    pub fn detect() -> Option<Avx2> {
        let all = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        all.then_some(Avx2(()))
    }
}

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pair(__m256, __m256);

/// Calls one intrinsic, or transmutes an array to or from a vector of its size: `transmute` stands for unaligned loads and stores, whose
/// intrinsics carry overlap checks into every build with debug assertions.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` proves the features; the vectors and arrays are plain data of one size.
        unsafe { $call }
    };
}

/// Sixteen e4m3fn floats as halves, which have one exponent bit more: they are 2^8 times too small.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn e4m3_halves(codes: &[u8; 16]) -> __m256i {
    // SAFETY: the caller has the feature; the vector and the array are plain data of one size.
    unsafe {
        let q = _mm256_cvtepu8_epi16(transmute::<[u8; 16], __m128i>(*codes));
        let sign = _mm256_and_si256(_mm256_slli_epi16::<8>(q), _mm256_set1_epi16(i16::MIN));
        let rest = _mm256_and_si256(_mm256_slli_epi16::<7>(q), _mm256_set1_epi16(0x3f80));
        _mm256_or_si256(sign, rest)
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn entry<K: Kernel>(s: Avx2, kernel: K) -> K::Output {
    kernel.run(s)
}

impl Avx2 {
    /// Lanes i, i + 4, i + 8, i + 12 summed in the order of `sum`.
    #[inline(always)]
    fn fold4(self, v: Pair) -> __m128 {
        op!({
            let v = _mm256_add_ps(v.0, v.1);
            _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v))
        })
    }

    /// Each of eight bytes in a quadword.
    #[inline(always)]
    fn quadwords(self, codes: &[u8; 8]) -> [__m256i; 2] {
        op!({
            let b = _mm_cvtsi64_si128(i64::from_le_bytes(*codes));
            [_mm256_cvtepu8_epi64(b), _mm256_cvtepu8_epi64(_mm_srli_epi64::<32>(b))]
        })
    }

    /// Entries of a table of 16 by the low four bits of each index: bit 3 chooses the half.
    #[inline(always)]
    fn permute(self, book: Pair, index: __m256i) -> __m256 {
        op!({
            let (low, high) = (_mm256_permutevar8x32_ps(book.0, index), _mm256_permutevar8x32_ps(book.1, index));
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
        })
    }
}

impl Simd for Avx2 {
    type V = Pair;
    type B = __m128i;
    const WIDE: bool = false;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        op!(entry(self, kernel))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        op!(Pair(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        op!(transmute::<[f32; LANES], Pair>(*x))
    }
    #[inline(always)]
    fn load_f32_bytes(self, x: &[u8; 64]) -> Self::V {
        op!(transmute::<[u8; 64], Pair>(*x))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::V {
        op!({
            let [low, high] = transmute::<[u8; 32], [__m128i; 2]>(*x);
            Pair(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        })
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Self::V {
        op!({
            let [low, high] = transmute::<[u8; 32], [__m128i; 2]>(*x);
            let (low, high) = (_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high));
            Pair(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        })
    }
    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        *out = op!(transmute::<Pair, [f32; LANES]>(v));
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        op!(Pair(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        op!(Pair(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        op!(Pair(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        op!(Pair(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        op!(Pair(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        op!(Pair(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        op!(Pair(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }
    /// One half after the other: 2 x 3 accumulators of two registers leave four for a half's inputs and weight.
    #[inline(always)]
    fn outer<const T: usize, const R: usize>(self, x: &[&[[f32; LANES]]; T], w: &[&[[f32; LANES]]; R], i: usize, acc: &mut [[Pair; R]; T]) {
        let mut inputs = [op!(_mm256_setzero_ps()); T];
        unroll!(I < T => inputs[I] = self.load(&x[I][i]).0);
        unroll!(J < R => {
            let weight = self.load(&w[J][i]).0;
            unroll!(I < T => acc[I][J].0 = op!(_mm256_fmadd_ps(weight, inputs[I], acc[I][J].0)));
        });
        unroll!(I < T => inputs[I] = self.load(&x[I][i]).1);
        unroll!(J < R => {
            let weight = self.load(&w[J][i]).1;
            unroll!(I < T => acc[I][J].1 = op!(_mm256_fmadd_ps(weight, inputs[I], acc[I][J].1)));
        });
    }
    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        op!(Pair(
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v.0),
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v.1)
        ))
    }
    #[inline(always)]
    fn pow2(self, v: Self::V) -> Self::V {
        op!({
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(v.0), _mm256_set1_epi32(127));
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(v.1), _mm256_set1_epi32(127));
            Pair(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)))
        })
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
            let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
            let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
            let sums = _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd));
            transmute::<__m128, [f32; 4]>(sums)
        })
    }
    #[inline(always)]
    fn max_lane(self, v: Self::V) -> f32 {
        op!({
            let v = _mm256_max_ps(v.0, v.1);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        })
    }
    #[inline(always)]
    fn add_where(self, v: Self::V, mask: u16, x: f32) -> Self::V {
        op!({
            let (mask, x) = (_mm256_set1_epi32(i32::from(mask)), _mm256_set1_ps(x));
            let (low, high) =
                (_mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), _mm256_setr_epi32(256, 512, 1024, 2048, 4096, 8192, 16384, 32768));
            let low = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(mask, low), low));
            let high = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(mask, high), high));
            Pair(_mm256_add_ps(v.0, _mm256_and_ps(low, x)), _mm256_add_ps(v.1, _mm256_and_ps(high, x)))
        })
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
        op!(Pair(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(b, b)))))
    }
    #[inline(always)]
    fn i8_f32(self, b: Self::B) -> Self::V {
        op!(Pair(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(b, b)))))
    }
    #[inline(always)]
    fn lookup_low_first(self, book: Self::V, codes: &[u8; 8]) -> Self::V {
        let [low, high] = self.quadwords(codes);
        let low = op!(_mm256_or_si256(low, _mm256_slli_epi64::<28>(low)));
        let high = op!(_mm256_or_si256(high, _mm256_slli_epi64::<28>(high)));
        Pair(self.permute(book, low), self.permute(book, high))
    }
    #[inline(always)]
    fn lookup_high_first(self, book: Self::V, codes: &[u8; 8]) -> Self::V {
        let [low, high] = self.quadwords(codes);
        let low = op!(_mm256_or_si256(_mm256_srli_epi64::<4>(low), _mm256_slli_epi64::<32>(low)));
        let high = op!(_mm256_or_si256(_mm256_srli_epi64::<4>(high), _mm256_slli_epi64::<32>(high)));
        Pair(self.permute(book, low), self.permute(book, high))
    }
    #[inline(always)]
    fn e4m3_f32(self, codes: &[u8; 16]) -> Self::V {
        op!({
            let [low, high] = transmute::<__m256i, [__m128i; 2]>(e4m3_halves(codes));
            let factor = _mm256_set1_ps(256.0);
            Pair(_mm256_mul_ps(_mm256_cvtph_ps(low), factor), _mm256_mul_ps(_mm256_cvtph_ps(high), factor))
        })
    }
}
