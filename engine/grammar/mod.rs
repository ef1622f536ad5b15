//! Grammars: what the text of an answer must match, compiled once and turned into masks of allowed tokens step by step.
//!
//! `Compiler` makes a `Grammar` of a `GrammarSource`, off the engine thread; a request carries it in its `SamplingParams`. The sampler
//! keeps a `SlotMask` of every constrained sequence, whose masks are made on a pool of threads as soon as a token is known. The work of
//! parsing is llguidance's (MIT, Microsoft); what is here says what to parse, bounds it, and keeps it out of everybody's way.

mod compiled;
mod compiler;
mod ebnf;
mod json_guard;
mod lark;
mod masks;
mod schema;
mod source;
mod state;
mod structural_tag;
mod vocabulary;

pub use compiled::Grammar;
pub use compiler::{Compiler, Limits};
pub use masks::SlotMask;
pub use source::{Format, GrammarError, GrammarSource, Spacing, Tagged};
pub use state::GrammarState;
pub use structural_tag::format_of_structural_tag;

#[cfg(test)]
mod tests;
