//! Incremental detokenising of one output: what each token adds to the text.
//!
//! Runs on the request's own task. Never emits U+FFFD for bytes that a later token completes; the pieces and the flush together are
//! `Tokenizer::decode` of all tokens. Tokens are bytes here, so the cost of a token does not grow with the text.

use std::sync::Arc;

use super::pieces::Decoding;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// State of one output.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Special tokens that are text all the same.
    kept: Arc<[u32]>,
    /// Spaces still to be stripped; 0 once anything else was seen.
    strip_left: usize,
    /// Bytes that may still become a character, at most 3.
    pending: Vec<u8>,
    window: Window,
}

/// For decoders that are not a concatenation of bytes: the tokens since the last emitted text and the one before them.
#[derive(Default)]
struct Window {
    ids: Vec<u32>,
    /// How many of `ids` are emitted.
    num_emitted: usize,
}

/// Tokens held back at most by a window whose text ends in U+FFFD; a character has at most 4 bytes.
const MAX_WINDOW: usize = 8;

impl Detokenizer {
    /// A fresh output.
    pub fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Detokenizer {
        let strip_left = tokenizer.decoding().strip_start();
        Detokenizer { tokenizer, skip_special_tokens, kept: Arc::from([]), strip_left, pending: Vec::new(), window: Window::default() }
    }

    /// Special tokens that are never left out, such as the marks around a call of a tool.
    pub fn keep(&mut self, kept: Arc<[u32]>) {
        self.kept = kept;
    }

    fn skips(&self, token: u32) -> bool {
        self.skip_special_tokens && !self.kept.contains(&token)
    }

    /// The text that `token` adds: "" while its bytes may still become a character.
    ///
    /// # Errors
    /// `Text` naming an id that no token has; the state is as before.
    pub fn push(&mut self, token: u32) -> Result<String> {
        if self.tokenizer.decoding() == Decoding::Other {
            return self.push_window(token);
        }
        let mut bytes = self.tokenizer.known_bytes(token, self.skips(token))?;
        while self.strip_left > 0 && !bytes.is_empty() {
            match bytes.strip_prefix(b" ") {
                Some(rest) => {
                    bytes = rest;
                    self.strip_left -= 1;
                }
                None => self.strip_left = 0,
            }
        }
        self.pending.extend_from_slice(bytes);
        Ok(take_characters(&mut self.pending))
    }

    /// What is left at the end: U+FFFD for bytes that never became a character.
    pub fn flush(&mut self) -> String {
        if self.tokenizer.decoding() == Decoding::Other {
            let ids = std::mem::take(&mut self.window.ids);
            let emitted = std::mem::take(&mut self.window.num_emitted);
            return self.added_text(&ids, emitted).unwrap_or_default();
        }
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }

    fn push_window(&mut self, token: u32) -> Result<String> {
        self.tokenizer.known_bytes(token, false)?;
        if self.skips(token) && self.tokenizer.is_special(token) {
            return Ok(String::new());
        }
        self.window.ids.push(token);
        let added = self.added_text(&self.window.ids, self.window.num_emitted)?;
        let num_held = self.window.ids.len() - self.window.num_emitted;
        if added.ends_with(char::REPLACEMENT_CHARACTER) && num_held < MAX_WINDOW {
            return Ok(String::new());
        }
        self.window.ids = vec![token];
        self.window.num_emitted = 1;
        Ok(added)
    }

    /// Text of `ids` beyond that of its first `num_emitted`.
    fn added_text(&self, ids: &[u32], num_emitted: usize) -> Result<String> {
        let before = self.tokenizer.decode(&ids[..num_emitted], false)?;
        let mut text = self.tokenizer.decode(ids, false)?;
        let at = if text.starts_with(&before) { before.len() } else { text.len() };
        Ok(text.split_off(at))
    }
}

/// Moves whole characters, and U+FFFD for invalid bytes, out of `pending`; leaves bytes that may still become a character.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest: &[u8] = pending;
    let incomplete = loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                break 0;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).expect("checked by from_utf8"));
                match error.error_len() {
                    Some(len) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        rest = &after[len..];
                    }
                    None => break after.len(),
                }
            }
        }
    };
    pending.drain(..pending.len() - incomplete);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tokenizer::tests::{byte_level, sentence_piece, word_piece};
    use super::*;

    /// Pieces of `ids`, flush last.
    fn stream(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip);
        let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
        pieces.push(detokenizer.flush());
        pieces
    }

    fn ids(tokenizer: &Tokenizer, tokens: &[&str]) -> Vec<u32> {
        tokens.iter().map(|token| tokenizer.token_id(token).unwrap()).collect()
    }

    #[test]
    fn characters_come_when_they_are_whole() {
        let tokenizer = byte_level();
        let check = |tokens: &[&str], skip, expected: &[&str]| assert_eq!(stream(&tokenizer, &ids(&tokenizer, tokens), skip), expected);
        check(&["hello", "Ġworld"], false, &["hello", " world", ""]);
        check(&["æĹ", "¥", "x"], false, &["", "日", "x", ""]);
        check(&["Ġð", "Ł", "ĺ", "Ģ"], false, &[" ", "", "", "😀", ""]);
        check(&["ð", "Ł"], false, &["", "", "\u{fffd}"]);
        check(&["æĹ", "x"], false, &["", "\u{fffd}x", ""]);
        check(&["¥", "¥"], false, &["\u{fffd}", "\u{fffd}", ""]);
        check(&["æĹ", "</s>", "¥"], false, &["", "\u{fffd}</s>", "\u{fffd}", ""]);
        check(&["æĹ", "</s>", "¥"], true, &["", "", "日", ""]);
    }

    #[test]
    fn spaces_are_stripped_at_the_very_start_only() {
        let tokenizer = sentence_piece();
        let check = |tokens: &[&str], skip, expected: &[&str]| assert_eq!(stream(&tokenizer, &ids(&tokenizer, tokens), skip), expected);
        check(&["▁hello", "▁hello"], true, &["hello", " hello", ""]);
        check(&["<s>", "▁hello"], true, &["", "hello", ""]);
        check(&["<s>", "▁hello"], false, &["<s>", " hello", ""]);
        check(&["▁", "▁hello"], true, &["", " hello", ""]);
        check(&["<0x20>", "<0xE6>", "<0x97>", "<0xA5>"], true, &["", "", "", "日", ""]);
    }

    #[test]
    fn other_decoders_go_by_a_window() {
        let tokenizer = word_piece();
        let tokens = ids(&tokenizer, &["[CLS]", "hello", "##s", "world", ".", "un", "##known", "[SEP]"]);
        assert_eq!(stream(&tokenizer, &tokens, true), ["", "hello", "s", " world", ".", " un", "known", "", ""]);
        assert_eq!(stream(&tokenizer, &tokens, true).concat(), tokenizer.decode(&tokens, true).unwrap());
    }

    #[test]
    fn kept_special_tokens_are_text() {
        for tokenizer in [byte_level(), sentence_piece()] {
            let tokens: Vec<u32> = ["</s>", "<s>"].iter().filter_map(|token| tokenizer.token_id(token)).collect();
            let mut detokenizer = Detokenizer::new(tokenizer.clone(), true);
            detokenizer.keep(Arc::from([tokens[0]]));
            let pieces: Vec<String> = tokens.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
            assert_eq!(pieces[0], "</s>");
            assert!(pieces[1..].iter().all(String::is_empty), "{pieces:?}");
        }
        let tokenizer = word_piece();
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), true);
        let tokens = ids(&tokenizer, &["[SEP]", "[CLS]"]);
        detokenizer.keep(Arc::from([tokens[0]]));
        assert_eq!(detokenizer.push(tokens[0]).unwrap() + &detokenizer.push(tokens[1]).unwrap() + &detokenizer.flush(), "[SEP]");
    }

    #[test]
    fn an_unknown_id_leaves_the_state_alone() {
        let tokenizer = byte_level();
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), false);
        let tokens = ids(&tokenizer, &["æĹ", "¥"]);
        assert_eq!(detokenizer.push(tokens[0]).unwrap(), "");
        assert!(detokenizer.push(100_000).is_err());
        assert_eq!(detokenizer.push(tokens[1]).unwrap(), "日");
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default()
        })]

        #[test]
        fn pieces_are_the_decoding(picks in proptest::collection::vec(any::<u32>(), 0..24), which in 0..3usize, skip: bool) {
            thread_local!(static TOKENIZERS: [Tokenizer; 3] = [byte_level(), sentence_piece(), word_piece()]);
            let tokenizer = TOKENIZERS.with(|all| all[which].clone());
            let ids: Vec<u32> = picks.iter().map(|pick| pick % tokenizer.vocab_size() as u32).collect();
            let pieces = stream(&tokenizer, &ids, skip);
            prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids, skip).unwrap());
        }
    }
}
