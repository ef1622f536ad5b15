//! The parser's looks at text: outside of everything, inside a value that is no call, inside a fence that holds none.

use super::bare::BareScan;
use super::dialects::Found;
use super::extent::{Extent, Progress};
use super::fence::FenceScan;
use super::parser::{FENCE, Look, Mode, TextEnd, ToolParser};
use super::python::PythonScan;
use super::reader::Reader;
use super::scan::note;

impl ToolParser {
    /// Text up to the first thing that may be more.
    pub(super) fn look_text(&mut self, end: Option<TextEnd>) -> Look {
        let mut line_start = self.line_start;
        for (at, c) in self.held.char_indices() {
            let rest = &self.held[at..];
            if self.dialect.may_begin(c) {
                match self.dialect.mark_at(rest) {
                    Found::Start(len, opens) => return self.enter(at, self.opened(len, opens, false)),
                    Found::End(len) if self.after_call && self.held[..at].trim().is_empty() => {
                        self.held.skip(at + len);
                        return Look::Went;
                    }
                    Found::Part if end.is_none() => return self.hold(at),
                    _ => {}
                }
            }
            match c {
                '`' if line_start && self.dialect.bare => {
                    if rest.starts_with(FENCE) {
                        return self.enter(at, Mode::Fence { scan: FenceScan::new() });
                    }
                    if end.is_none() && FENCE.starts_with(rest) {
                        return self.hold(at);
                    }
                }
                '[' if line_start && self.dialect.bare_python => return self.enter(at, Mode::Reader(Reader::Python(PythonScan::bare()))),
                '{' | '[' if line_start && self.dialect.bare => return self.enter(at, Mode::Bare { scan: BareScan::new() }),
                ';' if self.dialect.semicolons && self.after_call && self.held[..at].trim().is_empty() => {
                    self.take_semicolon(at + 1);
                    return Look::Went;
                }
                _ => {}
            }
            line_start = c == '\n' || (line_start && c.is_whitespace());
        }
        note(self.held.len());
        self.take_text(self.held.len());
        Look::Went
    }

    /// Inside a value that is no call: text up to its end, or up to a tag.
    pub(super) fn look_value(&mut self, end: Option<TextEnd>, mut extent: Extent) -> Look {
        let mut stop = None;
        for (at, byte) in self.held.bytes().enumerate() {
            if byte == b'<' {
                match self.dialect.mark_at(&self.held[at..]) {
                    Found::Start(..) if !extent.in_string() => {
                        stop = Some((at, false));
                        break;
                    }
                    Found::Part if end.is_none() => {
                        stop = Some((at, true));
                        break;
                    }
                    _ => {}
                }
            }
            if extent.push(byte) == Progress::Done {
                stop = Some((at + 1, false));
                break;
            }
        }
        match stop {
            Some((0, true)) => {
                self.mode = Mode::Value { extent };
                Look::Wait
            }
            Some((at, true)) => {
                self.take_text(at);
                self.mode = Mode::Value { extent };
                Look::Wait
            }
            Some((at, false)) => self.enter(at, Mode::Text),
            None => {
                self.take_text(self.held.len());
                self.mode = Mode::Value { extent };
                Look::Went
            }
        }
    }

    /// Inside a fence that holds no call: text up to the closing fence.
    pub(super) fn look_code(&mut self, end: Option<TextEnd>, tags: bool) -> Look {
        let mut line_start = self.line_start;
        for (at, c) in self.held.char_indices() {
            let rest = &self.held[at..];
            if c == '`' && line_start {
                if rest.starts_with(FENCE) {
                    return self.enter(at + FENCE.len(), Mode::Text);
                }
                if end.is_none() && FENCE.starts_with(rest) {
                    self.take_text(at);
                    self.mode = Mode::Code { tags };
                    return Look::Wait;
                }
            }
            if c == '<' && tags {
                match self.dialect.mark_at(rest) {
                    Found::Start(..) => return self.enter(at, Mode::Text),
                    Found::Part if end.is_none() => {
                        self.take_text(at);
                        self.mode = Mode::Code { tags };
                        return Look::Wait;
                    }
                    _ => {}
                }
            }
            line_start = c == '\n' || (line_start && c.is_whitespace());
        }
        self.take_text(self.held.len());
        self.mode = Mode::Code { tags };
        Look::Went
    }
}
