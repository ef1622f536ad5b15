//! The incremental parser: text of the model in, in any pieces; text, and calls when they are whole, out.
//!
//! `held` starts where nothing is decided yet. In plain text it is at most the beginning of a mark, a fence or a line; behind a start
//! mark, a fence or a bracket that starts a line it grows until the construct turns out to be a call or not. What is no call comes out as
//! text, byte for byte. Every decision looks at `held` from its beginning and at the end of the text, never at how the pieces were cut,
//! so any cut gives the same result. Looks go on where they stopped, so the work is linear in the text.

use pagoda_backends::{StopReason, ToolDialect};

use super::bare::BareScan;
use super::call::{Region, ToolCall, Trust};
use super::dialects::{Dialect, Opens};
use super::extent::Extent;
use super::fence::FenceScan;
use super::held::Held;
use super::named::NamedScan;
use super::offered::OfferedTools;
use super::python::PythonScan;
use super::reader::Reader;
use super::scan::note;
use super::xml::XmlScan;

/// What the parser found.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text of the answer. Never a part of a tag or of a call that comes later.
    Text(String),
    /// A whole call.
    Call(ToolCall),
}

/// Why the text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextEnd {
    /// The model was done: what is missing at the very end may be filled in.
    Complete,
    /// The text was cut: only what is whole counts.
    Cut,
}

impl TextEnd {
    /// From why an answer ended.
    pub(crate) fn of(reason: &StopReason) -> TextEnd {
        match reason {
            StopReason::MaxTokens | StopReason::ContextFull | StopReason::Aborted => TextEnd::Cut,
            StopReason::EndOfTurn | StopReason::StopSequence(_) | StopReason::StopToken(_) => TextEnd::Complete,
        }
    }
}

/// Pieces with neighbouring texts as one.
pub(super) fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut whole = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match piece {
            Piece::Text(text) => push_text(&mut whole, &text),
            call @ Piece::Call(_) => whole.push(call),
        }
    }
    whole
}

pub(super) const FENCE: &str = "```";

/// What `held` begins with.
pub(super) enum Mode {
    /// Text.
    Text,
    /// A start tag. `closes`: it stands where the end tag of the call before it belongs, so alone it is that.
    Tag { len: usize, trust: Trust, closes: bool, scan: Scan },
    /// A bracket that starts a line.
    Bare { scan: BareScan },
    /// A fence that starts a line.
    Fence { scan: FenceScan },
    /// A construct that its reader knows.
    Reader(Reader),
    /// Text inside a value that is no call: brackets mean nothing.
    Value { extent: Extent },
    /// Text inside a fence that holds no call. `tags`: a start tag still counts.
    Code { tags: bool },
}

/// How far a search for the end of a region has come.
pub(super) struct Scan {
    pub(super) at: usize,
    /// A value stands behind the start tag.
    pub(super) begun: bool,
    /// A value has ended.
    pub(super) ended: bool,
    pub(super) extent: Extent,
}

/// What a look at `held` came to.
pub(super) enum Look {
    /// Decided something.
    Went,
    /// Needs more text.
    Wait,
}

/// Parses one answer.
pub struct ToolParser {
    pub(super) tools: OfferedTools,
    pub(super) dialect: &'static Dialect,
    pub(super) held: Held,
    pub(super) mode: Mode,
    /// White space at the end of the text so far: dropped when a call follows.
    space: String,
    /// Nothing but white space since the last call.
    pub(super) after_call: bool,
    /// Nothing but white space since the start of the line.
    pub(super) line_start: bool,
    pieces: Vec<Piece>,
}

impl ToolParser {
    /// A parser for a request that offers `tools` to a model that writes calls in `dialect`; without tools, everything is text.
    pub fn new(tools: OfferedTools, dialect: ToolDialect) -> ToolParser {
        let (held, dialect) = (Held::default(), Dialect::of(dialect));
        ToolParser { tools, dialect, held, mode: Mode::Text, space: String::new(), after_call: false, line_start: true, pieces: Vec::new() }
    }

    /// Takes the next piece of text; gives what is decided now.
    pub fn feed(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        self.run(None)
    }

    /// The text is over; gives the rest.
    pub fn finish(&mut self, end: TextEnd) -> Vec<Piece> {
        let mut pieces = self.run(Some(end));
        push_text(&mut pieces, &self.take_space());
        pieces
    }

    fn run(&mut self, end: Option<TextEnd>) -> Vec<Piece> {
        if self.tools.is_empty() {
            self.take_text(self.held.len());
        }
        while !self.held.is_empty() {
            let mode = std::mem::replace(&mut self.mode, Mode::Text);
            let look = match mode {
                Mode::Text => self.look_text(end),
                Mode::Tag { len, trust, closes, scan } => self.look_tag(end, len, trust, closes, scan),
                Mode::Bare { scan } => self.look_bare(end, scan),
                Mode::Fence { scan } => self.look_fence(end, scan),
                Mode::Reader(reader) => self.look_reader(end, reader),
                Mode::Value { extent } => self.look_value(end, extent),
                Mode::Code { tags } => self.look_code(end, tags),
            };
            if matches!(look, Look::Wait) {
                break;
            }
        }
        std::mem::take(&mut self.pieces)
    }

    /// Moves `len` bytes of `held` to the text. White space waits for what follows it.
    pub(super) fn take_text(&mut self, len: usize) {
        note(len);
        let text = self.held.take(len);
        self.line_start = match text.rfind('\n') {
            Some(at) => text[at..].trim().is_empty(),
            None => self.line_start && text.trim().is_empty(),
        };
        let kept = text.trim_end().len();
        if kept == 0 {
            self.space.push_str(&text);
            return;
        }
        let before = self.take_space();
        let shown = if self.after_call && before.is_empty() { text[..kept].trim_start() } else { &text[..kept] };
        push_text(&mut self.pieces, &before);
        push_text(&mut self.pieces, shown);
        self.after_call = false;
        self.space.push_str(&text[kept..]);
    }

    /// What waited for the text behind it: all of it, or behind a call only what is more than white space.
    fn take_space(&mut self) -> String {
        let space = std::mem::take(&mut self.space);
        if self.after_call { space.trim_start().to_owned() } else { space }
    }

    /// A semicolon behind a call: parts it from another call, or is text.
    pub(super) fn take_semicolon(&mut self, len: usize) {
        let text = self.held.take(len);
        self.space.push_str(&text);
    }

    /// Drops `len` bytes of `held`, which were calls and their frame.
    pub(super) fn take_calls(&mut self, len: usize, calls: Vec<ToolCall>) {
        self.held.skip(len);
        self.space.clear();
        self.pieces.extend(calls.into_iter().map(Piece::Call));
        self.after_call = true;
        self.line_start = true;
    }

    pub(super) fn take_region(&mut self, len: usize, region: Region) {
        self.take_calls(len, region.calls);
        if !region.rest.trim().is_empty() {
            push_text(&mut self.pieces, region.rest.trim());
            self.after_call = false;
            self.line_start = false;
        }
    }

    /// Text up to `at`; then `mode`.
    pub(super) fn enter(&mut self, at: usize, mode: Mode) -> Look {
        self.take_text(at);
        self.mode = mode;
        Look::Went
    }

    /// Text up to `at`; what follows waits.
    pub(super) fn hold(&mut self, at: usize) -> Look {
        self.take_text(at);
        Look::Wait
    }

    /// What begins at the start mark that `held` begins with.
    pub(super) fn opened(&self, len: usize, opens: Opens, closes: bool) -> Mode {
        match opens {
            Opens::Values(trust) => Mode::Tag { len, trust, closes, scan: Scan::new(len) },
            Opens::Function => Mode::Reader(Reader::Function(XmlScan::new(0, Trust::Bare))),
            Opens::Named(form) => Mode::Reader(Reader::Named(NamedScan::new(form, len))),
            Opens::Python => Mode::Reader(Reader::Python(PythonScan::marked(len))),
        }
    }
}

impl Scan {
    pub(super) fn new(at: usize) -> Scan {
        Scan { at, begun: false, ended: false, extent: Extent::new(true) }
    }
}

/// Adds to the last text, so that pieces do not depend on how often text was taken.
fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(last)) => last.push_str(text),
        _ => pieces.push(Piece::Text(text.into())),
    }
}
