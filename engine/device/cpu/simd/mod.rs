//! Sixteen lanes of f32 at every level of the instruction set, and how a kernel is compiled for each.
//!
//! Kernels are generic over `Simd` and always inlined into one entry a level that carries the target features. A level's token exists
//! only after the processor was asked. Sixteen lanes everywhere (one, two or four registers) and fused multiply-add on both x86 levels
//! mean that AVX2 and AVX-512 give the same bits; the portable level rounds its products and differs in the last bits.
//!
//! The shape of `vectorize` follows the pulp crate (MIT).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;

/// Runs a statement for each index below a constant bound of at most 8, with the index a constant. A loop would do the same only where the
/// compiler unrolls it before it decides what lives in registers.
macro_rules! unroll {
    ($i:ident < $n:expr => $body:expr) => {
        unroll!(@each $i, $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@each $i:ident, $n:expr, $body:expr, $($index:literal)*) => {
        $({
            const $i: usize = $index;
            if $i < $n {
                $body;
            }
        })*
    };
}
pub(in crate::device::cpu) use unroll;

/// Lanes of `Simd::V`.
pub const LANES: usize = 16;

/// A piece of work compiled once a level. `run` must be `#[inline(always)]`, and so must all it calls with a `Simd`.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Does the work with the instructions of `S`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// One level: vectors of 16 f32 and of 16 bytes.
pub trait Simd: Copy + Send + Sync + 'static {
    /// 16 f32.
    type V: Copy;
    /// 16 bytes.
    type B: Copy;
    /// Whether a `V` is one register and there are 32 of them: tiles may be larger.
    const WIDE: bool;

    /// Runs `kernel` with the level's target features on.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Loads 16 f32.
    fn load(self, x: &[f32; LANES]) -> Self::V;
    /// Loads 16 little-endian f32 at any address.
    fn load_f32_bytes(self, x: &[u8; 64]) -> Self::V;
    /// Loads 16 IEEE halves at any address.
    fn load_f16(self, x: &[u8; 32]) -> Self::V;
    /// Loads 16 bfloat16 at any address.
    fn load_bf16(self, x: &[u8; 32]) -> Self::V;
    /// Stores 16 f32.
    fn store(self, v: Self::V, out: &mut [f32; LANES]);
    /// a + b.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a - b.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// max(a, b); b where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// min(a, b); b where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// acc[t][r] += x[t][i] * w[r][i] for T, R of at most 8: the step of a product tile.
    #[inline(always)]
    fn outer<const T: usize, const R: usize>(
        self,
        x: &[&[[f32; LANES]]; T],
        w: &[&[[f32; LANES]]; R],
        i: usize,
        acc: &mut [[Self::V; R]; T],
    ) {
        let mut inputs = [self.splat(0.0); T];
        unroll!(I < T => inputs[I] = self.load(&x[I][i]));
        unroll!(J < R => {
            let weight = self.load(&w[J][i]);
            unroll!(I < T => acc[I][J] = self.fma(weight, inputs[I], acc[I][J]));
        });
    }
    /// Nearest integer, ties to even.
    fn round(self, v: Self::V) -> Self::V;
    /// 2^v for integral v in -127..=127; exactly 0 at -127.
    fn pow2(self, v: Self::V) -> Self::V;
    /// Sum of the lanes: i with i + 8, then + 4, + 2, + 1.
    fn sum(self, v: Self::V) -> f32;
    /// The four sums, each in the order of `sum`.
    #[inline(always)]
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4] {
        [self.sum(v[0]), self.sum(v[1]), self.sum(v[2]), self.sum(v[3])]
    }
    /// Largest lane.
    fn max_lane(self, v: Self::V) -> f32;
    /// v + x in the lanes whose bit of `mask` is set.
    fn add_where(self, v: Self::V, mask: u16, x: f32) -> Self::V;

    /// Asks for the cache line `ahead` bytes after the start of `x`, inside it or not.
    fn prefetch(self, x: &[u8], ahead: usize);
    /// An IEEE half as f32.
    fn f16(self, bits: u16) -> f32;
    /// Loads 16 bytes.
    fn bytes(self, b: &[u8; 16]) -> Self::B;
    /// Each byte & mask.
    fn and(self, b: Self::B, mask: u8) -> Self::B;
    /// a | b.
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// Each byte >> n.
    fn shr(self, b: Self::B, n: u32) -> Self::B;
    /// Each byte << n.
    fn shl(self, b: Self::B, n: u32) -> Self::B;
    /// Bytes as unsigned values.
    fn u8_f32(self, b: Self::B) -> Self::V;
    /// Bytes as signed values.
    fn i8_f32(self, b: Self::B) -> Self::V;
    /// Sixteen 4-bit codes, two a byte and the low nibble first, as the entries of `book` they name.
    fn lookup_low_first(self, book: Self::V, codes: &[u8; 8]) -> Self::V;
    /// As `lookup_low_first` with the high nibble first.
    fn lookup_high_first(self, book: Self::V, codes: &[u8; 8]) -> Self::V;
    /// Sixteen e4m3fn floats. The codes of NaN become 480: checkpoints hold none.
    fn e4m3_f32(self, codes: &[u8; 16]) -> Self::V;
    /// Low nibbles as `q * lo.0 + lo.1`, high nibbles as `q * hi.0 + hi.1`, each rounded once.
    #[inline(always)]
    fn affine4(self, b: &[u8; 16], lo: (f32, f32), hi: (f32, f32)) -> (Self::V, Self::V) {
        let b = self.bytes(b);
        let (low, high) = (self.u8_f32(self.and(b, 15)), self.u8_f32(self.shr(b, 4)));
        (self.fma(low, self.splat(lo.0), self.splat(lo.1)), self.fma(high, self.splat(hi.0), self.splat(hi.1)))
    }
}

/// Instruction set that the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimdLevel {
    /// What the target guarantees, through the compiler's own vectorisation.
    Portable,
    /// AVX2 + FMA + F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
}

impl SimdLevel {
    /// The levels of this processor, best last.
    pub fn available() -> Vec<SimdLevel> {
        let mut levels = vec![SimdLevel::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx2::detect().map(|_| SimdLevel::Avx2));
            levels.extend(Avx512::detect().map(|_| SimdLevel::Avx512));
        }
        levels
    }

    /// The best level of this processor.
    pub fn best() -> SimdLevel {
        *SimdLevel::available().last().expect("the portable level is always there")
    }

    /// Lower-case name for logs.
    pub fn name(self) -> &'static str {
        match self {
            SimdLevel::Portable => "portable",
            SimdLevel::Avx2 => "avx2",
            SimdLevel::Avx512 => "avx512",
        }
    }
}

/// A detected level; runs kernels.
#[derive(Clone, Copy)]
pub enum Dispatch {
    /// Portable code.
    Portable(Portable),
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Dispatch {
    /// The level if this processor has it.
    pub fn new(level: SimdLevel) -> Option<Dispatch> {
        match level {
            SimdLevel::Portable => Some(Dispatch::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => Avx2::detect().map(Dispatch::Avx2),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => Avx512::detect().map(Dispatch::Avx512),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// Runs `kernel` at this level.
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Dispatch::Portable(s) => s.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx2(s) => s.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx512(s) => s.vectorize(kernel),
        }
    }
}

/// The 16 elements of `x` from `start` as an array.
#[inline(always)]
pub fn lanes<T>(x: &[T], start: usize) -> &[T; LANES] {
    x[start..start + LANES].try_into().expect("sixteen elements")
}

/// The 16 elements of `x` from `start` as an array, to be written.
#[inline(always)]
pub fn lanes_mut<T>(x: &mut [T], start: usize) -> &mut [T; LANES] {
    (&mut x[start..start + LANES]).try_into().expect("sixteen elements")
}
