//! Where a JSON value ends, found byte by byte, without building it.

use super::scan::note;

/// Follows one value from its first byte. Strings are honoured, so brackets inside them do not count.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    /// Quotes that open a string.
    single_quotes: bool,
    depth: usize,
    /// The quote that ends the string we are in.
    quote: Option<u8>,
    escaped: bool,
}

/// What a byte did to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The value goes on.
    Open,
    /// This byte ends it.
    Done,
}

impl Extent {
    /// Before the first byte of a value. `single_quotes`: `'` opens strings too, as in Python.
    pub(super) fn new(single_quotes: bool) -> Extent {
        Extent { single_quotes, depth: 0, quote: None, escaped: false }
    }

    /// Whether the next byte lies inside a string.
    pub(super) fn in_string(&self) -> bool {
        self.quote.is_some()
    }

    /// Whether the next byte lies outside of every bracket and string.
    pub(super) fn is_outside(&self) -> bool {
        self.depth == 0 && self.quote.is_none()
    }

    /// Takes the next byte.
    pub(super) fn push(&mut self, byte: u8) -> Progress {
        note(1);
        if let Some(quote) = self.quote {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == quote {
                self.quote = None;
                return self.ended();
            }
            return Progress::Open;
        }
        match byte {
            b'"' => self.quote = Some(byte),
            b'\'' if self.single_quotes => self.quote = Some(byte),
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.ended();
            }
            _ => {}
        }
        Progress::Open
    }

    fn ended(&self) -> Progress {
        if self.depth == 0 { Progress::Done } else { Progress::Open }
    }
}
