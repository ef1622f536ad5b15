//! Top-k, top-p, min-p and the draw over a row of weights (exp of scaled logits, the largest is 1), without sorting the row.
//!
//! Weights are counted into buckets by their leading bits (sign, exponent, 5 bits of mantissa: order is kept), so the bucket in which a
//! filter's boundary lies is found by walking buckets from the top, and only that bucket is sorted. Equal weights count by id. Bucket 0
//! holds nothing but zeros: weights are 0 or normal numbers. Shares are of masses (`vector::mass`), whose sums are exact.

use super::vector;

/// What stays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    /// The k largest; 0: all.
    pub(super) top_k: usize,
    /// Of these, the smallest set of largest ones whose share is at least this; 1: all.
    pub(super) top_p: f32,
    /// Of these, the ones of at least this weight, relative to the largest; 0: all.
    pub(super) min_p: f32,
}

const SHIFT: u32 = 18;
/// Buckets of weights in [0, 1].
const NUM_BUCKETS: usize = (1.0f32.to_bits() >> SHIFT) as usize + 1;

fn bucket(weight: f32) -> usize {
    ((weight.to_bits() >> SHIFT) as usize).min(NUM_BUCKETS - 1)
}

/// The smallest weight of a bucket.
fn floor(bucket: usize) -> f32 {
    f32::from_bits((bucket as u32) << SHIFT)
}

/// Sets the weights that do not stay to 0. weights: `[vocab]`, each in [0, 1], one of them 1.
pub(super) fn filter(weights: &mut [f32], filter: Filter) {
    let top_k = if filter.top_k == 0 || filter.top_k >= weights.len() { None } else { Some(filter.top_k) };
    let top_p = if filter.top_p >= 1.0 { None } else { Some(f64::from(filter.top_p)) };
    if top_k.is_some() || top_p.is_some() {
        let mut histogram = Histogram::new(weights);
        if let Some(count) = top_k {
            histogram.keep_count(weights, count);
        }
        if let Some(share) = top_p {
            histogram.keep_share(weights, share);
        }
    }
    if filter.min_p > 0.0 {
        vector::zero_below(weights, filter.min_p);
    }
}

struct Histogram {
    counts: Vec<u32>,
    masses: Vec<f64>,
}

impl Histogram {
    fn new(weights: &[f32]) -> Histogram {
        let mut histogram = Histogram { counts: vec![0; NUM_BUCKETS], masses: vec![0.0; NUM_BUCKETS] };
        for &weight in weights {
            let bucket = bucket(weight);
            histogram.counts[bucket] += 1;
            histogram.masses[bucket] += vector::mass(weight);
        }
        histogram
    }

    /// The `count` largest stay.
    fn keep_count(&mut self, weights: &mut [f32], count: usize) {
        let mut left = count;
        for bucket in (1..NUM_BUCKETS).rev() {
            let in_bucket = self.counts[bucket] as usize;
            if in_bucket > left {
                let order = sorted_bucket(weights, bucket);
                return self.cut(weights, bucket, &order[left..]);
            }
            left -= in_bucket;
            if left == 0 {
                return self.cut(weights, bucket, &[]);
            }
        }
    }

    /// The smallest set of largest ones with at least `share` of the mass stays.
    fn keep_share(&mut self, weights: &mut [f32], share: f64) {
        let target = share * self.masses.iter().rev().sum::<f64>();
        let mut mass = 0.0;
        for bucket in (1..NUM_BUCKETS).rev() {
            if self.counts[bucket] == 0 || mass + self.masses[bucket] < target {
                mass += self.masses[bucket];
                continue;
            }
            let order = sorted_bucket(weights, bucket);
            let mut kept = 0;
            while kept < order.len() && mass < target {
                mass += vector::mass(weights[order[kept] as usize]);
                kept += 1;
            }
            return self.cut(weights, bucket, &order[kept..]);
        }
    }

    /// Zeroes `dropped`, which are in `bucket`, and everything below that bucket.
    fn cut(&mut self, weights: &mut [f32], bucket: usize, dropped: &[u32]) {
        for &id in dropped {
            self.masses[bucket] -= vector::mass(weights[id as usize]);
            weights[id as usize] = 0.0;
        }
        self.counts[bucket] -= dropped.len() as u32;
        self.counts[..bucket].fill(0);
        self.masses[..bucket].fill(0.0);
        vector::zero_below(weights, floor(bucket));
    }
}

/// Ids of a bucket's weights, largest first, equal ones by id.
fn sorted_bucket(weights: &[f32], wanted: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..weights.len() as u32).filter(|&id| bucket(weights[id as usize]) == wanted).collect();
    ids.sort_by(|&a, &b| weights[b as usize].total_cmp(&weights[a as usize]).then(a.cmp(&b)));
    ids
}

/// The token at `uniform` in [0, 1) of the weights' mass, in the order of ids. At least one weight is 1.
pub(super) fn draw(weights: &[f32], uniform: f64) -> u32 {
    const CHUNK: usize = 1024;
    let masses: Vec<f64> = weights.chunks(CHUNK).map(vector::sum_mass).collect();
    let mut left = uniform * masses.iter().sum::<f64>();
    let mut last = 0;
    for (index, &mass) in masses.iter().enumerate() {
        if mass == 0.0 {
            continue;
        }
        if left >= mass && masses[index + 1..].iter().any(|&mass| mass > 0.0) {
            left -= mass;
            continue;
        }
        for (offset, &weight) in weights[index * CHUNK..].iter().take(CHUNK).enumerate() {
            let mass = vector::mass(weight);
            if mass > 0.0 {
                last = (index * CHUNK + offset) as u32;
                left -= mass;
                if left < 0.0 {
                    return last;
                }
            }
        }
        return last;
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule by a full sort, in f64.
    fn oracle(weights: &[f32], filter: Filter) -> Vec<u32> {
        let mut order: Vec<u32> = (0..weights.len() as u32).filter(|&id| weights[id as usize] > 0.0).collect();
        order.sort_by(|&a, &b| weights[b as usize].total_cmp(&weights[a as usize]).then(a.cmp(&b)));
        if filter.top_k > 0 {
            order.truncate(filter.top_k);
        }
        if filter.top_p < 1.0 {
            let total: f64 = order.iter().map(|&id| f64::from(weights[id as usize])).sum();
            let mut mass = 0.0;
            let kept = order.iter().position(|&id| {
                mass += f64::from(weights[id as usize]);
                mass >= f64::from(filter.top_p) * total
            });
            order.truncate(kept.map_or(order.len(), |at| at + 1));
        }
        order.retain(|&id| weights[id as usize] >= filter.min_p);
        order.sort_unstable();
        order
    }

    /// `flatness` 0 is a uniform row; larger rows are more peaked. Some weights are equal, some 0.
    fn row(len: usize, flatness: f32, seed: u32) -> Vec<f32> {
        let mut row: Vec<f32> = (0..len as u32)
            .map(|i| {
                let hash = i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 16;
                if hash % 11 == 0 { 0.0 } else { (-((hash % 1000) as f32) / 1000.0 * flatness).exp() }
            })
            .collect();
        row[len / 2] = 1.0;
        row
    }

    #[test]
    fn filters_agree_with_a_full_sort() {
        for len in [1, 2, 17, 1023, 1025, 5000] {
            for flatness in [0.0, 0.5, 5.0, 40.0] {
                for (top_k, top_p, min_p) in [
                    (0, 0.9, 0.0),
                    (0, 0.01, 0.0),
                    (5, 1.0, 0.0),
                    (1, 1.0, 0.0),
                    (50, 0.5, 0.0),
                    (700, 0.95, 0.1),
                    (0, 1.0, 0.3),
                    (9999, 0.999, 0.0),
                ] {
                    let filter_of = Filter { top_k, top_p, min_p };
                    let before = row(len, flatness, len as u32);
                    let mut after = before.clone();
                    filter(&mut after, filter_of);
                    let kept: Vec<u32> = (0..len as u32).filter(|&id| after[id as usize] > 0.0).collect();
                    assert_eq!(kept, oracle(&before, filter_of), "len {len} flatness {flatness} {filter_of:?}");
                    assert!(kept.iter().all(|&id| after[id as usize] == before[id as usize]));
                }
            }
        }
    }

    #[test]
    fn draws_follow_the_mass() {
        let mut weights = vec![0.0; 3000];
        (weights[5], weights[2000], weights[2999]) = (0.5, 1.0, 0.5);
        for (uniform, expected) in [(0.0, 5), (0.249, 5), (0.251, 2000), (0.749, 2000), (0.751, 2999), (0.999_999_999_999, 2999)] {
            assert_eq!(draw(&weights, uniform), expected, "{uniform}");
        }
        assert_eq!(draw(&[0.0, 1.0, 0.0], 0.5), 1);
    }
}
