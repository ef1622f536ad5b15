//! Dequantisation of one row of any `WeightFormat` to f32, bit for bit what the format's reference gives. Scalar: for embedding lookups,
//! tests and as the definition that the SIMD paths are held to.
//!
//! Block layouts follow ggml's `ggml-common.h` and `dequantize_row_*` (MIT); see `format.rs`.

use half::{bf16, f16};

use super::format::WeightFormat;

/// out = the values of `row`; `row.len() == format.row_bytes(out.len())`.
pub fn dequantize_row(format: WeightFormat, row: &[u8], out: &mut [f32]) {
    let (values, bytes) = format.block();
    assert_eq!(out.len() % values, 0, "{} values in blocks of {values}", out.len());
    assert_eq!(row.len(), format.row_bytes(out.len()), "bytes of a {format:?} row of {} values", out.len());
    let block = match format {
        WeightFormat::F32 => |b: &[u8], out: &mut [f32]| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        WeightFormat::F16 => |b: &[u8], out: &mut [f32]| out[0] = half_at(b, 0),
        WeightFormat::BF16 => |b: &[u8], out: &mut [f32]| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        WeightFormat::Q4_0 => |b: &[u8], out: &mut [f32]| nibbles(&b[2..], out, |_, q| half_at(b, 0) * f32::from(q as i8 - 8)),
        WeightFormat::Q4_1 => |b: &[u8], out: &mut [f32]| nibbles(&b[4..], out, |_, q| half_at(b, 0) * f32::from(q) + half_at(b, 2)),
        WeightFormat::Q5_0 => {
            |b: &[u8], out: &mut [f32]| nibbles(&b[6..], out, |i, q| half_at(b, 0) * f32::from((q | fifth(&b[2..], i)) as i8 - 16))
        }
        WeightFormat::Q5_1 => {
            |b: &[u8], out: &mut [f32]| nibbles(&b[8..], out, |i, q| half_at(b, 0) * f32::from(q | fifth(&b[4..], i)) + half_at(b, 2))
        }
        WeightFormat::Q8_0 => q8_0,
        WeightFormat::Q4K => q4_k,
        WeightFormat::Q5K => q5_k,
        WeightFormat::Q6K => q6_k,
    };
    for (bytes, out) in row.chunks_exact(bytes).zip(out.chunks_exact_mut(values)) {
        block(bytes, out);
    }
}

fn half_at(b: &[u8], start: usize) -> f32 {
    f16::from_le_bytes([b[start], b[start + 1]]).to_f32()
}

/// 32 values: low nibbles of 16 bytes, then high nibbles.
fn nibbles(qs: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    for (i, q) in qs.iter().enumerate() {
        out[i] = value(i, q & 15);
        out[i + 16] = value(i + 16, q >> 4);
    }
}

/// Bit `i` of 32, in the place of a fifth bit.
fn fifth(qh: &[u8], i: usize) -> u8 {
    (qh[i / 8] >> (i % 8) & 1) << 4
}

fn q8_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    out.iter_mut().zip(&b[2..]).for_each(|(out, q)| *out = d * f32::from(q.cast_signed()));
}

/// (d * scale, dmin * min) of sub-block `j`; `b` is the 12 bytes of 6-bit scales and minima.
fn scale_min(b: &[u8], j: usize, d: f32, dmin: f32) -> (f32, f32) {
    let (scale, min) =
        if j < 4 { (b[j] & 63, b[j + 4] & 63) } else { ((b[j + 4] & 15) | (b[j - 4] >> 6 << 4), (b[j + 4] >> 4) | (b[j] >> 6 << 4)) };
    (d * f32::from(scale), dmin * f32::from(min))
}

/// Nibble `i` of sub-block `sub`: a pair of sub-blocks shares 32 bytes, low nibbles first.
fn sub_block_nibble(qs: &[u8], sub: usize, i: usize) -> u8 {
    let byte = qs[32 * (sub / 2) + i];
    if sub.is_multiple_of(2) { byte & 15 } else { byte >> 4 }
}

fn q4_k(b: &[u8], out: &mut [f32]) {
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (d, m) = scale_min(&b[4..16], sub, half_at(b, 0), half_at(b, 2));
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * f32::from(sub_block_nibble(&b[16..], sub, i)) - m;
        }
    }
}

fn q5_k(b: &[u8], out: &mut [f32]) {
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (d, m) = scale_min(&b[4..16], sub, half_at(b, 0), half_at(b, 2));
        for (i, out) in out.iter_mut().enumerate() {
            let high = (b[16 + i] >> sub & 1) << 4;
            *out = d * f32::from(sub_block_nibble(&b[48..], sub, i) | high) - m;
        }
    }
}

fn q6_k(b: &[u8], out: &mut [f32]) {
    let (ql, qh, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
        let byte = ql[64 * half + 32 * (quarter % 2) + l];
        let low = if quarter < 2 { byte & 15 } else { byte >> 4 };
        let high = qh[32 * half + l] >> (2 * quarter) & 3;
        *out = d * f32::from(scales[i / 16].cast_signed()) * f32::from((low | high << 4).cast_signed() - 32);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn every_gguf_format_equals_its_golden_bit_for_bit() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/quant");
        let formats = [
            ("q4_0", WeightFormat::Q4_0),
            ("q4_1", WeightFormat::Q4_1),
            ("q5_0", WeightFormat::Q5_0),
            ("q5_1", WeightFormat::Q5_1),
            ("q8_0", WeightFormat::Q8_0),
            ("q4_k", WeightFormat::Q4K),
            ("q5_k", WeightFormat::Q5K),
            ("q6_k", WeightFormat::Q6K),
        ];
        for (name, format) in formats {
            let file = std::fs::read(folder.join(format!("gguf_{name}.safetensors"))).unwrap();
            let tensors = SafeTensors::deserialize(&file).unwrap();
            let (blocks, expected) = (tensors.tensor("blocks").unwrap(), tensors.tensor("dequant").unwrap());
            let k = expected.shape()[1];
            let mut row = vec![0.0; k];
            for (bytes, expected) in blocks.data().chunks_exact(format.row_bytes(k)).zip(expected.data().chunks_exact(4 * k)) {
                dequantize_row(format, bytes, &mut row);
                let bits: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
                assert!(bits == expected, "{name}");
            }
        }
    }

    #[test]
    fn dense_rows() {
        let values = [1.5f32, -0.0, 65504.0];
        let mut out = [0.0; 3];
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        dequantize_row(WeightFormat::F32, &bytes, &mut out);
        assert_eq!(out.map(f32::to_bits), values.map(f32::to_bits));
        let bytes: Vec<u8> = values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        dequantize_row(WeightFormat::F16, &bytes, &mut out);
        assert_eq!(out, values);
        let bytes: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        dequantize_row(WeightFormat::BF16, &bytes, &mut out);
        assert_eq!(out, [1.5, -0.0, 65536.0]);
    }
}
