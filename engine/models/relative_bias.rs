//! What MPNet adds to scores by distance: near ones have a bucket each, farther ones share buckets of growing width. The formula is that of
//! `relative_position_bucket` in transformers (Apache-2.0).

use crate::device::Device;
use crate::device::encoder::RelativeBias;
use crate::error::Result;
use crate::weights::encoder_checkpoint::EncoderCheckpoint;

/// Buckets, half of them for keys behind the query.
pub const NUM_BUCKETS: usize = 32;
/// Distances from here on share the last bucket.
const MAX_DISTANCE: f64 = 128.0;

/// The bucket of a key `distance` positions behind its query.
fn bucket(distance: i64) -> usize {
    const HALF: usize = NUM_BUCKETS / 2;
    const EXACT: usize = HALF / 2;
    let side = if distance > 0 { HALF } else { 0 };
    let far = distance.unsigned_abs() as usize;
    if far < EXACT {
        return side + far;
    }
    // In the reference's precision, which decides at the borders.
    let share = (far as f32 / EXACT as f32).ln() / (MAX_DISTANCE / EXACT as f64).ln() as f32;
    side + (EXACT + (share * (HALF - EXACT) as f32) as usize).min(HALF - 1)
}

/// The bias of every head and distance, for sequences of up to `reach` tokens; None where the model has none.
///
/// # Errors
/// A damaged checkpoint or a device that is out of memory.
pub fn load<D: Device>(device: &D, checkpoint: &EncoderCheckpoint, reach: usize) -> Result<Option<RelativeBias<D>>> {
    let Some(table) = checkpoint.relative_bias()? else { return Ok(None) };
    let num_heads = checkpoint.config.num_heads;
    let mut buckets = vec![0.0; table.n() * num_heads];
    buckets.chunks_exact_mut(num_heads).enumerate().for_each(|(row, out)| table.dequantize_row(row, out));
    let last = reach as i64 - 1;
    let of_head = |head: usize| {
        let buckets = &buckets;
        (-last..=last).map(move |distance| buckets[bucket(distance) * num_heads + head])
    };
    let values: Vec<f32> = (0..num_heads).flat_map(of_head).collect();
    Ok(Some(RelativeBias { values: device.load_vector(&values)?, reach }))
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn near_distances_have_their_own_bucket_and_far_ones_share() {
        // (distance, bucket) as transformers computes them.
        let cases = [(0, 0), (-1, 1), (-7, 7), (-8, 8), (-11, 8), (-12, 9), (-16, 10), (-32, 12), (-64, 14), (-127, 15), (-128, 15)];
        for (distance, expected) in cases {
            assert_eq!(bucket(distance), expected, "{distance}");
            if distance != 0 {
                assert_eq!(bucket(-distance), 16 + expected, "{}", -distance);
            }
        }
        assert_eq!((bucket(-5000), bucket(5000)), (15, 31));
    }
}
