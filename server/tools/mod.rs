//! Tool calls in the text of a model: an incremental parser that every backend shares.
//!
//! `ToolParser` takes the text as it comes and gives text and whole calls. It is lenient inside tags, where the model said that it
//! calls, and strict outside of them, where leniency would invent a call from an example. Nothing is dropped: what does not parse is text.
//! How a family of models writes a call is a row of `dialects`.

mod answer;
mod bare;
mod call;
mod constructs;
mod dialects;
mod extent;
mod fence;
mod held;
mod lenient_json;
mod named;
mod offered;
mod parser;
mod plain_text;
mod python;
mod reader;
mod scan;
mod typed;
mod xml;

pub use answer::{AnswerParser, ToolUse};
pub use call::ToolCall;
pub use offered::{OfferedTool, OfferedTools};
pub use parser::{Piece, TextEnd, ToolParser};

#[cfg(test)]
mod tests;
