//! The last layer goes on with the rows that get logits: a token's logits, and the cache for those after it, are what they are when it runs
//! for all rows. On a CPU to the bit.

use std::sync::Arc;

use super::super::*;
use super::{BLOCK_SIZE, runner};
use crate::device::cpu::CpuDevice;
use crate::sampling::{SamplingParams, TokenHistory, TokenLogprobs};
use crate::testing::{ARCHS, VOCAB, write_tiny};
use crate::weights::checkpoint::Checkpoint;

/// Alternatives of every logprob.
const TOP: usize = 20;
/// Rows of logits that hold any step of these tests in one group.
const MANY_ROWS: usize = 64;

/// What one sequence does in a step.
#[derive(Clone, Copy)]
struct Chunk {
    sequence: usize,
    start: usize,
    end: usize,
    is_sampled: bool,
    /// Prompt logprobs of this many rows at its end; of all of them where the last layer is to run for all rows.
    num_prompt_rows: usize,
}

const fn middle(sequence: usize, start: usize, end: usize) -> Chunk {
    Chunk { sequence, start, end, is_sampled: false, num_prompt_rows: 0 }
}

const fn last(sequence: usize, start: usize, end: usize) -> Chunk {
    Chunk { is_sampled: true, ..middle(sequence, start, end) }
}

/// Three sequences: chunks in the middle of a prompt, chunks that end one, tokens after it; with where rows are gathered in groups of at
/// most `MANY_ROWS` and of at most two.
const STEPS: [(&[Chunk], RowGather, RowGather); 7] = [
    (&[middle(0, 0, 20)], RowGather::LastLayer, RowGather::LastLayer),
    (&[middle(0, 20, 21)], RowGather::LastLayer, RowGather::LastLayer),
    (&[Chunk { num_prompt_rows: 2, ..middle(0, 21, 32) }, last(1, 0, 9)], RowGather::LastLayer, RowGather::Head),
    (&[last(0, 32, 39), last(1, 9, 10), middle(2, 0, 5)], RowGather::LastLayer, RowGather::LastLayer),
    (&[last(0, 39, 40), last(1, 10, 11), last(2, 5, 8)], RowGather::LastLayer, RowGather::Head),
    (&[last(0, 40, 41), last(2, 8, 9)], RowGather::Never, RowGather::Never),
    (&[last(0, 41, 42), last(1, 11, 12), last(2, 9, 10)], RowGather::Never, RowGather::Head),
];

fn token(sequence: usize, position: usize) -> u32 {
    ((sequence * 7919 + position * 104_729 + position * position * 31) % (VOCAB - 3)) as u32
}

fn state(slot: usize) -> SlotState {
    let params = SamplingParams { logprobs: Some(TOP as u32), ..SamplingParams::default() };
    let history = TokenHistory::new(&params, &[], &[]);
    SlotState { params: Arc::new(params), seed: 1, choice: slot as u32, stop_ids: Arc::new([]), history, mask: None }
}

/// Step `number`. `wants_all`: logits of every row.
fn inputs(number: usize, wants_all: bool) -> StepInputs {
    let mut inputs = StepInputs { id: number as u64, ..StepInputs::default() };
    for &Chunk { sequence, start, end, is_sampled, num_prompt_rows } in STEPS[number].0 {
        if start == 0 {
            inputs.admitted.push((sequence, state(sequence)));
        }
        let num_rows = if wants_all { end - start } else { num_prompt_rows };
        let prompt_logprobs = (num_rows > 0).then(|| PromptRows {
            top: TOP,
            first: end - start - num_rows,
            next_tokens: (end - num_rows..end).map(|position| token(sequence, position + 1)).collect(),
        });
        let blocks = (0..end.div_ceil(BLOCK_SIZE)).map(|block| (4 * sequence + block) as u32);
        let tokens = (start..end).map(|position| token(sequence, position));
        let input = SequenceInput { slot: sequence, start, prompt_logprobs, ..SequenceInput::default() };
        inputs.push(input, tokens, blocks, is_sampled.then_some((sequence, number as u32)));
    }
    inputs
}

/// Runs a step: where its rows were gathered, logprobs of its samples, and of the prompt rows that `STEPS` asks for.
fn run(runner: &mut Runner<CpuDevice>, number: usize, wants_all: bool) -> (RowGather, Vec<TokenLogprobs>) {
    runner.launch(inputs(number, wants_all)).unwrap();
    let gather = runner.step.gather;
    let outputs = runner.finish().unwrap();
    let mut logprobs: Vec<_> = outputs.sampled.into_iter().map(|sample| sample.logprobs.unwrap()).collect();
    for (sequence, rows) in outputs.prompt_logprobs {
        let num_wanted = STEPS[number].0[sequence].num_prompt_rows;
        logprobs.extend_from_slice(&rows[rows.len() - num_wanted..]);
    }
    (gather, logprobs)
}

#[test]
fn rows_without_logits_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for arch in ARCHS {
        let checkpoint = Checkpoint::open(&write_tiny(folder.path(), arch, 1)).unwrap();
        let (mut all, mut gathered, mut pairs) = (runner(&checkpoint, MANY_ROWS), runner(&checkpoint, MANY_ROWS), runner(&checkpoint, 2));
        for (number, (chunks, in_one_group, in_pairs)) in STEPS.iter().enumerate() {
            let what = format!("{arch}, step {number}");
            let (gather, expected) = run(&mut all, number, true);
            assert_eq!(gather, RowGather::Head, "{what}");
            let num_wanted: usize = chunks.iter().map(|chunk| usize::from(chunk.is_sampled) + chunk.num_prompt_rows).sum();
            assert_eq!(expected.len(), num_wanted, "{what}");
            assert_eq!(run(&mut gathered, number, false), (*in_one_group, expected.clone()), "{what}");
            assert_eq!(run(&mut pairs, number, false), (*in_pairs, expected), "{what}, groups of two");
        }
    }
}
