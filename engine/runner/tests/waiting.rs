//! Steps whose sampling waits for the tokens of the step before: queued early or one after the other, they give the same tokens.

use std::sync::Arc;

use serde_json::json;

use super::super::*;
use super::{BLOCK_SIZE, runner};
use crate::grammar::{Compiler, Format, Grammar, Limits, SlotMask};
use crate::sampling::{SamplingParams, TokenHistory};
use crate::testing::{VOCAB, write_tiny};
use crate::text::Tokenizer;
use crate::weights::checkpoint::{Checkpoint, TextConfig, TokenizerSource};

const EOS: u32 = VOCAB as u32 - 2;
const PROMPT: [u32; 3] = [5, 6, 7];

fn grammar(folder: &std::path::Path) -> Grammar {
    let tokenizer = Tokenizer::from_source(&TokenizerSource::File(folder.join("tokenizer.json")), &TextConfig::default()).unwrap();
    let text = move |id: u32| (!tokenizer.is_special(id)).then(|| tokenizer.token_bytes(id));
    let compiler = Compiler::new(Limits::default(), VOCAB, &[EOS], text);
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"]});
    compiler.compile(&Format::JsonSchema(schema).into()).unwrap()
}

fn state(params: &SamplingParams, choice: u32) -> SlotState {
    let stop_ids: Arc<[u32]> = Arc::new([EOS]);
    SlotState {
        params: Arc::new(params.clone()),
        seed: 9,
        choice,
        stop_ids: stop_ids.clone(),
        history: TokenHistory::new(params, &PROMPT, &[]),
        mask: params.grammar.as_ref().map(|grammar| SlotMask::start(grammar, stop_ids, 0, &[])),
    }
}

/// Step `number` of two sequences: one in a grammar, one with penalties; their inputs are in flight after the first step.
fn step(number: usize, params: &[SamplingParams; 2]) -> StepInputs {
    let mut inputs = StepInputs { id: number as u64, ..StepInputs::default() };
    for (slot, params) in params.iter().enumerate() {
        let (start, tokens) = if number == 0 { (0, PROMPT.to_vec()) } else { (PROMPT.len() + number - 1, vec![0]) };
        if number == 0 {
            inputs.admitted.push((slot, state(params, slot as u32)));
        }
        let num_blocks = (start + tokens.len()).div_ceil(BLOCK_SIZE) as u32;
        let sequence = SequenceInput { slot, start, input_in_flight: number > 0, ..SequenceInput::default() };
        inputs.push(sequence, tokens, (0..num_blocks).map(|block| 4 * slot as u32 + block), [(slot, number as u32)]);
    }
    inputs
}

fn tokens(outputs: &StepOutputs) -> Vec<u32> {
    assert!(outputs.failed.is_empty(), "{:?}", outputs.failed);
    outputs.sampled.iter().map(|sample| sample.token).collect()
}

#[test]
fn sampling_waits_for_earlier_tokens_and_gives_the_same() {
    const NUM_STEPS: usize = 24;
    let folder = tempfile::tempdir().unwrap();
    let path = write_tiny(folder.path(), "llama", 1);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let sampled = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let params = [
        SamplingParams { grammar: Some(grammar(&path)), ..sampled.clone() },
        SamplingParams { frequency_penalty: 1.0, repetition_penalty: 1.3, ..sampled },
    ];

    let mut plain = runner(&checkpoint, 4);
    let expected: Vec<Vec<u32>> = (0..NUM_STEPS)
        .map(|number| {
            plain.launch(step(number, &params)).unwrap();
            tokens(&plain.finish().unwrap())
        })
        .collect();
    // As the step thread does it: one step ahead, resumed after every finish.
    let mut ahead = runner(&checkpoint, 4);
    ahead.launch(step(0, &params)).unwrap();
    for number in 1..=NUM_STEPS {
        if number < NUM_STEPS {
            ahead.launch(step(number, &params)).unwrap();
            assert!(matches!(ahead.launched[1], Launched::Waiting(_)), "step {number}");
        }
        assert_eq!(tokens(&ahead.finish().unwrap()), expected[number - 1], "step {}", number - 1);
        ahead.resume();
        assert!(ahead.launched.front().is_none_or(|step| matches!(step, Launched::Running(_))));
    }
    // A step that is finished while it waits samples then.
    let mut pairs = runner(&checkpoint, 4);
    for first in (0..NUM_STEPS).step_by(2) {
        for number in [first, first + 1] {
            pairs.launch(step(number, &params)).unwrap();
        }
        assert!(matches!(pairs.launched[1], Launched::Waiting(_)), "step {first}");
        for number in [first, first + 1] {
            assert_eq!(tokens(&pairs.finish().unwrap()), expected[number], "step {number}");
        }
    }
}
