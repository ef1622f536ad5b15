//! The tables of small codes: what each 4-bit code, e4m3 byte and e8m0 byte stands for.
//!
//! NF4 and FP4 as in bitsandbytes (MIT), e2m1, e4m3 and e8m0 as in the OCP formats OFP8 and MX.

/// Sixteen values, one a code.
pub type Book = [f32; 16];

/// bitsandbytes NF4.
pub const NF4: Book = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// bitsandbytes FP4; bit 3 is the sign.
pub const FP4: Book = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// e2m1: 4-bit floats of NVFP4 and MXFP4; bit 3 is the sign.
pub const E2M1: Book = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Unsigned integers 0..16, for matrices with zero points.
pub const UINT4: Book = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Integers -8..8 stored with 8 added: symmetric int4.
pub const INT4: Book = [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];

/// The e4m3 byte of 1.
pub const E4M3_ONE: u8 = 0x38;

/// An e4m3fn byte: 4 exponent bits of bias 7, no infinity, NaN at 0x7f and 0xff.
pub const fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = ((byte >> 3 & 15) as u32, (byte & 7) as u32);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        // mantissa * 2^-9
        (0, _) => mantissa as f32 / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// An e8m0 byte: 2^(byte - 127), NaN at 255.
pub const fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22), // 2^-127 is a subnormal
        255 => f32::NAN,
        _ => f32::from_bits((byte as u32) << 23),
    }
}

/// All 256 values of a byte code.
pub fn table(value: impl Fn(u8) -> f32) -> [f32; 256] {
    std::array::from_fn(|byte| value(byte as u8))
}
