//! The parser's looks at what may be a call: behind a start tag, at a bracket that starts a line, in a fence.

use super::bare::{BareScan, Plausible};
use super::call::{Trust, region_calls, strict_calls};
use super::dialects::Found;
use super::extent::{Extent, Progress};
use super::fence::{FenceCalls, FenceScan};
use super::parser::{FENCE, Look, Mode, Scan, TextEnd, ToolParser};
use super::reader::{Reader, Reading};
use super::scan::{note, skip_space};
use super::xml::{FUNCTION, XmlScan};

impl ToolParser {
    pub(super) fn look_tag(&mut self, end: Option<TextEnd>, len: usize, trust: Trust, closes: bool, mut scan: Scan) -> Look {
        if !scan.begun {
            match self.look_inside(end, &mut scan.at, trust) {
                Inside::Values => scan.begun = true,
                Inside::Function(at) => {
                    self.mode = Mode::Reader(Reader::Function(XmlScan::new(at, trust)));
                    return Look::Went;
                }
                Inside::Open => {
                    self.mode = Mode::Tag { len, trust, closes, scan };
                    return Look::Wait;
                }
                Inside::Nothing => {
                    if closes {
                        self.held.skip(len);
                    } else {
                        self.take_text(len);
                    }
                    return Look::Went;
                }
            }
        }
        let found = self.region_end(&mut scan, end);
        let complete_only = end == Some(TextEnd::Cut);
        let (inner_end, next) = match (found, end) {
            (Some((at, found)), _) => (at, found),
            (None, None) => {
                self.mode = Mode::Tag { len, trust, closes, scan };
                return Look::Wait;
            }
            // A quote is missing somewhere: take the first end tag that is written.
            (None, Some(_)) => match self.dialect.ends.iter().filter_map(|tag| Some((self.held.find(tag)?, tag.len()))).min() {
                Some((at, tag_len)) => (at, Found::End(tag_len)),
                None => (self.without_tag_part(), Found::Nothing),
            },
        };
        note(inner_end);
        let region = region_calls(&self.held[len..inner_end], &self.tools, trust, complete_only && matches!(next, Found::Nothing));
        let whole = match next {
            Found::End(tag_len) => inner_end + tag_len,
            Found::Start(..) => inner_end,
            Found::Part | Found::Nothing => self.held.len(),
        };
        let is_call = region.is_some();
        match region {
            Some(region) => self.take_region(whole, region),
            None => self.take_text(whole),
        }
        if let Found::Start(len, opens) = next {
            self.mode = self.opened(len, opens, is_call);
        }
        Look::Went
    }

    /// What stands behind a start tag.
    fn look_inside(&self, end: Option<TextEnd>, at: &mut usize, trust: Trust) -> Inside {
        let is_more = skip_space(&self.held, at);
        let inside = &self.held[*at..];
        let may_become = |mark: &str| end.is_none() && mark.starts_with(inside);
        match inside.as_bytes().first() {
            Some(b'{' | b'[') => Inside::Values,
            // A call as the text of a string.
            Some(b'"' | b'\'') if inside[1..].starts_with(['{', '[']) => Inside::Values,
            Some(b'"' | b'\'') if inside.len() == 1 && end.is_none() => Inside::Open,
            Some(b'`') if inside.starts_with(FENCE) => Inside::Values,
            Some(b'<') if trust == Trust::Tag && inside.starts_with(FUNCTION) => Inside::Function(*at),
            None if end.is_none() => Inside::Open,
            Some(b'`' | b'<') if is_more && (may_become(FENCE) || trust == Trust::Tag && may_become(FUNCTION)) => Inside::Open,
            _ => Inside::Nothing,
        }
    }

    /// Where a tag outside of strings ends the region; `None` when the text ends first.
    fn region_end(&self, scan: &mut Scan, end: Option<TextEnd>) -> Option<(usize, Found)> {
        let bytes = self.held.as_bytes();
        while scan.at < bytes.len() {
            if bytes[scan.at] == b'<' && !scan.extent.in_string() {
                match self.dialect.mark_at(&self.held[scan.at..]) {
                    Found::Part if end.is_none() => return None,
                    found @ (Found::Start(..) | Found::End(_)) => return Some((scan.at, found)),
                    _ => {}
                }
            }
            // Behind a value, quotes are those of words.
            let in_words = scan.ended && scan.extent.is_outside() && matches!(bytes[scan.at], b'"' | b'\'');
            scan.ended |= !in_words && scan.extent.push(bytes[scan.at]) == Progress::Done;
            scan.at += 1;
        }
        None
    }

    pub(super) fn look_bare(&mut self, end: Option<TextEnd>, mut scan: BareScan) -> Look {
        loop {
            scan = match scan {
                BareScan::Key(mut key) => match key.look(&self.held) {
                    Plausible::Yes(quote) => BareScan::Value { at: 0, extent: Extent::new(quote == '\'') },
                    Plausible::Open if end.is_none() => {
                        self.mode = Mode::Bare { scan: BareScan::Key(key) };
                        return Look::Wait;
                    }
                    Plausible::Open | Plausible::No => return self.enter(0, Mode::Value { extent: Extent::new(false) }),
                },
                BareScan::Value { at, extent } => match self.bare_end(end, at, extent) {
                    BareEnd::Value(end) => BareScan::After { end, at: end },
                    BareEnd::Tag(at, len) => return self.finish_tagged(at, len),
                    BareEnd::Open(at, extent) if end.is_none() => {
                        self.mode = Mode::Bare { scan: BareScan::Value { at, extent } };
                        return Look::Wait;
                    }
                    BareEnd::Open(..) => return self.enter(0, Mode::Value { extent: Extent::new(false) }),
                },
                BareScan::After { end: value_end, at } => return self.finish_bare(end, value_end, at),
            };
        }
    }

    /// Where a value without a start tag ends: by itself, or at an end tag.
    fn bare_end(&self, end: Option<TextEnd>, mut at: usize, mut extent: Extent) -> BareEnd {
        let bytes = self.held.as_bytes();
        while at < bytes.len() {
            if bytes[at] == b'<' && !extent.in_string() {
                match self.dialect.mark_at(&self.held[at..]) {
                    Found::End(len) => return BareEnd::Tag(at, len),
                    Found::Part if end.is_none() => break,
                    _ => {}
                }
            }
            let progress = extent.push(bytes[at]);
            at += 1;
            if progress == Progress::Done {
                return BareEnd::Value(at);
            }
        }
        BareEnd::Open(at, extent)
    }

    /// A value ended at `value_end`: an end tag behind it makes it a tagged one.
    fn finish_bare(&mut self, end: Option<TextEnd>, value_end: usize, mut at: usize) -> Look {
        let is_more = skip_space(&self.held, &mut at);
        let found = if is_more { self.dialect.mark_at(&self.held[at..]) } else { Found::Part };
        match found {
            Found::End(len) => return self.finish_tagged(at, len),
            Found::Part if end.is_none() => {
                self.mode = Mode::Bare { scan: BareScan::After { end: value_end, at } };
                return Look::Wait;
            }
            _ => {}
        }
        note(value_end);
        match strict_calls(&self.held[..value_end], &self.tools) {
            Some(calls) => self.take_calls(value_end, calls),
            None => self.take_text(value_end),
        }
        Look::Went
    }

    fn finish_tagged(&mut self, at: usize, tag_len: usize) -> Look {
        match region_calls(&self.held[..at], &self.tools, Trust::Tag, false) {
            Some(region) => self.take_region(at + tag_len, region),
            None => self.take_text(at + tag_len),
        }
        Look::Went
    }

    pub(super) fn look_fence(&mut self, end: Option<TextEnd>, mut scan: FenceScan) -> Look {
        match scan.look(&self.held, &self.tools, end) {
            FenceCalls::Calls(calls, len) => self.take_calls(len, calls),
            FenceCalls::Code { header, tags } => return self.enter(header, Mode::Code { tags }),
            FenceCalls::Open => {
                self.mode = Mode::Fence { scan };
                return Look::Wait;
            }
        }
        Look::Went
    }

    pub(super) fn look_reader(&mut self, end: Option<TextEnd>, mut reader: Reader) -> Look {
        match reader.look(&self.held, &self.tools, end) {
            Reading::More => {
                self.mode = Mode::Reader(reader);
                return Look::Wait;
            }
            Reading::Calls(calls, len) => self.take_calls(len, calls),
            Reading::CallsOn(calls, len) => {
                self.take_calls(len, calls);
                self.mode = Mode::Reader(reader);
            }
            Reading::Text(len) => self.take_text(len),
            Reading::Values(0) => self.mode = Mode::Bare { scan: BareScan::new() },
            Reading::Values(len) => self.mode = Mode::Tag { len, trust: Trust::Tag, closes: false, scan: Scan::new(len) },
        }
        Look::Went
    }

    /// Length of the held text without the beginning of an end tag that the end of the text cut.
    fn without_tag_part(&self) -> usize {
        match self.held.rfind('<') {
            Some(at) if self.dialect.ends.iter().any(|tag| tag.starts_with(&self.held[at..])) => at,
            _ => self.held.len(),
        }
    }
}

/// What a look behind a start tag came to.
enum Inside {
    Values,
    /// `<function=`, so many bytes from the start.
    Function(usize),
    Open,
    Nothing,
}

/// What ends a value without a start tag.
enum BareEnd {
    /// Its own bracket, in front of this place.
    Value(usize),
    /// An end tag: its place and length.
    Tag(usize, usize),
    /// Not yet.
    Open(usize, Extent),
}
