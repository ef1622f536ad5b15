//! The parser's looks at text: outside of everything, inside a value that is no call, inside a fence that holds none.

use super::extent::{Extent, Progress};
use super::fence::single_quoted;
use super::parser::{FENCE, Found, Look, Mode, Scan, TextEnd, ToolParser};

impl ToolParser {
    /// Text up to the first thing that may be more.
    pub(super) fn look_text(&mut self, end: Option<TextEnd>) -> Look {
        let mut line_start = self.line_start;
        for (at, c) in self.held.char_indices() {
            let rest = &self.held[at..];
            match c {
                '<' => match self.tag_at(rest) {
                    Found::Start(len, trust) => return self.enter(at, Mode::Tag { len, trust, closes: false, scan: Scan::new(len, true) }),
                    Found::End(len) if self.after_call && self.held[..at].trim().is_empty() => {
                        self.held.drain(..at + len);
                        return Look::Went;
                    }
                    Found::Part if end.is_none() => return self.hold(at),
                    _ => {}
                },
                '`' if line_start => {
                    if rest.starts_with(FENCE) {
                        return self.enter(at, Mode::Fence);
                    }
                    if end.is_none() && FENCE.starts_with(rest) {
                        return self.hold(at);
                    }
                }
                '{' | '[' if line_start => return self.enter(at, Mode::Bare { scan: Scan::new(0, single_quoted(rest)) }),
                _ => {}
            }
            line_start = c == '\n' || (line_start && c.is_whitespace());
        }
        self.take_text(self.held.len());
        Look::Went
    }

    /// Inside a value that is no call: text up to its end, or up to a tag.
    pub(super) fn look_value(&mut self, end: Option<TextEnd>, mut extent: Extent) -> Look {
        let mut stop = None;
        for (at, byte) in self.held.bytes().enumerate() {
            if byte == b'<' {
                match self.tag_at(&self.held[at..]) {
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
                match self.tag_at(rest) {
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
