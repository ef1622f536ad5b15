//! `JsonGuard`: keeps numbers of constrained JSON to lengths that mean something, and its brackets to a depth that readers take.
//!
//! A schema says nothing of the number of digits, so a model could go on for ever inside a number that is valid at every digit; and
//! readers of JSON refuse numbers beyond f64. Where a number could also end, it ends after `MAX_DIGITS` digits in a row. A schema that
//! refers to itself has no deepest value: from `MAX_DEPTH` brackets on, none is opened where anything else may come.

/// Digits before the point, and behind it: any such integer fits an i64.
const MAX_DIGITS: u8 = 18;
/// Digits of an exponent: with all digits before it, far inside f64.
const MAX_EXPONENT_DIGITS: u8 = 2;
/// Brackets inside brackets, a call's own among them. System.Text.Json reads 64, serde_json 127.
const MAX_DEPTH: usize = 64;
/// From here on a token of several brackets may open too many.
const NEAR_DEPTH: usize = 48;

/// Where a JSON text stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct JsonGuard {
    place: Place,
    depth: usize,
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

impl JsonGuard {
    /// Takes the next byte of the text. False: a number is longer, or a bracket deeper, than it may be.
    pub(super) fn push(&mut self, byte: u8) -> bool {
        if !self.is_in_string() {
            match byte {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
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
            Place::Between => self.depth <= MAX_DEPTH || !matches!(byte, b'{' | b'['),
            Place::String | Place::Escape => true,
        }
    }

    pub(super) fn is_in_string(&self) -> bool {
        matches!(self.place, Place::String | Place::Escape)
    }

    /// Whether what comes next may be too much only together with what was.
    pub(super) fn is_near(&self) -> bool {
        self.depth >= NEAR_DEPTH || matches!(self.place, Place::Digits(_) | Place::Exponent(_))
    }

    /// Whether these bytes, coming next, make a number too long or open a bracket too many.
    pub(super) fn exceeds(mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|&byte| !self.push(byte))
    }
}

/// Whether these bytes alone are too much.
pub(super) fn can_exceed(bytes: &[u8]) -> bool {
    JsonGuard::default().exceeds(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::vocabulary::is_set;
    use super::super::{Compiler, Format, GrammarState, Limits};
    use super::*;

    /// Opens brackets as long as it may; the text still ends, inside the schema.
    #[test]
    fn brackets_end_at_a_depth_that_readers_take() {
        let compiler = Compiler::new(Limits::default(), 257, &[256], |token| u8::try_from(token).ok().map(|byte| vec![byte]));
        let schema = json!({"type": "array", "items": {"anyOf": [{"$ref": "#"}, {"const": 7}]}});
        let grammar = compiler.compile(&Format::JsonSchema(schema).into()).unwrap();
        let mut state = GrammarState::new(grammar, Arc::new([256]), 0, &[]);
        let mut text = String::new();
        while !state.may_end() {
            let next = ['[', ']'].into_iter().find(|&c| is_set(state.mask(), c as u32)).expect("one of them");
            text.push(next);
            state.advance(next as u32);
        }
        assert_eq!(text, "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH));
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    }

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
