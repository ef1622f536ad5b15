//! `Tokenizer`: text to token ids and back, from a tokenizer.json or from the vocabulary inside a GGUF file.
//!
//! Encoding is the `tokenizers` crate's; decoding concatenates the tokens' bytes, so that it agrees with the incremental `Detokenizer`.
//! Truncation and padding settings of a tokenizer.json are ignored: the engine has its own limits.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use super::gguf_vocab;
use super::pieces::{Decoding, PieceKind, PieceTable};
use crate::error::{EngineError, Result};
use crate::weights::checkpoint::{TextConfig, TokenizerSource};

/// A tokeniser; clones share.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    encoder: tokenizers::Tokenizer,
    pieces: PieceTable,
    decoding: Decoding,
    bos: BosRule,
}

/// What `add_special_tokens` does about the token in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BosRule {
    /// What the post-processor does.
    PostProcessor,
    /// In front, once.
    Always(u32),
    /// Not in front, though the post-processor puts it there.
    Never(u32),
}

impl Tokenizer {
    /// Opens a tokeniser.
    ///
    /// # Errors
    /// `Io` or `Checkpoint` naming the file; `Unsupported` naming a GGUF tokeniser model or pre-tokeniser that is not known.
    pub fn from_source(source: &TokenizerSource, text: &TextConfig) -> Result<Tokenizer> {
        match source {
            TokenizerSource::File(path) => from_file(path, text),
            TokenizerSource::Gguf(vocab) => {
                let encoder = gguf_vocab::build(vocab)?;
                let decoding = gguf_vocab::decoding(vocab);
                let tokens = (0..vocab.tokens.len()).map(|id| (Some(Cow::Borrowed(&*vocab.tokens[id])), gguf_vocab::kind(vocab, id)));
                let pieces = PieceTable::new(tokens, decoding);
                let bos = match text.add_bos_token.or(vocab.add_bos).unwrap_or_else(|| gguf_vocab::adds_bos_by_default(vocab)) {
                    true => vocab.bos.map_or(BosRule::PostProcessor, BosRule::Always),
                    false => BosRule::PostProcessor,
                };
                Ok(Tokenizer { inner: Arc::new(Inner { encoder, pieces, decoding, bos }) })
            }
        }
    }

    /// Token ids of `text`. Special tokens written out in the text are recognised. `add_special_tokens` puts around it what the model's
    /// tokeniser puts there (BOS, if any).
    ///
    /// # Errors
    /// `Text` when a normaliser or regular expression of the tokeniser fails.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encoder.encode_fast(text, add_special_tokens).map_err(|error| EngineError::Text(error.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        match self.inner.bos {
            BosRule::Always(bos) if add_special_tokens => ids.insert(0, bos),
            BosRule::Never(bos) if add_special_tokens && ids.first() == Some(&bos) => drop(ids.remove(0)),
            _ => {}
        }
        Ok(ids)
    }

    /// Text of `ids`. Spaces are not cleaned up; bytes that are not UTF-8 become U+FFFD, one for each maximal invalid sequence.
    ///
    /// # Errors
    /// `Text` naming an id that no token has.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.known_bytes(id, skip_special_tokens)?);
        }
        if self.inner.decoding == Decoding::Other {
            return self.inner.encoder.decode(ids, skip_special_tokens).map_err(|error| EngineError::Text(error.to_string()));
        }
        let spaces = bytes.iter().take(self.inner.decoding.strip_start()).take_while(|&&byte| byte == b' ').count();
        Ok(String::from_utf8_lossy(&bytes[spaces..]).into_owned())
    }

    /// The bytes a token adds to a text, nothing for a skipped one.
    ///
    /// # Errors
    /// `Text` naming an id that no token has.
    pub(super) fn known_bytes(&self, id: u32, skip_special_tokens: bool) -> Result<&[u8]> {
        match self.inner.pieces.kind(id) {
            PieceKind::Absent => {
                let size = self.vocab_size();
                Err(EngineError::Text(format!("no token has id {id}; the vocabulary has {size} ids")))
            }
            PieceKind::Special if skip_special_tokens => Ok(&[]),
            _ => Ok(self.inner.pieces.bytes(id)),
        }
    }

    /// The exact bytes a token stands for; of a special token, its text; empty for an unknown id.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.inner.pieces.bytes(id).to_vec()
    }

    /// A token as the vocabulary writes it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token_str(&self, id: u32) -> Option<String> {
        self.inner.encoder.id_to_token(id)
    }

    /// Id of a token as the vocabulary writes it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.encoder.token_to_id(token)
    }

    /// Whether decoding can leave this token out.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.pieces.kind(id) == PieceKind::Special
    }

    /// 1 + the highest id. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.pieces.len()
    }

    /// The tokeniser of the `tokenizers` crate behind it.
    pub(crate) fn encoder(&self) -> &tokenizers::Tokenizer {
        &self.inner.encoder
    }

    pub(super) fn decoding(&self) -> Decoding {
        self.inner.decoding
    }
}

fn from_file(path: &Path, text: &TextConfig) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(|source| EngineError::Io { path: path.to_path_buf(), source })?;
    let bad = |reason: String| EngineError::Checkpoint { path: path.to_path_buf(), reason };
    let mut encoder = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| bad(error.to_string()))?;
    encoder.with_padding(None);
    encoder.with_truncation(None).map_err(|error| bad(error.to_string()))?;

    let decoder = serde_json::to_value(encoder.get_decoder()).map_err(|error| bad(error.to_string()))?;
    let decoding = Decoding::of(&decoder);
    let added = encoder.get_added_tokens_decoder();
    let size = encoder.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
    if size > MAX_VOCAB_SIZE {
        return Err(bad(format!("token id {} is above the limit of {MAX_VOCAB_SIZE}", size - 1)));
    }
    let tokens = (0..size as u32).map(|id| {
        let kind = match added.get(&id) {
            Some(token) if token.special => PieceKind::Special,
            Some(_) => PieceKind::Added,
            None => PieceKind::Normal,
        };
        (encoder.id_to_token(id).map(Cow::Owned), kind)
    });
    let pieces = PieceTable::new(tokens, decoding);
    let bos = bos_rule(&encoder, text).map_err(bad)?;
    Ok(Tokenizer { inner: Arc::new(Inner { encoder, pieces, decoding, bos }) })
}

/// Most ids of a vocabulary: guards against a stray id that would make the table of bytes huge.
const MAX_VOCAB_SIZE: usize = 1 << 24;

/// tokenizer_config.json's `add_bos_token` wins over the post-processor.
fn bos_rule(encoder: &tokenizers::Tokenizer, text: &TextConfig) -> std::result::Result<BosRule, String> {
    let (Some(add_bos), Some(bos)) = (text.add_bos_token, text.bos_token.as_deref().and_then(|token| encoder.token_to_id(token))) else {
        return Ok(BosRule::PostProcessor);
    };
    let probe = encoder.encode_fast("", true).map_err(|error| error.to_string())?;
    let adds = probe.get_ids().first() == Some(&bos);
    Ok(match (add_bos, adds) {
        (true, false) => BosRule::Always(bos),
        (false, true) => BosRule::Never(bos),
        _ => BosRule::PostProcessor,
    })
}

#[cfg(test)]
pub(super) mod tests;
