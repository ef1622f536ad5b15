//! A byte-level BPE tokeniser for tiny checkpoints: 256 bytes, merges learnt from a fixed text, padding, three special tokens.

use std::collections::{BTreeMap, HashSet};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::VOCAB;

const SPECIALS: [&str; 3] = ["<|im_start|>", "<|im_end|>", "<|pad|>"];

/// Learnt from twice.
const TEXT: &str = concat!(
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a small model that could only speak in riddles, and the people of the ",
    "town came to listen to it every evening after the market had closed. def main(args): return sum(x for x in args if x is not None)\n",
    "for i in range(10):\n    print(i)\nThere is nothing either good or bad, but thinking makes it so. What is the capital of the country? ",
    "user assistant system tool function name arguments content role message import from class self true false null 0 1 2 3 4 5 6 7 8 9 "
);

/// Token texts by id, and merges.
pub struct Vocabulary {
    /// `VOCAB` texts.
    pub tokens: Vec<String>,
    /// "left right", in order of rank.
    pub merges: Vec<String>,
}

/// The vocabulary of every tiny checkpoint.
pub fn vocabulary() -> &'static Vocabulary {
    static LEARNT: OnceLock<Vocabulary> = OnceLock::new();
    LEARNT.get_or_init(learn)
}

/// GPT-2's bytes as printable characters.
fn byte_chars() -> Vec<char> {
    let printable = |byte: u32| (33..127).contains(&byte) || (161..173).contains(&byte) || (174..256).contains(&byte);
    let mut others = 256..;
    let mut of = |byte: u32| if printable(byte) { byte } else { others.next().expect("an open range") };
    (0..256).map(|byte| char::from_u32(of(byte)).expect("all below the surrogates")).collect()
}

fn learn() -> Vocabulary {
    let chars = byte_chars();
    let mut tokens: Vec<String> = chars.iter().map(char::to_string).collect();
    let mut merges = Vec::new();
    let mut words: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    for word in split(&TEXT.repeat(2)) {
        *words.entry(word.bytes().map(|byte| chars[byte as usize].to_string()).collect()).or_default() += 1;
    }
    while tokens.len() < VOCAB - SPECIALS.len() {
        let Some((left, right)) = best_pair(&words, &tokens) else { break };
        let joined = format!("{left}{right}");
        merges.push(format!("{left} {right}"));
        let mut next = BTreeMap::new();
        for (word, count) in words {
            *next.entry(merge(&word, &left, &right)).or_default() += count;
        }
        words = next;
        tokens.push(joined);
    }
    // The text is used up: tokens that no merge makes fill the vocabulary.
    let padding = VOCAB - SPECIALS.len() - tokens.len();
    tokens.extend((0..padding).map(|i| format!("\u{100}pad{i}")));
    tokens.extend(SPECIALS.map(str::to_owned));
    Vocabulary { tokens, merges }
}

/// The most frequent pair whose join is new; the smallest of several.
fn best_pair(words: &BTreeMap<Vec<String>, usize>, tokens: &[String]) -> Option<(String, String)> {
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let mut pairs: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (word, count) in words {
        for pair in word.windows(2) {
            *pairs.entry((&pair[0], &pair[1])).or_default() += count;
        }
    }
    pairs.retain(|(left, right), _| !known.contains(format!("{left}{right}").as_str()));
    let best = pairs.iter().min_by_key(|(pair, count)| (std::cmp::Reverse(**count), **pair));
    best.map(|((left, right), _)| ((*left).to_owned(), (*right).to_owned()))
}

fn merge(word: &[String], left: &str, right: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < word.len() {
        if at + 1 < word.len() && word[at] == left && word[at + 1] == right {
            out.push(format!("{left}{right}"));
            at += 2;
        } else {
            out.push(word[at].clone());
            at += 1;
        }
    }
    out
}

/// Splits ASCII text as the expression ` ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+` does.
fn split(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let class = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' => 0,
        b'0'..=b'9' => 1,
        b' ' | b'\n' => 2,
        _ => 3,
    };
    let run = |from: usize, kind: u8| from + bytes[from..].iter().take_while(|byte| class(**byte) == kind).count();
    let mut words = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at + usize::from(bytes[at] == b' ');
        let end = match bytes.get(start).map(|byte| class(*byte)) {
            Some(kind) if kind != 2 => run(start, kind),
            _ => match run(at, 2) {
                // A space before a word belongs to the word.
                end if end < bytes.len() && end - at > 1 => end - 1,
                end => end,
            },
        };
        words.push(&text[at..end]);
        at = end;
    }
    words
}

/// tokenizer.json.
pub fn tokenizer_json() -> Value {
    let vocabulary = vocabulary();
    let vocab: Map<String, Value> = vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added = |(i, text): (usize, &&str)| {
        json!({
            "id": VOCAB - SPECIALS.len() + i, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": SPECIALS.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": vocabulary.merges,
        },
    })
}
