//! GGUF blocks that are a book of sixteen with a scale, as codes and scales apart: Q4_0.

use rayon::prelude::*;

use super::books::INT4;
use super::coded::{Code, CodedMatrix, Nibble, Zeros};
use super::scales::{ScaleValues, Scales};
use crate::device::HostWeight;
use crate::weights::format::WeightFormat;
use crate::weights::mapped::MappedBytes;

/// Values of a block.
pub const BLOCK: usize = 32;
/// f16 scale, then a nibble a value: element i in the low half of byte i, element i + 16 in its high half.
const BLOCK_BYTES: usize = 18;

/// The same matrix: every weight has the same bits. `weight` is of Q4_0.
pub fn q4_0(weight: &HostWeight) -> CodedMatrix {
    assert_eq!(weight.format, WeightFormat::Q4_0, "{}", weight.name);
    let (n, k) = (weight.n, weight.k);
    let blocks = weight.bytes.as_slice().as_chunks::<BLOCK_BYTES>().0;
    let codes = MappedBytes::build(n * k / 2, |out| {
        out.par_chunks_exact_mut(BLOCK / 2).zip(blocks).for_each(|(out, block)| {
            let nibbles = &block[2..];
            let (low, high) = out.split_at_mut(BLOCK / 4);
            for (i, (low, high)) in low.iter_mut().zip(high).enumerate() {
                let (a, b) = (nibbles[2 * i], nibbles[2 * i + 1]);
                *low = a & 15 | b << 4;
                *high = a >> 4 | b & 0xf0;
            }
        });
    });
    let scales = MappedBytes::build(2 * blocks.len(), |out| {
        out.as_chunks_mut::<2>().0.iter_mut().zip(blocks).for_each(|(out, block)| out.copy_from_slice(&block[..2]));
    });
    CodedMatrix {
        name: weight.name.clone(),
        n,
        k,
        code: Code::Four { book: INT4, first: Nibble::Low },
        codes,
        scales: Scales::new(1, BLOCK, k, ScaleValues::F16(scales)),
        zeros: Zeros::None,
        order: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::dequant::dequantize_row;

    #[test]
    fn codes_of_blocks_have_the_bits_of_the_blocks() {
        let (n, k) = (3, 128);
        let mut bytes: Vec<u8> = (0..n * k / BLOCK * BLOCK_BYTES).map(|i| (i * 151 + i / 7 * 13) as u8).collect();
        // Scales that are numbers.
        bytes.chunks_exact_mut(BLOCK_BYTES).enumerate().for_each(|(i, block)| {
            block[..2].copy_from_slice(&half::f16::from_f32(0.01 * i as f32 - 0.05).to_le_bytes());
        });
        let weight = HostWeight { name: "q4".into(), format: WeightFormat::Q4_0, n, k, bytes: MappedBytes::from_slice(&bytes) };
        let matrix = q4_0(&weight);
        let (mut got, mut want) = (vec![0.0f32; k], vec![0.0f32; k]);
        for row in 0..n {
            matrix.dequantize_row(row, &mut got);
            dequantize_row(weight.format, weight.rows(row, 1), &mut want);
            assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "row {row}: {got:?} {want:?}");
        }
    }
}
