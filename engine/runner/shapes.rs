//! Shapes of recorded decode steps: few enough to record them all, dense enough that hardly anything is computed in vain.

/// Sequences of the largest recorded step.
const MAX_RECORDED_SEQS: usize = 512;
/// Context length of the smallest shape.
const MIN_CONTEXT: usize = 1024;

/// What a recorded step depends on, beside its runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Sequences, one token each.
    pub num_seqs: usize,
    /// Bound of the context lengths.
    pub max_context_len: usize,
    /// Whether some of them have a prefix in common.
    pub shares_prefixes: bool,
}

impl StepShape {
    /// The smallest shape that holds a step without common prefixes, in an engine with at most `most`; None: too large to be recorded.
    pub fn around(num_seqs: usize, context_len: usize, most: StepShape) -> Option<StepShape> {
        if num_seqs == 0 || num_seqs > MAX_RECORDED_SEQS || num_seqs > most.num_seqs || context_len > most.max_context_len {
            return None;
        }
        let context = context_len.next_power_of_two().max(MIN_CONTEXT);
        Some(StepShape {
            num_seqs: around_seqs(num_seqs).min(most.num_seqs),
            max_context_len: context.min(most.max_context_len),
            shares_prefixes: false,
        })
    }
}

/// 1, 2, 4, 8, 16, then steps of 8 up to 64, of 16 up to 256, of 32 above.
fn around_seqs(num_seqs: usize) -> usize {
    match num_seqs {
        0..=16 => num_seqs.next_power_of_two(),
        17..=64 => num_seqs.next_multiple_of(8),
        65..=256 => num_seqs.next_multiple_of(16),
        _ => num_seqs.next_multiple_of(32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_hold_their_steps_and_are_few() {
        let most = StepShape { num_seqs: 300, max_context_len: 5000, shares_prefixes: false };
        let mut all = Vec::new();
        for num_seqs in 1..=300 {
            for context_len in [1, 1024, 1025, 4000, 4097, 5000] {
                let shape = StepShape::around(num_seqs, context_len, most).unwrap();
                assert!(num_seqs <= shape.num_seqs && shape.num_seqs <= 300 && shape.num_seqs <= (2 * num_seqs).min(num_seqs + 31));
                assert!(context_len <= shape.max_context_len && shape.max_context_len <= 5000);
                all.push(shape);
            }
        }
        all.sort_by_key(|shape| (shape.num_seqs, shape.max_context_len));
        all.dedup();
        assert_eq!(all.len(), 25 * 4);
    }

    #[test]
    fn steps_that_are_too_large_have_no_shape() {
        let most = StepShape { num_seqs: 1000, max_context_len: 4096, shares_prefixes: false };
        for (num_seqs, context_len) in [(0, 1), (513, 1), (1, 4097)] {
            assert_eq!(StepShape::around(num_seqs, context_len, most), None);
        }
        assert_eq!(StepShape::around(2, 1, StepShape { num_seqs: 1, ..most }), None);
    }
}
