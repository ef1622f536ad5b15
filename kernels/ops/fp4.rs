//! Products in NVFP4 (include/pagoda_fp4.h): activations rounded to e2m1 with an e4m3 scale for 16 columns, times 4-bit tiles of the same.
//! Asynchronous on `stream`, may be captured.

use super::gemm::Epilogue;
use super::w4::W4Matrix;
use super::w4_gemm::W4Output;
use super::{ALIGNMENT, DType, DeviceBytes, Stream, check_range, int, invalid, launch};
use crate::status::{KernelError, Result};
use crate::sys;

/// Values of e2m1, the book of matrices that are multiplied so.
const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
/// Columns of a scale.
const GROUP: usize = 16;
/// Tokens whose scales are copied at once.
const SCALE_TOKENS: usize = 4;
/// Every array begins at a multiple of this.
const ALIGN: usize = 256;

/// Column of each nibble of 16 columns of activations: the order in which tiles of weights meet them.
pub const SLOT_COLUMNS: [usize; GROUP] = [0, 1, 8, 9, 4, 5, 12, 13, 2, 3, 10, 11, 6, 7, 14, 15];

impl W4Matrix {
    /// Whether it may be multiplied in NVFP4: e2m1 in groups of 16 with short scales and no zeros.
    pub fn fits_fp4(&self) -> bool {
        self.book == E2M1 && self.layout.group == GROUP && self.layout.scales_per_tile() == 4 && !self.layout.zeros && self.short_scales
    }
}

/// Rounded activations `[num_tokens, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp4Inputs {
    /// `[num_tokens, k / 2]`: of 16 columns, nibble i is column `SLOT_COLUMNS[i]`.
    pub codes: DeviceBytes,
    /// `[k / 64, ld_scales, 4]` e4m3.
    pub scales: DeviceBytes,
    /// `[num_tokens]` f32.
    pub factors: DeviceBytes,
    /// Tokens that there is room for.
    pub ld_scales: usize,
    /// Columns, a multiple of 64.
    pub k: usize,
}

impl Fp4Inputs {
    fn lens(num_tokens: usize, k: usize) -> [usize; 3] {
        let ld_scales = num_tokens.next_multiple_of(SCALE_TOKENS);
        [num_tokens * k / 2, ld_scales * k / GROUP, num_tokens * 4].map(|len| len.next_multiple_of(ALIGN))
    }

    /// Bytes for so many tokens of `k` columns.
    pub fn bytes(num_tokens: usize, k: usize) -> usize {
        Fp4Inputs::lens(num_tokens, k).iter().sum()
    }

    /// The arrays in memory of `bytes` at least.
    pub fn new(memory: DeviceBytes, num_tokens: usize, k: usize) -> Fp4Inputs {
        let [codes, scales, factors] = Fp4Inputs::lens(num_tokens, k);
        Fp4Inputs {
            codes: memory.first(codes),
            scales: memory.from(codes).first(scales),
            factors: memory.from(codes + scales).first(factors),
            ld_scales: num_tokens.next_multiple_of(SCALE_TOKENS),
            k,
        }
    }

    fn check(&self, op: &'static str, num_tokens: usize) -> Result<()> {
        let Fp4Inputs { ld_scales, k, .. } = *self;
        if num_tokens > ld_scales || !ld_scales.is_multiple_of(SCALE_TOKENS) || k == 0 || !k.is_multiple_of(64) {
            return Err(invalid(op, format!("{num_tokens} of {ld_scales} tokens x {k}, expected k in whole tiles of 64")));
        }
        check_range(op, "codes", self.codes, num_tokens * k / 2, ALIGNMENT)?;
        check_range(op, "scales", self.scales, ld_scales * k / GROUP, ALIGNMENT)?;
        check_range(op, "factors", self.factors, num_tokens * 4, 4)
    }
}

/// Rounds `num_tokens` rows of x, `[num_tokens, k]` bf16. Runs on every GPU.
///
/// # Errors
/// `InvalidArgument` for a range too short or not aligned, `NotBuilt`, `Cuda`.
pub fn fp4_quantize(out: &Fp4Inputs, x: DeviceBytes, num_tokens: usize, stream: Stream) -> Result<()> {
    const OP: &str = "fp4_quantize";
    out.check(OP, num_tokens)?;
    check_range(OP, "x", x, num_tokens * out.k * 2, ALIGNMENT)?;
    let raw = sys::pagoda_fp4_quantize_params {
        codes: out.codes.as_ptr(),
        scales: out.scales.as_ptr(),
        factors: out.factors.as_ptr(),
        x: x.as_ptr::<std::ffi::c_void>(),
        num_tokens: int(OP, "num_tokens", num_tokens)?,
        k: int(OP, "k", out.k)?,
        ld_scales: int(OP, "ld_scales", out.ld_scales)?,
    };
    launch!(pagoda_fp4_quantize, raw, stream)
}

/// Operands of `out[t, i] = epilogue(sum_c x[t, c] * w[i, c] + bias[i]) + residual[t, i]`; sums in f32.
#[derive(Clone, Copy, Debug)]
pub struct Fp4Gemm {
    /// `[num_tokens, columns]` of row stride `ld_out`, `out_dtype`.
    pub out: DeviceBytes,
    /// From `fp4_quantize`.
    pub x: Fp4Inputs,
    /// `[n, k]`, of which `fits_fp4` holds. As in `W4Gemm`, `Epilogue::SiluMul` takes an interleaved one.
    pub w: W4Matrix,
    /// `[n]` f32, gates first.
    pub bias: Option<DeviceBytes>,
    /// Like `out`, and may be `out`.
    pub residual: Option<DeviceBytes>,
    /// Rows of x and out.
    pub num_tokens: usize,
    /// Elements from one row of `out` to the next.
    pub ld_out: usize,
    /// Of `out` and `residual`: F32 or BF16.
    pub out_dtype: DType,
    /// What is made of the sums.
    pub epilogue: Epilogue,
}

/// The product.
///
/// # Errors
/// As `w4_gemm`; `Unsupported` where `has_fp4_gemm` says no, or of another matrix.
pub fn fp4_gemm(p: &Fp4Gemm, stream: Stream) -> Result<()> {
    let raw = lower(p)?;
    launch!(pagoda_fp4_gemm, raw, stream)
}

fn lower(p: &Fp4Gemm) -> Result<sys::pagoda_fp4_gemm_params> {
    const OP: &str = "fp4_gemm";
    let layout = &p.w.layout;
    if !p.w.fits_fp4() || p.x.k != layout.k || p.num_tokens == 0 || !matches!(p.out_dtype, DType::F32 | DType::BF16) {
        let reason = format!("{} x {} by {layout:?} to {:?}", p.num_tokens, p.x.k, p.out_dtype);
        return Err(KernelError::Unsupported { op: OP, reason });
    }
    let Fp4Gemm { out, bias, residual, num_tokens, ld_out, out_dtype, epilogue, .. } = *p;
    W4Output { out, bias, residual, num_tokens, ld_out, out_dtype, epilogue }.check(OP, layout)?;
    p.x.check(OP, p.num_tokens)?;
    Ok(sys::pagoda_fp4_gemm_params {
        w: p.w.lower(OP)?,
        out: p.out.as_ptr(),
        codes: p.x.codes.as_ptr::<u8>(),
        scales: p.x.scales.as_ptr::<u8>(),
        factors: p.x.factors.as_ptr::<f32>(),
        bias: p.bias.map_or(std::ptr::null(), |bias| bias.as_ptr::<f32>()),
        residual: p.residual.map_or(std::ptr::null(), |residual| residual.as_ptr::<std::ffi::c_void>()),
        num_tokens: int(OP, "num_tokens", p.num_tokens)?,
        ld_out: int(OP, "ld_out", p.ld_out)?,
        ld_scales: int(OP, "ld_scales", p.x.ld_scales)?,
        out_dtype: p.out_dtype.code(),
        gated: i32::from(p.epilogue == Epilogue::SiluMul),
    })
}

/// Whether the GPU whose context is current is of compute capability 12.x and this build has code for it.
///
/// # Errors
/// `NotBuilt`, `Cuda`.
#[cfg(have_cuda_kernels)]
pub fn has_fp4_gemm() -> Result<bool> {
    // SAFETY: reads attributes of the current device and of a kernel.
    match unsafe { sys::pagoda_has_fp4_gemm() } {
        sys::PAGODA_UNSUPPORTED => Ok(false),
        status => crate::status::check("has_fp4_gemm", status, String::new).map(|()| true),
    }
}

/// Whether there is a kernel for the current GPU.
///
/// # Errors
/// `NotBuilt`: this binary holds none.
#[cfg(not(have_cuda_kernels))]
pub fn has_fp4_gemm() -> Result<bool> {
    Err(KernelError::NotBuilt)
}

#[cfg(test)]
mod tests {
    use super::super::w4::W4Layout;
    use super::*;

    fn range(address: u64, len: usize) -> DeviceBytes {
        // SAFETY: the address is only checked, nothing is launched with it.
        unsafe { DeviceBytes::new(address, len) }
    }

    fn params() -> Fp4Gemm {
        let layout = W4Layout { n: 32, k: 128, group: 16, zeros: false, interleaved: true };
        let (num_tokens, k) = (3, 128);
        Fp4Gemm {
            out: range(0x1000, (2 * 40 + 32) * 2),
            x: Fp4Inputs::new(range(0x2000, Fp4Inputs::bytes(num_tokens, k)), num_tokens, k),
            w: W4Matrix { tiles: range(0x4000, layout.bytes()), layout, book: E2M1, scale_factor: 0.25, short_scales: true },
            bias: Some(range(0x8000, 32 * 4)),
            residual: None,
            num_tokens,
            ld_out: 40,
            out_dtype: DType::BF16,
            epilogue: Epilogue::SiluMul,
        }
    }

    #[test]
    fn a_valid_call_is_lowered() {
        let raw = lower(&params()).expect("valid");
        assert_eq!((raw.num_tokens, raw.w.n, raw.w.k, raw.ld_out, raw.ld_scales, raw.gated), (3, 32, 128, 40, 4, 1));
    }

    #[test]
    fn wrong_arguments_are_named() {
        type Change = fn(&mut Fp4Gemm);
        let cases: [(Change, &str); 8] = [
            (|p| p.w.short_scales = false, "unsupported: 3 x 128"),
            (|p| p.w.book[3] = 1.25, "unsupported: 3 x 128"),
            (|p| p.w.layout.group = 32, "unsupported: 3 x 128"),
            (|p| p.out_dtype = DType::F16, "to F16"),
            (|p| p.ld_out = 15, "ld_out 15, expected at least 16"),
            (|p| p.num_tokens = 5, "5 of 4 tokens"),
            (|p| p.x.codes = range(0x2000, 191), "codes holds 191 bytes, needs 192"),
            (|p| p.w.layout.interleaved = false, "not interleaved"),
        ];
        for (change, expected) in cases {
            let mut p = params();
            change(&mut p);
            p.out = range(0x1000, 1 << 12);
            let message = lower(&p).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message} does not say {expected}");
        }
    }

    /// What lane l of a warp has of tile and operands, as `quant/fp4_fragment.cuh` moves it, in words of which each nibble or byte names its
    /// origin: the arithmetic of the kernel against the layouts of pagoda_w4.h and of mma.m16n8k64.
    #[test]
    fn every_weight_meets_its_column_and_scale() {
        // Word j of lane 4 g + t: (row, column) of its nibbles.
        let word = |l: usize, j: usize| -> [(usize, usize); 8] {
            let (g, c) = (l / 4, 16 * j + l % 4 * 2);
            [(g, c), (g, c + 1), (g + 8, c), (g + 8, c + 1), (g, c + 8), (g, c + 9), (g + 8, c + 8), (g + 8, c + 9)]
        };
        // Bytes `half` and `half` + 2 of both words.
        let row = |lower: [(usize, usize); 8], upper: [(usize, usize); 8], half: usize| -> Vec<(usize, usize)> {
            [lower, upper].iter().flat_map(|word| [2 * half, 2 * half + 1, 2 * half + 4, 2 * half + 5].map(|i| word[i])).collect()
        };
        for l in 0..32 {
            let (g, t) = (l / 4, l % 4);
            for register in 0..4 {
                let j = t / 2 + register / 2 * 2;
                let (own, got) = (word(l, j), word(l ^ 2, j));
                let (lower, upper) = if t < 2 { (own, got) } else { (got, own) };
                for (i, (w_row, w_col)) in row(lower, upper, register % 2).into_iter().enumerate() {
                    // Operand a: row and k of nibble i of the register; operand b has x at k = 64 * step + slot.
                    let (a_row, k) = (g + register % 2 * 8, register / 2 * 32 + 8 * t + i);
                    let x_col = k / GROUP * GROUP + SLOT_COLUMNS[k % GROUP];
                    assert_eq!((w_row, w_col), (a_row, x_col), "lane {l}, register {register}, nibble {i}");
                    assert_eq!(w_col / GROUP, k / GROUP, "the group of a scale");
                }
            }
        }
    }

    /// Bytes of the scale register: (row, group).
    #[test]
    fn every_row_has_its_scales() {
        let codes = |l: usize| [(l / 4, l % 4), (l / 4 + 8, l % 4)];
        let pair = |l: usize| match l % 2 {
            0 => [codes(l)[0], codes(l ^ 1)[0]],
            _ => [codes(l ^ 1)[1], codes(l)[1]],
        };
        for l in (0..32).filter(|l| l % 4 < 2) {
            let register = [pair(l), pair(l ^ 2)].concat();
            let row = l / 4 + l % 4 * 8;
            assert_eq!(register, [0, 1, 2, 3].map(|group| (row, group)), "lane {l}");
        }
    }
}
