//! Loops over a row of logits, written so that the compiler vectorises them; the same results on every machine.
//!
//! `exp` is the polynomial of Cephes' `expf` (Stephen Moshier, public domain use), about 1 ulp; plain f32 operations in a fixed order.

/// Elements that are summed in f32 lanes before they go into f64.
const CHUNK: usize = 1024;
const LANES: usize = 16;

/// The largest element and its lowest index; None when all are NaN or -inf.
pub(super) fn argmax(row: &[f32]) -> Option<(usize, f32)> {
    let (mut best, mut best_chunk) = (f32::NEG_INFINITY, None);
    for (index, chunk) in row.chunks(CHUNK).enumerate() {
        let max = max(chunk);
        if max > best {
            (best, best_chunk) = (max, Some(index));
        }
    }
    let start = best_chunk? * CHUNK;
    let offset = row[start..].iter().position(|&x| x == best).expect("the chunk holds its maximum");
    Some((start + offset, best))
}

/// The largest element; -inf when all are NaN.
pub(super) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(chunks.remainder()).fold(f32::NEG_INFINITY, |best, &x| if x > best { x } else { best })
}

/// Number of elements above `bound`.
pub(super) fn count_above(row: &[f32], bound: f32) -> u32 {
    row.chunks(CHUNK).map(|chunk| chunk.iter().map(|&x| u32::from(x > bound)).sum::<u32>()).sum()
}

/// A weight in [0, 1] to a multiple of 2^-35, the nearest (even): sums of 2^18 of them are exact in f64, in whatever order they are added,
/// so every device finds the same token. What is lost is less than the error of a weight.
#[inline(always)]
pub(super) fn mass(weight: f32) -> f64 {
    /// Its last binary place is the 35th behind the point.
    const ROUND: f64 = (1u64 << 17) as f64;
    (f64::from(weight) + ROUND) - ROUND
}

/// Sum of masses.
pub(super) fn sum_mass(weights: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let mut parts = weights.chunks_exact(LANES);
    for part in &mut parts {
        for (lane, &weight) in lanes.iter_mut().zip(part) {
            *lane += mass(weight);
        }
    }
    lanes.iter().sum::<f64>() + parts.remainder().iter().map(|&weight| mass(weight)).sum::<f64>()
}

/// Sum of exp(x - max).
pub(super) fn sum_exp(row: &[f32], max: f32) -> f64 {
    row.chunks(CHUNK).map(|chunk| f64::from(lane_sum(chunk, |x| exp_or_zero(x - max)))).sum()
}

/// row = exp((row - max) * scale); NaN and -inf become 0.
pub(super) fn exp_in_place(row: &mut [f32], max: f32, scale: f32) {
    for x in row {
        *x = exp_or_zero((*x - max) * scale);
    }
}

/// Elements below `bound` become 0.
pub(super) fn zero_below(row: &mut [f32], bound: f32) {
    for x in row {
        *x = if *x < bound { 0.0 } else { *x };
    }
}

#[inline(always)]
fn lane_sum(chunk: &[f32], map: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut parts = chunk.chunks_exact(LANES);
    for part in &mut parts {
        for (lane, &x) in lanes.iter_mut().zip(part) {
            *lane += map(x);
        }
    }
    let tail: f32 = parts.remainder().iter().map(|&x| map(x)).sum();
    lanes.iter().sum::<f32>() + tail
}

/// exp(x) for x <= 0; 0 below the normal range and for NaN.
#[inline(always)]
fn exp_or_zero(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it leaves a rounded integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if x >= -87.0 { p * f32::from_bits(exponent) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        let mut x = 0.0f32;
        while x > -86.9 {
            let (got, want) = (f64::from(exp_or_zero(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 2e-7, "exp({x}) = {got}, not {want}");
            x -= 0.003_7;
        }
        for x in [f32::NAN, f32::NEG_INFINITY, -1e30, -87.1] {
            assert_eq!(exp_or_zero(x), 0.0, "{x}");
        }
        assert_eq!(exp_or_zero(0.0), 1.0);
    }

    #[test]
    fn argmax_takes_the_lowest_index() {
        let mut row = vec![0.0f32; 3000];
        assert_eq!(argmax(&row), Some((0, 0.0)));
        (row[1500], row[2900], row[3]) = (2.0, 2.0, f32::NAN);
        assert_eq!(argmax(&row), Some((1500, 2.0)));
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), None);
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY, f32::INFINITY]), Some((1, f32::INFINITY)));
    }

    #[test]
    fn masses_add_up_exactly_in_any_order() {
        let row: Vec<f32> = (0..100_000u32).map(|i| (-((i.wrapping_mul(2_654_435_761) >> 12) as f32) / 40_000.0).exp()).collect();
        let forward: f64 = row.iter().map(|&w| mass(w)).sum();
        let backward: f64 = row.iter().rev().map(|&w| mass(w)).sum();
        assert_eq!((sum_mass(&row), backward), (forward, forward));
        assert!(
            row.iter()
                .all(|&w| (mass(w) - f64::from(w)).abs() <= f64::from(2.0f32.powi(-36)) && (mass(w) * 2.0f64.powi(35)).fract() == 0.0)
        );
        assert_eq!((mass(0.0), mass(1.0), mass(2.0f32.powi(-37))), (0.0, 1.0, 0.0));
    }

    #[test]
    fn sums_and_counts() {
        let row: Vec<f32> = (0..5000).map(|i| i as f32).collect();
        assert_eq!(sum_mass(&[0.5; 4999]), 2499.5);
        assert_eq!(count_above(&row, 4989.5), 10);
        assert!((sum_exp(&[0.0; 2000], 0.0) - 2000.0).abs() < 1e-6);
    }
}
