//! `Grammar`: a compiled grammar, shared by all sequences that follow it.

use std::sync::Arc;

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use parking_lot::Mutex;

use super::masks::MaskPool;
use super::source::{GrammarError, invalid};
use super::vocabulary::Vocabulary;

/// Matchers kept of sequences that ended: they know parts of the grammar that a new one would have to work out again.
const MAX_SPARE: usize = 16;

/// A compiled grammar over one model's tokens. Clones share it.
#[derive(Clone)]
pub struct Grammar {
    inner: Arc<Inner>,
}

struct Inner {
    vocabulary: Arc<Vocabulary>,
    pool: Arc<MaskPool>,
    /// At the beginning of a text; copied, never advanced.
    prototype: Mutex<Matcher>,
    spare: Mutex<Vec<Matcher>>,
    first_mask: Vec<u32>,
    /// The mask of a text that is complete.
    ends: Vec<u32>,
    bounds_json: bool,
}

impl Grammar {
    /// Compiles Lark text. `bounds_json`: the text is JSON alone, whose numbers and brackets are to end some time.
    pub(super) fn compile(
        vocabulary: Arc<Vocabulary>,
        pool: Arc<MaskPool>,
        lark: &str,
        bounds_json: bool,
    ) -> Result<Grammar, GrammarError> {
        let parser = vocabulary.factory.create_parser(TopLevelGrammar::from_lark(lark.to_string())).map_err(|e| invalid(summary(&e)))?;
        let mut prototype = Matcher::new(Ok(parser));
        let mask = prototype.compute_mask_or_eos().map_err(|e| invalid(summary(&e)))?;
        if mask.is_zero() {
            return Err(invalid("no text matches this grammar"));
        }
        let first_mask = mask.as_slice()[..vocabulary.num_words].to_vec();
        let ends = vocabulary.factory.tok_env().tok_trie().eos_token_set().as_slice()[..vocabulary.num_words].to_vec();
        let (prototype, spare) = (Mutex::new(prototype), Mutex::new(Vec::new()));
        Ok(Grammar { inner: Arc::new(Inner { vocabulary, pool, prototype, spare, first_mask, ends, bounds_json }) })
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.inner.vocabulary
    }

    pub(super) fn pool(&self) -> &MaskPool {
        &self.inner.pool
    }

    pub(super) fn first_mask(&self) -> &[u32] {
        &self.inner.first_mask
    }

    pub(super) fn ends(&self) -> &[u32] {
        &self.inner.ends
    }

    pub(super) fn bounds_json(&self) -> bool {
        self.inner.bounds_json
    }

    /// A matcher at the beginning of a text.
    pub(super) fn matcher(&self) -> Matcher {
        let spare = self.inner.spare.lock().pop();
        spare.unwrap_or_else(|| self.inner.prototype.lock().deep_clone())
    }

    /// Takes the matcher of a sequence that ended.
    pub(super) fn give_back(&self, mut matcher: Matcher) {
        if !matcher.is_error() && self.inner.spare.lock().len() < MAX_SPARE && matcher.reset().is_ok() {
            self.inner.spare.lock().push(matcher);
        }
    }
}

/// Longest message of llguidance that is passed on, in characters.
const MAX_MESSAGE: usize = 300;

/// llguidance's message on one line, without the place in the Lark text that its author never saw.
fn summary(error: &impl std::fmt::Display) -> String {
    let text = format!("{error:#}");
    if text.starts_with("NoExtensionBias") {
        return "no text matches this grammar".into();
    }
    let text = text.split_once("failed to compile JSON schema: ").map_or(text.as_str(), |(_, reason)| reason);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(MAX_MESSAGE).collect()
}

/// The same compiled grammar.
impl PartialEq for Grammar {
    fn eq(&self, other: &Grammar) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}
