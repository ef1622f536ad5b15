//! `Vocabulary`: the tokens of a model as a trie of their bytes, and the factory of parsers over it. One a model, made when first needed.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};

use super::compiler::Limits;
use super::json_guard::{JsonGuard, can_exceed};
use super::source::{GrammarError, invalid};

/// The tokens of a model, prepared for masks.
pub(super) struct Vocabulary {
    pub(super) factory: ParserFactory,
    /// u32 words of a mask.
    pub(super) num_words: usize,
    /// Tokens that alone are more than a `JsonGuard` lets pass.
    long_alone: Vec<u32>,
}

impl Vocabulary {
    /// Takes the bytes of every token, by id; `None` for tokens that are no text. `eos`: tokens that end an answer.
    ///
    /// # Errors
    /// A model without an end token: its answers could not end.
    pub(super) fn new(tokens: Vec<Option<Vec<u8>>>, eos: &[u32], limits: &Limits) -> Result<Vocabulary, GrammarError> {
        let vocab_size = tokens.len();
        let eos: Vec<u32> = eos.iter().copied().filter(|&token| (token as usize) < vocab_size).collect();
        let Some(&first) = eos.first() else {
            return Err(invalid("this model has no end-of-sequence token, so its output cannot be constrained"));
        };
        let too_long = |(_, bytes): &(usize, &Option<Vec<u8>>)| bytes.as_deref().is_some_and(can_exceed);
        let long_alone = tokens.iter().enumerate().filter(too_long).map(|(id, _)| id as u32).collect();
        let name = |(id, bytes): (usize, Option<Vec<u8>>)| bytes.unwrap_or_else(|| special(id));
        let words: Vec<Vec<u8>> = tokens.into_iter().enumerate().map(name).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, first), &words).with_eos_tokens(&eos);
        let env: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(invalid)?;
        factory.quiet();
        limits.apply(factory.limits_mut());
        Ok(Vocabulary { factory, num_words: vocab_size.div_ceil(32), long_alone })
    }

    fn trie(&self) -> &TokTrie {
        self.factory.tok_env().tok_trie()
    }

    /// Bytes of a token that is text.
    pub(super) fn text(&self, token: u32) -> Option<&[u8]> {
        if token as usize >= self.trie().vocab_size() {
            return None;
        }
        Some(self.trie().token(token)).filter(|bytes| bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER))
    }

    /// Tokens of `mask` after which a number would be longer, or a bracket deeper, than it may be.
    pub(super) fn overlong(&self, mask: &[u32], guard: &JsonGuard) -> Vec<u32> {
        if guard.is_in_string() {
            return Vec::new();
        }
        if !guard.is_near() {
            return self.long_alone.iter().copied().filter(|&token| is_set(mask, token)).collect();
        }
        let exceeds = |&token: &u32| self.text(token).is_some_and(|bytes| guard.exceeds(bytes));
        set_bits(mask).filter(exceeds).collect()
    }
}

/// The name of a token that is no text. Grammars cannot spell it.
fn special(id: usize) -> Vec<u8> {
    let mut name = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    name.extend_from_slice(format!("<no text {id}>").as_bytes());
    name
}

/// Whether a token's bit is set.
pub(super) fn is_set(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

/// Tokens whose bits are set.
pub(super) fn set_bits(mask: &[u32]) -> impl Iterator<Item = u32> + '_ {
    mask.iter().zip(0u32..).flat_map(|(&word, index)| {
        std::iter::successors(Some(word), |word| Some(word & word.wrapping_sub(1)))
            .take_while(|&word| word != 0)
            .map(move |word| index * 32 + word.trailing_zeros())
    })
}
