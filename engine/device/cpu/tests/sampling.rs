//! Sampling and logprobs go row by row to `sampling/`; here only which row, which slot, and shared rows.

use super::*;
use crate::sampling::{SampleRow, SamplingParams, TokenHistory, sample_row, token_logprobs};

const VOCAB: usize = 101;

#[test]
fn rows_are_sampled_into_their_slots_and_shared_rows_are_not_changed_for_each_other() {
    let device = CpuDevice::new(Some(3)).unwrap();
    let values = Random(41).vec(4 * VOCAB);
    let greedy = SamplingParams::default();
    let biased = SamplingParams { logit_bias: vec![(7, 100.0)], ..SamplingParams::default() };
    let history = TokenHistory::default();
    let row = |logits_row, slot, params, choice| SampleRow {
        logits_row,
        slot,
        params,
        seed: 1,
        stop_ids: &[],
        output_index: 0,
        choice,
        history: &history,
        allowed: None,
    };
    let rows = [row(3, 0, &greedy, 0), row(0, 5, &biased, 0), row(0, 2, &greedy, 1), row(1, 4, &biased, 0)];
    let mut logits = tensor(&device, VOCAB, &values);
    let mut last = vec![-1; 6];
    let outputs = device.sample(&mut logits, &rows, &mut last).and_then(|pending| device.sampled(pending)).unwrap();
    for (row, output) in rows.iter().zip(&outputs) {
        let expected = sample_row(&mut values[row.logits_row * VOCAB..][..VOCAB].to_vec(), row);
        assert_eq!((output, last[row.slot]), (&expected, expected.token as i32));
    }
    assert_eq!((outputs[1].token, outputs[3].token, last[1], last[3]), (7, 7, -1, -1));
}

#[test]
fn logprobs_are_of_the_row_that_is_asked_for() {
    let device = CpuDevice::new(Some(2)).unwrap();
    let values = Random(42).vec(3 * VOCAB);
    let logits = tensor(&device, VOCAB, &values);
    let rows = [(2, 5), (0, 100), (2, 6)];
    let expected: Vec<_> = rows.iter().map(|(row, token)| token_logprobs(&values[row * VOCAB..][..VOCAB], *token, 3)).collect();
    assert_eq!(device.row_logprobs(&logits, &rows, 3).unwrap(), expected);
    assert!(device.row_logprobs(&logits, &[], 3).unwrap().is_empty());
}
