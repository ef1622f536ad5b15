//! The text side of a Hugging Face folder: tokenizer.json, tokenizer_config.json, chat_template.jinja, special_tokens_map.json,
//! generation_config.json. All but tokenizer.json are optional.

use std::path::Path;

use serde_json::Value;

use super::checkpoint::{GenerationDefaults, TextConfig, TokenizerSource};
use super::json::{Fields, checkpoint_error, read_optional, read_text};
use crate::error::Result;

/// Special tokens whose strings templates may use, beside BOS and EOS.
const SPECIAL_TOKENS: [&str; 5] = ["pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];

/// What `read_folder` finds.
pub struct FolderText {
    /// Path of tokenizer.json.
    pub tokenizer: TokenizerSource,
    /// Templates and special strings.
    pub text: TextConfig,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
    /// generation_config.json's.
    pub eos_token_ids: Vec<u32>,
}

/// Reads the text files of a folder.
///
/// # Errors
/// tokenizer.json is missing, or a file is damaged; the error names file and key.
pub fn read_folder(folder: &Path) -> Result<FolderText> {
    let tokenizer = folder.join("tokenizer.json");
    if !tokenizer.is_file() {
        let hint = match folder.join("tokenizer.model").exists() {
            true => "; tokenizer.model alone is not read, save the tokeniser in the fast format",
            false => "",
        };
        return Err(checkpoint_error(folder, format!("holds no tokenizer.json{hint}")));
    }
    let (generation, eos_token_ids) = read_generation(&folder.join("generation_config.json"))?;
    Ok(FolderText { tokenizer: TokenizerSource::File(tokenizer), text: read_text_config(folder)?, generation, eos_token_ids })
}

fn read_text_config(folder: &Path) -> Result<TextConfig> {
    let mut text = TextConfig::default();
    // The map is the fallback: older checkpoints name their special tokens only there.
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = folder.join(name);
        let Some(map) = read_optional(&path)? else { continue };
        let fields = Fields::new(&path, map);
        fill(&mut text.bos_token, token_text(&fields, "bos_token")?);
        fill(&mut text.eos_token, token_text(&fields, "eos_token")?);
        fill(&mut text.chat_template, chat_template(&fields)?);
        if name == "tokenizer_config.json" {
            text.add_bos_token = fields.opt_flag("add_bos_token")?;
        }
        for key in SPECIAL_TOKENS {
            if let Some(token) = token_text(&fields, key)?
                && text.special_tokens.iter().all(|(known, _)| known != key)
            {
                text.special_tokens.push((key.to_owned(), token));
            }
        }
    }
    let jinja = folder.join("chat_template.jinja");
    if jinja.exists() {
        text.chat_template = Some(read_text(&jinja)?);
    }
    Ok(text)
}

fn fill(slot: &mut Option<String>, value: Option<String>) {
    if slot.is_none() {
        *slot = value;
    }
}

/// A special token: a string, or an object with `content`.
fn token_text(fields: &Fields, key: &str) -> Result<Option<String>> {
    match fields.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Object(token)) => match token.get("content") {
            Some(Value::String(text)) => Ok(Some(text.clone())),
            _ => Err(fields.error(key, "is an object without the string `content`")),
        },
        // add_bos_token-less slow tokenisers write `false` for "none".
        Some(Value::Bool(false)) => Ok(None),
        Some(_) => Err(fields.error(key, "is neither a string nor an object")),
    }
}

/// A template: a string, or a list of `{name, template}` of which `default` (else the first) is taken.
fn chat_template(fields: &Fields) -> Result<Option<String>> {
    const KEY: &str = "chat_template";
    let list = match fields.get(KEY) {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(fields.error(KEY, "is neither a string nor a list")),
    };
    let default = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default")).or(list.first());
    match default.and_then(|entry| entry.get("template")).and_then(Value::as_str) {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(fields.error(KEY, "is a list without a `template` string")),
    }
}

fn read_generation(path: &Path) -> Result<(GenerationDefaults, Vec<u32>)> {
    let Some(map) = read_optional(path)? else { return Ok(Default::default()) };
    let fields = Fields::new(path, map);
    let mut defaults = GenerationDefaults {
        temperature: fields.opt_non_negative("temperature")?,
        top_p: fields.opt_positive("top_p")?,
        top_k: fields.opt_count("top_k", u32::MAX as usize)?.map(|k| k as u32),
        repetition_penalty: fields.opt_positive("repetition_penalty")?,
    };
    if let Some(top_p) = defaults.top_p.filter(|p| *p > 1.0) {
        return Err(fields.error("top_p", format_args!("is {top_p}, expected at most 1")));
    }
    if fields.opt_flag("do_sample")? == Some(false) {
        defaults.temperature = Some(0.0);
    }
    Ok((defaults, fields.token_ids("eos_token_id")?))
}
