//! Random 4-bit matrices in tiles, made on the host from what pagoda_w4.h says.

use half::{bf16, f16};
use pagoda_kernels::ops::w4::W4Layout;

/// On all scales.
pub const SCALE_FACTOR: f32 = 1.0 / 4096.0;

/// SplitMix64.
pub struct Noise(pub u64);

impl Noise {
    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [-1, 1), as bf16.
    pub fn values(&mut self, len: usize) -> Vec<bf16> {
        (0..len).map(|_| bf16::from_f64((self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0)).collect()
    }
}

/// Whole numbers, which bf16 holds.
pub const WHOLE: [f32; 16] = [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
/// Of bitsandbytes.
pub const NF4: [f32; 16] = [
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

/// Random codes, scales and zeros of a matrix `[n, k]`.
pub struct RandomMatrix {
    /// `[n, k]`, one a byte.
    pub codes: Vec<u8>,
    /// `[n, groups]`, in units of `SCALE_FACTOR`.
    pub scales: Vec<f16>,
    /// `[n, groups]`; zeros where the layout has none.
    pub zeros: Vec<u8>,
}

impl RandomMatrix {
    /// Codes are uniform, scales within a factor of three, of 8 significant bits where they are short, zeros below eight.
    pub fn new(layout: &W4Layout, short_scales: bool, noise: &mut Noise) -> RandomMatrix {
        let groups = layout.n * layout.groups();
        let scale = |bits: u64| if short_scales { 8 * (64 + bits % 128) } else { 512 + bits };
        RandomMatrix {
            codes: (0..layout.n * layout.k).map(|_| (noise.bits() >> 60) as u8).collect(),
            scales: (0..groups).map(|_| f16::from_f64(scale(noise.bits() >> 54) as f64)).collect(),
            zeros: (0..groups).map(|_| if layout.zeros { (noise.bits() >> 61) as u8 } else { 0 }).collect(),
        }
    }

    /// `[n, k / 2]`, the smaller column in the low half.
    pub fn packed_codes(&self) -> Vec<u8> {
        self.codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect()
    }

    /// Tiles as pagoda_w4.h draws them, and the weights that they stand for: `[n, k]`.
    pub fn tiles(&self, layout: &W4Layout, book: &[f32; 16]) -> (Vec<u8>, Vec<f64>) {
        let (n, k, groups) = (layout.n, layout.k, layout.groups());
        let (cols, per_tile) = (k / 64, layout.scales_per_tile());
        let mut tiles = vec![0u8; layout.bytes()];
        let mut weights = vec![0.0; n * k];
        for row in 0..n {
            let half = n / 2;
            let (tile_row, r) = match layout.interleaved {
                false => (row / 16, row % 16),
                true => (row % half / 8, row % half % 8 + row / half * 8),
            };
            for col in 0..k {
                let at = (tile_row * cols + col / 64) * layout.tile_bytes();
                let (c, group) = (col % 64, row * groups + col / layout.group);
                let byte = at + 16 * (4 * (r % 8) + c % 8 / 2) + 4 * (c / 16) + 2 * (c % 16 / 8) + r / 8;
                tiles[byte] |= self.codes[row * k + col] << (4 * (c % 2));
                let factor = at + 512 + 2 * (16 * (c / 16 * per_tile / 4) + 2 * (r % 8) + r / 8);
                tiles[factor..factor + 2].copy_from_slice(&self.scales[group].to_le_bytes());
                if layout.zeros {
                    let zero = factor + 32 * per_tile;
                    tiles[zero..zero + 2].copy_from_slice(&f16::from_f32(f32::from(self.zeros[group])).to_le_bytes());
                }
                let code = f64::from(book[usize::from(self.codes[row * k + col])]);
                weights[row * k + col] = (code - f64::from(self.zeros[group])) * self.scales[group].to_f64() * f64::from(SCALE_FACTOR);
            }
        }
        (tiles, weights)
    }
}
