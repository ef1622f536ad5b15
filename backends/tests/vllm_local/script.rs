//! An engine that says what a test wrote down: the real engine thread over a runner that reads tokens from a script.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pagoda_backends::{GenerateEvent, GenerationConfig, Parts, StopReason, TokenInfo, Usage, VllmLocal};
use pagoda_engine::core::{EngineConfig, start};
use pagoda_engine::runner::{StepInputs, StepOutputs};
use pagoda_engine::sampling::{SampleOutput, TokenLogprobs};
use pagoda_engine::testing::{CHAT_TEMPLATE, VOCAB, write_tiny};
use pagoda_engine::text::{ChatTemplate, Tokenizer};
use pagoda_engine::weights::checkpoint::{GenerationDefaults, TextConfig, TokenizerSource};
use pagoda_scheduler::SchedulerConfig;

/// Longest prompt plus output of the scripted engine.
pub const MAX_MODEL_LEN: usize = 64;
/// End of turn.
pub const EOS: u32 = VOCAB as u32 - 2;

/// A special token of the tokeniser that no answer needs.
pub const MARK: &str = "<|im_start|>";

/// A backend over a script, and what the test needs to write one.
pub struct Scripted {
    pub backend: VllmLocal,
    /// Held: no step ends.
    pub gate: Arc<Mutex<()>>,
}

/// The tokeniser of the tiny checkpoints.
pub fn tokenizer() -> Tokenizer {
    tokenizer_with(MARK)
}

/// The same with another text of its special token `MARK`.
pub fn tokenizer_with(mark: &str) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let file = write_tiny(folder.path(), "llama", 1).join("tokenizer.json");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(MARK));
    std::fs::write(&file, text.replace(MARK, mark)).unwrap();
    from_file(&file)
}

fn from_file(path: &Path) -> Tokenizer {
    Tokenizer::from_source(&TokenizerSource::File(path.to_path_buf()), &TextConfig::default()).unwrap()
}

/// One token a byte: what the tokeniser calls the 256 bytes, so that any text can be cut anywhere.
pub fn bytes_as_tokens(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let of_byte: HashMap<u8, u32> = (0..VOCAB as u32)
        .filter(|&token| !tokenizer.is_special(token))
        .filter_map(|token| match tokenizer.token_bytes(token).as_slice() {
            [byte] => Some((*byte, token)),
            _ => None,
        })
        .collect();
    text.bytes().map(|byte| of_byte[&byte]).collect()
}

/// An engine whose output `choice` says `script[choice]`, then repeats its last token.
pub fn scripted(script: Vec<Vec<u32>>, with_template: bool) -> Scripted {
    scripted_with(script, with_template.then_some(CHAT_TEMPLATE))
}

/// The same with a chat template.
pub fn scripted_with(script: Vec<Vec<u32>>, template: Option<&str>) -> Scripted {
    scripted_in(tokenizer(), script, template)
}

/// The same with a tokeniser.
pub fn scripted_in(tokenizer: Tokenizer, script: Vec<Vec<u32>>, template: Option<&str>) -> Scripted {
    let gate = Arc::new(Mutex::new(()));
    let config = EngineConfig {
        scheduler: SchedulerConfig {
            block_size: 4,
            num_blocks: 64,
            max_num_seqs: 4,
            max_num_batched_tokens: 32,
            min_chunk: 1,
            max_model_len: MAX_MODEL_LEN,
            prefix_caching: true,
            max_waiting: 4,
        },
        vocab_size: VOCAB,
        eos_token_ids: vec![EOS],
        step_ahead: true,
        restart_on_failure: false,
    };
    let (closed, mut choices) = (gate.clone(), HashMap::new());
    let execute = move |inputs: StepInputs| {
        drop(closed.lock());
        Ok(answer(&script, &mut choices, &inputs))
    };
    let chat_template = template.map(|source| ChatTemplate::new(source, &TextConfig::default()).unwrap());
    let backend = VllmLocal::from_parts(Parts {
        handle: start(config, execute).unwrap(),
        tokenizer,
        chat_template,
        eos_token_ids: vec![EOS],
        generation: GenerationDefaults { temperature: Some(0.5), top_k: Some(0), ..GenerationDefaults::default() },
        tool_dialect: None,
    });
    Scripted { backend, gate }
}

fn answer(script: &[Vec<u32>], choices: &mut HashMap<usize, usize>, inputs: &StepInputs) -> StepOutputs {
    for (slot, state) in &inputs.admitted {
        choices.insert(*slot, state.choice as usize);
    }
    let sampled = inputs.samples.iter().map(|&(slot, output_idx)| {
        let words = &script[choices[&slot] % script.len()];
        let token = words[(output_idx as usize).min(words.len() - 1)];
        let logprobs = TokenLogprobs { token, logprob: -0.5, rank: 1, top: vec![(token, -0.5), (EOS, -2.0)] };
        SampleOutput { token, logprobs: Some(logprobs) }
    });
    StepOutputs { id: inputs.id, sampled: sampled.collect(), ..StepOutputs::default() }
}

/// Greedy, 32 tokens.
pub fn config() -> GenerationConfig {
    GenerationConfig { max_tokens: Some(32), temperature: 0.0, ..GenerationConfig::default() }
}

/// A whole stream, checked for order: `Started` first, one `Finished` a choice, nothing after it, `Done` last.
#[derive(Default)]
pub struct Seen {
    pub prompt: Vec<u32>,
    pub texts: Vec<String>,
    /// Of all choices, as it came.
    pub reasoning: String,
    pub tokens: Vec<Vec<TokenInfo>>,
    pub reasons: Vec<Option<StopReason>>,
    pub usage: Usage,
}

impl Seen {
    pub fn of(events: Vec<GenerateEvent>, n: usize) -> Seen {
        let mut seen = Seen { texts: vec![String::new(); n], tokens: vec![Vec::new(); n], reasons: vec![None; n], ..Seen::default() };
        let num_events = events.len();
        for (idx, event) in events.into_iter().enumerate() {
            match event {
                GenerateEvent::Started { prompt_token_ids, .. } => {
                    assert_eq!(idx, 0);
                    seen.prompt = prompt_token_ids;
                }
                GenerateEvent::Delta { choice, text, tokens } => {
                    assert_eq!(seen.reasons[choice as usize], None, "no text after the end");
                    seen.texts[choice as usize].push_str(&text);
                    seen.tokens[choice as usize].extend(tokens);
                }
                GenerateEvent::Reasoning { choice, text, tokens } => {
                    assert!(seen.texts[choice as usize].is_empty(), "reasoning comes before the answer");
                    seen.reasoning.push_str(&text);
                    seen.tokens[choice as usize].extend(tokens);
                }
                GenerateEvent::Finished { choice, reason } => {
                    assert_eq!(seen.reasons[choice as usize].replace(reason), None, "one end a choice");
                }
                GenerateEvent::Done(usage) => {
                    assert_eq!(idx + 1, num_events, "Done is the last event");
                    seen.usage = usage;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        assert!(seen.reasons.iter().all(Option::is_some), "every choice ends");
        seen
    }
}
