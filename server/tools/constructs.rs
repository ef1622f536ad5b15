//! The parser's looks at what may be a call: behind a start tag, at a bracket that starts a line, in a fence.

use super::call::{Trust, region_calls, strict_calls};
use super::extent::{Extent, Progress};
use super::fence::{FenceCalls, fence_calls, plausible_call, single_quoted};
use super::parser::{END_TAGS, FENCE, Found, Look, Mode, Scan, TextEnd, ToolParser};

impl ToolParser {
    pub(super) fn look_tag(&mut self, end: Option<TextEnd>, len: usize, trust: Trust, closes: bool, mut scan: Scan) -> Look {
        let inside = self.held[len..].trim_start();
        let begins = match inside.as_bytes().first() {
            None => end.is_none(),
            Some(b'{' | b'[' | b'"' | b'\'') => true,
            Some(b'`') => inside.starts_with(FENCE) || (end.is_none() && FENCE.starts_with(inside)),
            Some(_) => false,
        };
        if !begins {
            if closes {
                self.held.drain(..len);
            } else {
                self.take_text(len);
            }
            return Look::Went;
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
            (None, Some(_)) => match END_TAGS.iter().filter_map(|tag| Some((self.held.find(tag)?, tag.len()))).min() {
                Some((at, tag_len)) => (at, Found::End(tag_len)),
                None => (without_tag_part(&self.held), Found::Nothing),
            },
        };
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
        if let Found::Start(len, trust) = next {
            self.mode = Mode::Tag { len, trust, closes: is_call, scan: Scan::new(len, true) };
        }
        Look::Went
    }

    /// Where a tag outside of strings ends the region; `None` when the text ends first.
    fn region_end(&self, scan: &mut Scan, end: Option<TextEnd>) -> Option<(usize, Found)> {
        let bytes = self.held.as_bytes();
        while scan.at < bytes.len() {
            if bytes[scan.at] == b'<' && !scan.extent.in_string() {
                match self.tag_at(&self.held[scan.at..]) {
                    Found::Part if end.is_none() => return None,
                    found @ (Found::Start(..) | Found::End(_)) => return Some((scan.at, found)),
                    _ => {}
                }
            }
            scan.extent.push(bytes[scan.at]);
            scan.at += 1;
        }
        None
    }

    pub(super) fn look_bare(&mut self, end: Option<TextEnd>, mut scan: Scan) -> Look {
        match plausible_call(&self.held) {
            Some(false) => return self.enter(0, Mode::Value { extent: Extent::new(false) }),
            None if end.is_none() => {
                self.mode = Mode::Bare { scan: Scan::new(0, single_quoted(&self.held)) };
                return Look::Wait;
            }
            None => return self.enter(0, Mode::Value { extent: Extent::new(false) }),
            // Only now a quote is there for sure: which one must not depend on how the text was cut.
            Some(true) if scan.at == 0 => scan = Scan::new(0, single_quoted(&self.held)),
            Some(true) => {}
        }
        let bytes = self.held.as_bytes();
        let mut closed_by_tag = None;
        let mut value_end = None;
        while scan.at < bytes.len() {
            if bytes[scan.at] == b'<' && !scan.extent.in_string() {
                match self.tag_at(&self.held[scan.at..]) {
                    Found::End(len) => closed_by_tag = Some((scan.at, len)),
                    Found::Part if end.is_none() => break,
                    _ => {}
                }
                if closed_by_tag.is_some() {
                    break;
                }
            }
            let progress = scan.extent.push(bytes[scan.at]);
            scan.at += 1;
            if progress == Progress::Done {
                value_end = Some(scan.at);
                break;
            }
        }
        match (value_end, closed_by_tag) {
            (Some(at), _) => self.finish_bare(end, at),
            (None, Some((at, len))) => self.finish_tagged(at, len),
            (None, None) if end.is_none() => {
                self.mode = Mode::Bare { scan };
                Look::Wait
            }
            (None, None) => self.enter(0, Mode::Value { extent: Extent::new(false) }),
        }
    }

    /// A value ended at `at`: an end tag behind it makes it a tagged one.
    fn finish_bare(&mut self, end: Option<TextEnd>, at: usize) -> Look {
        let after = self.held[at..].trim_start();
        let tag_at = self.held.len() - after.len();
        let found = if after.is_empty() { Found::Part } else { self.tag_at(after) };
        match found {
            Found::End(len) => return self.finish_tagged(tag_at, len),
            Found::Part if end.is_none() => {
                // Looked at again from the start of the value when more is known: once a value.
                self.mode = Mode::Bare { scan: Scan::new(0, single_quoted(&self.held)) };
                return Look::Wait;
            }
            _ => {}
        }
        match strict_calls(&self.held[..at], &self.tools) {
            Some(calls) => self.take_calls(at, calls),
            None => self.take_text(at),
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

    pub(super) fn look_fence(&mut self, end: Option<TextEnd>) -> Look {
        let Some(header) = self.held.find('\n').or(end.map(|_| self.held.len())) else {
            self.mode = Mode::Fence;
            return Look::Wait;
        };
        let language = self.held[FENCE.len()..header].trim().to_ascii_lowercase();
        if !matches!(language.as_str(), "" | "json") {
            self.take_text(header);
            self.mode = Mode::Code { tags: false };
            return Look::Went;
        }
        match fence_calls(&self.held, header, &self.tools, end) {
            FenceCalls::Calls(calls, len) => self.take_calls(len, calls),
            FenceCalls::None => {
                self.take_text(header);
                self.mode = Mode::Code { tags: true };
            }
            FenceCalls::Open => {
                self.mode = Mode::Fence;
                return Look::Wait;
            }
        }
        Look::Went
    }
}

/// Length of the text without the beginning of an end tag that the end of the text cut.
fn without_tag_part(text: &str) -> usize {
    match text.rfind('<') {
        Some(at) if END_TAGS.iter().any(|tag| tag.starts_with(&text[at..])) => at,
        _ => text.len(),
    }
}
