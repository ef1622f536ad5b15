//! Numbers that are the same on any machine: SplitMix64 of a seed and a name, integer arithmetic up to one rounding.

use half::bf16;

/// Standard deviation of the sum of four uniform 16-bit numbers.
const SUM_DEVIATION: f64 = 37837.22;
const SUM_MEAN: i64 = 131_070;
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

fn splitmix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `len` bf16 values, roughly normal, for the tensor `name` of a checkpoint of `seed`.
pub fn noise(seed: u64, name: &str, len: usize, deviation: f64, mean: f64) -> Vec<u16> {
    let base = fnv1a(&format!("{seed}/{name}"));
    let scale = deviation / SUM_DEVIATION;
    let element = |i: usize| {
        let z = splitmix(base.wrapping_add((i as u64 + 1).wrapping_mul(GOLDEN)));
        let sum: i64 = [0, 16, 32, 48].iter().map(|shift| (z >> shift & 0xFFFF) as i64).sum();
        bf16::from_f32((mean + (sum - SUM_MEAN) as f64 * scale) as f32).to_bits()
    };
    (0..len).map(element).collect()
}
