//! `Held`: text that is not decided yet. Grows at its end and goes away at its beginning, each byte moved a bounded number of times.

use std::ops::Deref;

use super::scan::note;

/// Front bytes that are kept, gone already, before the rest moves.
const MIN_GONE: usize = 4096;

/// A text that is read from its beginning.
#[derive(Default)]
pub(super) struct Held {
    text: String,
    /// Bytes of `text` that are gone.
    start: usize,
}

impl Deref for Held {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text[self.start..]
    }
}

impl Held {
    /// Adds to the end.
    pub(super) fn push_str(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Takes `len` bytes from the beginning.
    pub(super) fn take(&mut self, len: usize) -> String {
        let text = self[..len].to_owned();
        self.skip(len);
        text
    }

    /// Drops `len` bytes from the beginning.
    pub(super) fn skip(&mut self, len: usize) {
        self.start += len;
        let rest = self.text.len() - self.start;
        if rest == 0 || self.start >= MIN_GONE && self.start >= rest {
            note(rest);
            self.text.drain(..self.start);
            self.start = 0;
        }
    }
}
