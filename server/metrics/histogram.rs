//! `Histogram`: values in classes with fixed upper bounds, added without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Classes of one quantity. Values are kept as multiples of `UNIT`, so that the sum is exact and does not depend on the order.
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// Values up to each bound and above the one before; the last class has no bound.
    counts: Box<[AtomicU64]>,
    /// Sum in `UNIT`s.
    sum: AtomicU64,
}

/// Smallest difference that counts: a microsecond of a time, a millionth of a token.
const UNIT: f64 = 1e-6;

/// What a histogram held at one time.
pub(crate) struct Snapshot {
    /// Upper bounds.
    pub(crate) bounds: &'static [f64],
    /// Values up to each bound, all smaller ones included; then all values.
    pub(crate) cumulative: Vec<u64>,
    /// Sum of the values.
    pub(crate) sum: f64,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// Adds a value; negative ones count as 0.
    pub(crate) fn add(&self, value: f64) {
        let class = self.bounds.partition_point(|&bound| bound < value);
        self.counts[class].fetch_add(1, Relaxed);
        self.sum.fetch_add((value / UNIT).round() as u64, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        Snapshot { bounds: self.bounds, cumulative: cumulative(&counts), sum: self.sum.load(Relaxed) as f64 * UNIT }
    }
}

/// Running totals.
pub(crate) fn cumulative(counts: &[u64]) -> Vec<u64> {
    let totals = counts.iter().scan(0, |total, count| {
        *total += count;
        Some(*total)
    });
    totals.collect()
}

/// Bounds of the time to the first token, seconds (vLLM's).
pub(crate) const FIRST_TOKEN_S: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0];

/// Bounds of the time between two tokens, seconds: vLLM's, and four below them.
pub(crate) const TOKEN_S: &[f64] = &[
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

/// Bounds of whole requests and their parts, seconds: vLLM's, and four below them.
pub(crate) const REQUEST_S: &[f64] = &[
    0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// Bounds of token counts.
pub(crate) const TOKENS: &[f64] = &[
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
    200.0,
    500.0,
    1000.0,
    2000.0,
    5000.0,
    10_000.0,
    20_000.0,
    50_000.0,
    100_000.0,
    200_000.0,
    500_000.0,
    1_000_000.0,
];

/// Bounds of the number of outputs.
pub(crate) const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_up_to_its_bound_and_in_all_above() {
        let histogram = Histogram::new(&[1.0, 2.0, 5.0]);
        for value in [0.0, 1.0, 1.000_001, 2.0, 5.5, -3.0] {
            histogram.add(value);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.cumulative, [3, 5, 5, 6]);
        assert!((snapshot.sum - 9.500_001).abs() < 1e-9, "{}", snapshot.sum);
    }

    #[test]
    fn bounds_ascend() {
        for bounds in [FIRST_TOKEN_S, TOKEN_S, REQUEST_S, TOKENS, CHOICES] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
