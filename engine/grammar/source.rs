//! What a caller may ask for, and what can be wrong with it.

use serde_json::Value;

/// What the text of an answer must match, from beginning to end.
#[derive(Clone, Debug, PartialEq)]
pub struct GrammarSource {
    /// Its shape.
    pub format: Format,
    /// White space between the tokens of JSON.
    pub spacing: Spacing,
}

/// White space that JSON may have between its tokens. Always bounded, so that a finite schema has finite texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spacing {
    /// One space, or a line break and at most twenty spaces.
    #[default]
    Bounded,
    /// None at all.
    Compact,
}

/// A shape of text.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Exactly this.
    Text(String),
    /// One of these.
    Choice(Vec<String>),
    /// JSON that is valid under this schema.
    JsonSchema(Value),
    /// All of the text matches this regular expression (Rust's syntax, no look-around, no back-references).
    Regex(String),
    /// A grammar: Lark as llguidance reads it, with a rule `start`; or EBNF with `::=` and a rule `root`.
    Grammar(String),
    /// Any text, up to what follows.
    AnyText,
    /// One after the other.
    Sequence(Vec<Format>),
    /// Any one.
    AnyOf(Vec<Format>),
    /// `min` to `max` times (no `max`: any number of times) with a separator between.
    Repeat {
        /// What is repeated.
        item: Box<Format>,
        /// What stands between two.
        separator: String,
        /// Fewest.
        min: usize,
        /// Most.
        max: Option<usize>,
    },
    /// Free text in which a trigger must be the beginning of a tag, with what the tag says behind it.
    Triggered {
        /// Beginnings of tags; every tag begins with one of them.
        triggers: Vec<String>,
        /// The tags.
        tags: Vec<Tagged>,
        /// The text has at least one.
        at_least_one: bool,
        /// Nothing follows the first one.
        stop_after_first: bool,
    },
}

/// Text between a beginning and an end.
#[derive(Clone, Debug, PartialEq)]
pub struct Tagged {
    /// How it begins.
    pub begin: String,
    /// What is in it.
    pub content: Format,
    /// How it ends.
    pub end: String,
}

impl From<Tagged> for Format {
    fn from(tag: Tagged) -> Format {
        Format::Sequence(vec![Format::Text(tag.begin), tag.content, Format::Text(tag.end)])
    }
}

impl From<Format> for GrammarSource {
    fn from(format: Format) -> GrammarSource {
        GrammarSource { format, spacing: Spacing::default() }
    }
}

/// Why a grammar was not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is wrong, needs something that cannot be enforced, or is too large: the caller's fault.
    #[error("{0}")]
    Invalid(String),
    /// Other grammars are being compiled and did not end in time; another attempt may succeed.
    #[error("too many grammars are being compiled")]
    Busy,
}

/// An `Invalid` of anything that can be shown.
pub(super) fn invalid(reason: impl std::fmt::Display) -> GrammarError {
    GrammarError::Invalid(reason.to_string())
}
