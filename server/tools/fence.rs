//! What a fence holds: nothing but calls, or something else.

use super::bare::{KeyScan, Plausible};
use super::call::{ToolCall, strict_calls};
use super::extent::{Extent, Progress};
use super::offered::OfferedTools;
use super::parser::{FENCE, TextEnd};
use super::scan::{Scanned, find_byte, note, skip_space};

/// Longest first line of a fence.
const MAX_HEADER: usize = 256;

/// What a fence came to.
pub(super) enum FenceCalls {
    /// Nothing but calls; the bytes of the whole fence.
    Calls(Vec<ToolCall>, usize),
    /// Something else; the bytes of its first line.
    Code { header: usize, tags: bool },
    /// Not decided.
    Open,
}

/// How far a look at a fence has come.
pub(super) struct FenceScan {
    at: usize,
    step: FenceStep,
    header: usize,
    calls: Vec<ToolCall>,
}

enum FenceStep {
    /// In the first line.
    Header,
    /// Between two values.
    Between,
    /// In a value that begins at `from`.
    Value { from: usize, key: Option<KeyScan>, extent: Extent },
}

impl FenceScan {
    /// At the beginning of a fence.
    pub(super) fn new() -> FenceScan {
        FenceScan { at: FENCE.len(), step: FenceStep::Header, header: 0, calls: Vec::new() }
    }

    /// Looks at `held`, which begins with the fence and may have grown since.
    pub(super) fn look(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>) -> FenceCalls {
        loop {
            let went = match &mut self.step {
                FenceStep::Header => self.look_header(held, end),
                FenceStep::Between => self.look_between(held, end),
                FenceStep::Value { .. } => self.look_value(held, tools, end),
            };
            if let Some(found) = went {
                return found;
            }
        }
    }

    fn code(&self) -> FenceCalls {
        FenceCalls::Code { header: self.header, tags: true }
    }

    fn look_header(&mut self, held: &str, end: Option<TextEnd>) -> Option<FenceCalls> {
        match (find_byte(held, &mut self.at, b'\n', MAX_HEADER), end) {
            (Scanned::Found(at), _) => self.header = at,
            (Scanned::More, None) => return Some(FenceCalls::Open),
            (Scanned::More, Some(_)) => self.header = held.len(),
            (Scanned::Nothing, _) => return Some(FenceCalls::Code { header: FENCE.len(), tags: false }),
        }
        let language = held[FENCE.len()..self.header].trim();
        if !language.is_empty() && !language.eq_ignore_ascii_case("json") {
            return Some(FenceCalls::Code { header: self.header, tags: false });
        }
        self.at = self.header;
        self.step = FenceStep::Between;
        None
    }

    fn look_between(&mut self, held: &str, end: Option<TextEnd>) -> Option<FenceCalls> {
        let is_more = skip_space(held, &mut self.at);
        let rest = &held[self.at..];
        if rest.starts_with(FENCE) {
            let calls = std::mem::take(&mut self.calls);
            return Some(if calls.is_empty() { self.code() } else { FenceCalls::Calls(calls, self.at + FENCE.len()) });
        }
        if FENCE.starts_with(rest) {
            return Some(match end {
                None => FenceCalls::Open,
                Some(_) if !is_more && !self.calls.is_empty() => FenceCalls::Calls(std::mem::take(&mut self.calls), self.at),
                Some(_) => self.code(),
            });
        }
        self.step = FenceStep::Value { from: self.at, key: Some(KeyScan::new()), extent: Extent::new(false) };
        None
    }

    fn look_value(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>) -> Option<FenceCalls> {
        let header = self.header;
        let FenceStep::Value { from, key, extent } = &mut self.step else { return None };
        let code = || Some(FenceCalls::Code { header, tags: true });
        if let Some(scan) = key {
            match scan.look(&held[*from..]) {
                Plausible::Yes(_) => *key = None,
                Plausible::Open if end.is_none() => return Some(FenceCalls::Open),
                Plausible::Open | Plausible::No => return code(),
            }
        }
        let done = held.as_bytes()[self.at..].iter().position(|&byte| extent.push(byte) == Progress::Done);
        let Some(len) = done else {
            self.at = held.len();
            return if end.is_none() { Some(FenceCalls::Open) } else { code() };
        };
        self.at += len + 1;
        note(self.at - *from);
        match strict_calls(&held[*from..self.at], tools) {
            Some(calls) => self.calls.extend(calls),
            None => return code(),
        }
        self.step = FenceStep::Between;
        None
    }
}
