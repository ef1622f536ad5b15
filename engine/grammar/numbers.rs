//! `NumberGuard`: keeps the numbers of constrained JSON to lengths that mean something.
//!
//! A schema says nothing of the number of digits, so a model could go on for ever inside a number that is valid at every digit; and
//! readers of JSON refuse numbers beyond f64. Where a number could also end, it ends after `MAX_DIGITS` digits in a row.

/// Digits before the point, and behind it: any such integer fits an i64.
const MAX_DIGITS: u8 = 18;
/// Digits of an exponent: with all digits before it, far inside f64.
const MAX_EXPONENT_DIGITS: u8 = 2;

/// Where a JSON text stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NumberGuard {
    place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Between,
    String,
    /// Behind a backslash of a string.
    Escape,
    Digits(u8),
    Exponent(u8),
}

impl NumberGuard {
    /// Takes the next byte of the text. False: a number is longer than it may be.
    pub(super) fn push(&mut self, byte: u8) -> bool {
        self.place = match (self.place, byte) {
            (Place::String, b'\\') => Place::Escape,
            (Place::String, b'"') => Place::Between,
            (Place::String | Place::Escape, _) => Place::String,
            (_, b'"') => Place::String,
            (Place::Between, b'0'..=b'9') => Place::Digits(1),
            (Place::Digits(n), b'0'..=b'9') => Place::Digits(n.saturating_add(1)),
            (Place::Exponent(n), b'0'..=b'9') => Place::Exponent(n.saturating_add(1)),
            (Place::Digits(_), b'.') => Place::Digits(0),
            (Place::Digits(_), b'e' | b'E') => Place::Exponent(0),
            (Place::Exponent(0), b'+' | b'-') => Place::Exponent(0),
            _ => Place::Between,
        };
        match self.place {
            Place::Digits(n) => n <= MAX_DIGITS,
            Place::Exponent(n) => n <= MAX_EXPONENT_DIGITS,
            Place::Between | Place::String | Place::Escape => true,
        }
    }

    pub(super) fn is_in_string(&self) -> bool {
        matches!(self.place, Place::String | Place::Escape)
    }

    pub(super) fn is_in_number(&self) -> bool {
        matches!(self.place, Place::Digits(_) | Place::Exponent(_))
    }

    /// Whether these bytes, coming next, make a number too long.
    pub(super) fn exceeds(mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|&byte| !self.push(byte))
    }
}

/// Whether these bytes alone hold a number that is too long.
pub(super) fn can_exceed(bytes: &[u8]) -> bool {
    NumberGuard::default().exceeds(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_where_readers_still_understand_them() {
        let long = "1".repeat(18);
        for (text, exceeds) in [
            ("{\"a\": 123456789012345678", false),
            ("{\"a\": 1234567890123456789", true),
            ("\"1234567890123456789\"", false),
            ("\"\\\"1234567890123456789", false),
            ("[true, false, 1e99", false),
            ("1E-99", false),
            ("1e100", true),
            (&format!("{long}.{long}e+12"), false),
            (&format!("{long}.{long}1"), true),
            (&format!("{long} {long}"), false),
        ] {
            assert_eq!(can_exceed(text.as_bytes()), exceeds, "{text}");
        }
    }
}
