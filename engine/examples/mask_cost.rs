//! What the masks of constrained decoding cost on the host: `cargo run --release --example mask_cost -p pagoda-engine [-- tokenizer.json [streams]]`.
//!
//! Without a tokeniser: a vocabulary of 151,936 made-up tokens whose lengths and kinds are like those of Qwen2.5's. Every stream follows
//! its grammar with tokens drawn at random from its mask, as a model without an opinion would: the worst case for caches.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagoda_engine::grammar::{Compiler, Format, Grammar, Limits, SlotMask};
use pagoda_engine::text::Tokenizer;
use pagoda_engine::weights::checkpoint::{TextConfig, TokenizerSource};
use serde_json::json;

const VOCAB: usize = 151_936;
const STEPS: usize = 128;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().map(PathBuf::from);
    let streams: usize = arguments.next().map_or(Ok(64), |number| number.parse())?;
    let (compiler, eos) = match path {
        Some(path) => of_file(path)?,
        None => (Compiler::new(Limits::default(), VOCAB, &[VOCAB as u32 - 1], made_up), VOCAB as u32 - 1),
    };
    let started = Instant::now();
    compiler.compile(&Format::Regex("x".into()).into())?;
    println!("vocabulary, once a model: {:?}", started.elapsed());
    for (name, format) in formats() {
        let started = Instant::now();
        let grammar = compiler.compile(&format.into())?;
        let compiled = started.elapsed();
        let cold = run(&grammar, eos, streams);
        let warm = run(&grammar, eos, streams);
        println!("{name}: compiled in {compiled:?}; {streams} streams, a step: {cold}; the same again: {warm}");
    }
    Ok(())
}

fn of_file(path: PathBuf) -> Result<(Compiler, u32), Error> {
    let tokenizer = Tokenizer::from_source(&TokenizerSource::File(path), &TextConfig::default())?;
    let vocab = tokenizer.vocab_size();
    let eos = (0..vocab as u32).rev().find(|&id| tokenizer.is_special(id)).ok_or("no special token")?;
    let text = move |id: u32| (!tokenizer.is_special(id)).then(|| tokenizer.token_bytes(id)).filter(|bytes| !bytes.is_empty());
    Ok((Compiler::new(Limits::default(), vocab, &[eos], text), eos))
}

fn formats() -> Vec<(&'static str, Format)> {
    let text = json!({"type": "string", "maxLength": 60});
    let item = json!({
        "type": "object",
        "properties": {"name": text, "count": {"type": "integer"}, "unit": {"enum": ["piece", "gram"]}, "note": {"type": "string"}},
        "required": ["name", "count", "unit", "note"],
    });
    vec![
        ("json schema", Format::JsonSchema(json!({"type": "array", "items": item, "minItems": 500}))),
        ("any json object", Format::JsonSchema(json!({"type": "object"}))),
        ("regex", Format::Regex(r"([A-Z][a-z]{1,12} [a-z ]{1,40}\. ){500}".into())),
        ("recursive ebnf", Format::Grammar("root ::= \"(\" item* \")\"\nitem ::= root | [a-z] | [0-9] \".\"\n".into())),
    ]
}

/// Times of a step: all masks of a batch, from the tokens to the last mask.
struct Times {
    mean: Duration,
    longest: Duration,
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} us (longest {:.0} us)", self.mean.as_secs_f64() * 1e6, self.longest.as_secs_f64() * 1e6)
    }
}

fn run(grammar: &Grammar, eos: u32, streams: usize) -> Times {
    let mut random = 1u64;
    let mut slots: Vec<SlotMask> = (0..streams).map(|_| SlotMask::start(grammar, Arc::new([eos]), 0, &[])).collect();
    slots.iter_mut().for_each(SlotMask::wait);
    let mut times = Times { mean: Duration::ZERO, longest: Duration::ZERO };
    for _ in 0..STEPS {
        let tokens: Vec<u32> = slots.iter().map(|slot| draw(slot.allowed(), eos, &mut random)).collect();
        let started = Instant::now();
        slots.iter_mut().zip(&tokens).for_each(|(slot, &token)| slot.advance(token));
        slots.iter_mut().for_each(SlotMask::wait);
        let step = started.elapsed();
        times.mean += step / STEPS as u32;
        times.longest = times.longest.max(step);
        assert!(slots.iter().all(|slot| slot.error().is_none()), "{:?}", slots.iter().find_map(SlotMask::error));
    }
    times
}

/// A random token of a mask, the end only where nothing else is left.
fn draw(mask: &[u32], eos: u32, random: &mut u64) -> u32 {
    let set = |word: usize| (0..32u32).filter(move |bit| mask[word] >> bit & 1 == 1).map(move |bit| word as u32 * 32 + bit);
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let first = (*random >> 33) as usize % mask.len();
    let words = (0..mask.len()).map(|i| (first + i) % mask.len());
    words.flat_map(set).find(|&token| token != eos).unwrap_or(eos)
}

/// Token `id`: a byte, a number, white space, or letters with or without a space before them.
fn made_up(id: u32) -> Option<Vec<u8>> {
    const PUNCTUATION: [&str; 12] = ["\"", "\",", "\":", "{\"", "},", "\"}", "],", "();", " //", "...", " =", "->"];
    let mut state = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    match id {
        0..256 => Some(vec![id as u8]),
        256..300 => Some(" ".repeat(id as usize - 254).into_bytes()),
        300..600 => Some(format!("{}{}", PUNCTUATION[id as usize % 12], ["", " ", "\n", "\n\n", "a"][id as usize / 60 % 5]).into_bytes()),
        _ if id as usize >= VOCAB - 300 => None,
        _ => {
            let alphabet: Vec<char> = match next(10) {
                0 => "абвгдежзиклмнопрстуфхцчшыьэюя".chars().collect(),
                1 => "的一是不了人我在有他这中大来上国个到说们".chars().collect(),
                _ => "etaoinshrdlucmfwypvbgkqjxz".chars().collect(),
            };
            let mut text = String::from(if next(2) == 0 { " " } else { "" });
            let len = 2 + next(4) + next(6);
            for i in 0..len {
                // Frequent letters are more frequent.
                let letter = alphabet[(next(alphabet.len() as u64) * next(alphabet.len() as u64) / alphabet.len() as u64) as usize];
                if i == 0 && next(4) == 0 { text.extend(letter.to_uppercase()) } else { text.push(letter) }
            }
            Some(text.into_bytes())
        }
    }
}
