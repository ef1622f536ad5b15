//! The text side of a GGUF file: `tokenizer.ggml.*` and `tokenizer.chat_template`.

use super::checkpoint::{GgufVocab, TextConfig};
use super::gguf_keys::Keys;
use crate::error::Result;
use crate::models::limits::MAX_VOCAB;

/// Control tokens that end a turn or a document, whatever the ids of a file say (llama.cpp's list of end-of-generation texts).
const END_TEXTS: [&str; 7] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"];
const CONTROL: i32 = 3;

/// Reads vocabulary, template and the ids that end a generation.
///
/// # Errors
/// A key is missing or out of range.
pub fn read(keys: &Keys) -> Result<(GgufVocab, TextConfig, Vec<u32>)> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const TYPES: &str = "tokenizer.ggml.token_type";
    const SCORES: &str = "tokenizer.ggml.scores";
    let id = |name: &str| special_id(keys, &format!("tokenizer.ggml.{name}_token_id"));
    let vocab = GgufVocab {
        model: keys.opt_text("tokenizer.ggml.model")?.ok_or_else(|| keys.error("tokenizer.ggml.model", "is missing"))?.to_owned(),
        pre: keys.opt_text("tokenizer.ggml.pre")?.unwrap_or("default").to_owned(),
        tokens: keys.texts(TOKENS)?,
        token_types: keys.ints(TYPES)?,
        scores: keys.floats(SCORES)?,
        merges: keys.texts("tokenizer.ggml.merges")?,
        bos: id("bos")?,
        eos: id("eos")?,
        unk: id("unknown")?,
        pad: id("padding")?,
        add_bos: keys.flag("tokenizer.ggml.add_bos_token")?,
        add_space_prefix: keys.flag("tokenizer.ggml.add_space_prefix")?,
    };
    let num_tokens = vocab.tokens.len();
    if num_tokens == 0 || num_tokens > MAX_VOCAB {
        return Err(keys.error(TOKENS, format_args!("has {num_tokens} entries, expected 1 to {MAX_VOCAB}")));
    }
    for (key, len) in [(TYPES, vocab.token_types.len()), (SCORES, vocab.scores.len())] {
        if len != 0 && len != num_tokens {
            return Err(keys.error(key, format_args!("has {len} entries, expected {num_tokens}")));
        }
    }
    let text_of = |id: Option<u32>| id.and_then(|id| vocab.tokens.get(id as usize)).cloned();
    let mut text = TextConfig {
        chat_template: keys.opt_text("tokenizer.chat_template")?.map(str::to_owned),
        bos_token: text_of(vocab.bos),
        eos_token: text_of(vocab.eos),
        special_tokens: Vec::new(),
        add_bos_token: vocab.add_bos,
    };
    for (name, id) in [("pad_token", vocab.pad), ("unk_token", vocab.unk)] {
        text.special_tokens.extend(text_of(id).map(|token| (name.to_owned(), token)));
    }
    let ends = end_ids(&vocab, [vocab.eos, id("eot")?, id("eom")?]);
    Ok((vocab, text, ends))
}

fn special_id(keys: &Keys, key: &str) -> Result<Option<u32>> {
    // Writers that have no such token store -1 as an unsigned number.
    Ok(keys.count(key)?.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX))
}

fn end_ids(vocab: &GgufVocab, named: [Option<u32>; 3]) -> Vec<u32> {
    let mut ids: Vec<u32> = named.into_iter().flatten().collect();
    let control = vocab.tokens.iter().zip(&vocab.token_types).enumerate().filter(|(_, (_, kind))| **kind == CONTROL);
    ids.extend(control.filter(|(_, (text, _))| END_TEXTS.contains(&text.as_str())).map(|(id, _)| id as u32));
    let mut seen = Vec::new();
    ids.retain(|id| {
        !seen.contains(id) && {
            seen.push(*id);
            true
        }
    });
    ids
}
