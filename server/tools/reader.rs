//! `Reader`: a construct of a dialect that begins with a mark, read as its text comes.

use super::call::ToolCall;
use super::named::NamedScan;
use super::offered::OfferedTools;
use super::parser::TextEnd;
use super::python::PythonScan;
use super::xml::XmlScan;

/// The construct that the held text begins with.
pub(super) enum Reader {
    /// `<function=NAME>`.
    Function(XmlScan),
    /// A name, then JSON.
    Named(NamedScan),
    /// A list of Python calls.
    Python(PythonScan),
}

/// What a reader says of the held text.
pub(super) enum Reading {
    /// More is needed; never said at the end of the text.
    More,
    /// The first bytes are these calls and their frame.
    Calls(Vec<ToolCall>, usize),
    /// The same, and the reader goes on behind them.
    CallsOn(Vec<ToolCall>, usize),
    /// The first bytes are text.
    Text(usize),
    /// Not this construct: JSON values may stand behind the mark, which has so many bytes, or at the beginning of the line.
    Values(usize),
}

impl Reader {
    /// Looks at `held`, which may have grown since.
    pub(super) fn look(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>) -> Reading {
        match self {
            Reader::Function(scan) => scan.look(held, tools, end),
            Reader::Named(scan) => scan.look(held, tools, end),
            Reader::Python(scan) => scan.look(held, tools, end),
        }
    }
}
