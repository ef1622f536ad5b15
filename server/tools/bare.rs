//! Whether a bracket can begin a call at all, and how far a look at such a value has come.

use super::call::CALL_KEYS;
use super::extent::Extent;
use super::scan::skip_space;

/// Looks for the first key of a value that begins with a bracket: only a call's own keys make it plausible.
#[derive(Clone, Debug)]
pub(super) struct KeyScan {
    at: usize,
    step: KeyStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyStep {
    /// The first byte.
    Open,
    /// Behind `[`.
    Item,
    /// Behind `{`.
    Object,
    /// Behind `{`, or `{{`.
    Quote,
    /// Inside the key.
    Key(char),
}

/// What the first key says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plausible {
    /// A call's key, in these quotes.
    Yes(char),
    No,
    /// Too short to say.
    Open,
}

impl KeyScan {
    pub(super) fn new() -> KeyScan {
        KeyScan { at: 0, step: KeyStep::Open }
    }

    /// Looks at `text`, which begins with the bracket and may have grown since.
    pub(super) fn look(&mut self, text: &str) -> Plausible {
        loop {
            if self.step != KeyStep::Open && !matches!(self.step, KeyStep::Key(_)) && !skip_space(text, &mut self.at) {
                return Plausible::Open;
            }
            let Some(c) = text[self.at..].chars().next() else { return Plausible::Open };
            self.step = match (self.step, c) {
                (KeyStep::Open, '[') => KeyStep::Item,
                (KeyStep::Open | KeyStep::Item, '{') => KeyStep::Object,
                (KeyStep::Object, '{') => KeyStep::Quote, // doubled: repaired where an end tag follows
                (KeyStep::Object | KeyStep::Quote, '"' | '\'') => KeyStep::Key(c),
                (KeyStep::Key(quote), _) => return plausible_key(&text[self.at..], quote),
                _ => return Plausible::No,
            };
            self.at += 1;
        }
    }
}

fn plausible_key(key: &str, quote: char) -> Plausible {
    let known = CALL_KEYS.iter().find(|known| key.starts_with(**known));
    match known {
        Some(known) if key[known.len()..].starts_with(quote) => Plausible::Yes(quote),
        Some(known) if key.len() == known.len() => Plausible::Open,
        _ if CALL_KEYS.iter().any(|known| known.starts_with(key)) => Plausible::Open,
        _ => Plausible::No,
    }
}

/// How far a look at a bracket that starts a line has come.
pub(super) enum BareScan {
    /// At its first key.
    Key(KeyScan),
    /// At its end, from `at`.
    Value { at: usize, extent: Extent },
    /// Behind its end: an end tag makes it a tagged one.
    After { end: usize, at: usize },
}

impl BareScan {
    pub(super) fn new() -> BareScan {
        BareScan::Key(KeyScan::new())
    }
}
