//! Texts to sequences: special tokens, segments, truncation. Runs on the caller's thread.

use tokenizers::{Encoding, TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings};

use super::Sequence;
use crate::error::{EngineError, Result};
use crate::text::Tokenizer;

/// Makes sequences of texts. Clones share the tokeniser.
#[derive(Clone)]
pub struct PoolingText {
    tokenizer: Tokenizer,
    max_seq_len: usize,
}

/// A sequence and how long it would have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// At most as long as the model takes.
    pub sequence: Sequence,
    /// Tokens before truncation.
    pub full_len: usize,
}

impl PoolingText {
    /// For sequences of at most `max_seq_len` tokens.
    pub fn new(tokenizer: Tokenizer, max_seq_len: usize) -> PoolingText {
        PoolingText { tokenizer, max_seq_len }
    }

    /// The tokeniser.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Longest sequence.
    pub fn max_seq_len(&self) -> usize {
        self.max_seq_len
    }

    /// A text with the model's special tokens around it, cut at its end to `max_len` tokens (None: the longest sequence).
    ///
    /// # Errors
    /// `Text` when the tokeniser fails or the special tokens alone do not fit.
    pub fn single(&self, text: &str, max_len: Option<usize>) -> Result<Encoded> {
        let encoding = self.encode(text)?;
        let added = self.tokenizer.encoder().get_post_processor().map_or(0, |processor| added_tokens(processor, false));
        self.finish(encoding, None, added, max_len)
    }

    /// A pair of texts as a cross-encoder reads it; the longer one is cut first.
    ///
    /// # Errors
    /// As `single`.
    pub fn pair(&self, first: &str, second: &str, max_len: Option<usize>) -> Result<Encoded> {
        let (a, b) = (self.encode(first)?, self.encode(second)?);
        let added = self.tokenizer.encoder().get_post_processor().map_or(0, |processor| added_tokens(processor, true));
        self.finish(a, Some(b), added, max_len)
    }

    /// A text that stands between two others, all without special tokens of the tokeniser; the middle is cut.
    ///
    /// # Errors
    /// As `single`.
    pub fn framed(&self, before: &str, middle: &str, after: &str, max_len: Option<usize>) -> Result<Encoded> {
        let [before, mut middle, after] = [before, middle, after].map(|text| self.tokenizer.encode(text, false));
        let (before, middle, after) = (before?, middle.as_mut().map_err(|error| EngineError::Text(error.to_string()))?, after?);
        let fixed = before.len() + after.len();
        let full_len = fixed + middle.len();
        middle.truncate(self.room(fixed, max_len)?);
        let ids = [before.as_slice(), middle, &after].concat();
        Ok(Encoded { sequence: Sequence { ids, token_types: Vec::new() }, full_len })
    }

    /// The part of a text that its first `max_tokens` tokens stand for.
    ///
    /// # Errors
    /// `Text` when the tokeniser fails.
    pub fn beginning<'a>(&self, text: &'a str, max_tokens: usize) -> Result<&'a str> {
        // Offsets in bytes cost more than none, and are asked for here alone.
        let encoding = self.tokenizer.encoder().encode(text, false).map_err(text_error)?;
        let end = encoding.get_offsets().get(max_tokens).map_or(text.len(), |offsets| offsets.0);
        Ok(text.get(..end).unwrap_or(text))
    }

    fn encode(&self, text: &str) -> Result<Encoding> {
        self.tokenizer.encoder().encode_fast(text, false).map_err(text_error)
    }

    fn room(&self, fixed: usize, max_len: Option<usize>) -> Result<usize> {
        let max_len = max_len.unwrap_or(self.max_seq_len).min(self.max_seq_len);
        let too_short = || EngineError::Text(format!("{max_len} tokens leave no room beside {fixed} tokens of the model's frame"));
        max_len.checked_sub(fixed).filter(|room| *room > 0).ok_or_else(too_short)
    }

    fn finish(&self, first: Encoding, second: Option<Encoding>, added: usize, max_len: Option<usize>) -> Result<Encoded> {
        let full_len = first.len() + second.as_ref().map_or(0, Encoding::len) + added;
        let params = TruncationParams {
            direction: TruncationDirection::Right,
            max_length: self.room(added, max_len)?,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        let (first, second) = truncate_encodings(first, second, &params).map_err(text_error)?;
        let encoding = self.tokenizer.encoder().post_process(first, second, true).map_err(text_error)?;
        let ids = encoding.get_ids().to_vec();
        Ok(Encoded { sequence: Sequence { ids, token_types: encoding.get_type_ids().to_vec() }, full_len })
    }
}

fn added_tokens(processor: &impl tokenizers::PostProcessor, is_pair: bool) -> usize {
    processor.added_tokens(is_pair)
}

fn text_error(error: tokenizers::Error) -> EngineError {
    EngineError::Text(error.to_string())
}
