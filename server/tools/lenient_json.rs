//! JSON as models write it inside a tool-call tag: what a strict parser refuses, and what the writer plainly meant.
//!
//! Repairs: single quotes, `True`, `False`, `None`, trailing commas, raw control characters and bad escapes in strings, doubled braces,
//! one closing bracket too few at the end. Nothing else is guessed: a missing value or quote is an error.

use serde_json::{Map, Number, Value};

/// Nesting that is followed.
const MAX_DEPTH: usize = 128;

/// A value and the bytes of the text it took.
#[derive(Debug, PartialEq)]
pub(super) struct Parsed {
    /// The value.
    pub(super) value: Value,
    /// Bytes read.
    pub(super) len: usize,
    /// Every bracket it opens is closed.
    pub(super) closed: bool,
}

/// The value at the start of `text`; what follows it is left. `None`: beyond repair.
pub(super) fn parse_prefix(text: &str) -> Option<Parsed> {
    let mut reader = Reader { bytes: text.as_bytes(), at: 0, depth: 0, missing: 0 };
    let value = reader.value()?;
    (reader.missing <= 1).then_some(Parsed { value, len: reader.at, closed: reader.missing == 0 })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    /// Closing brackets that the end of the text swallowed.
    missing: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self) -> Option<Value> {
        self.skip_space();
        match self.peek()? {
            b'{' => self.nested(Reader::object),
            b'[' => self.nested(Reader::array),
            quote @ (b'"' | b'\'') => self.string(quote).map(Value::String),
            b'-' | b'0'..=b'9' => self.number(),
            _ => self.word(),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Option<Value>) -> Option<Value> {
        self.depth += 1;
        let value = if self.depth > MAX_DEPTH { None } else { read(self) };
        self.depth -= 1;
        value
    }

    fn object(&mut self) -> Option<Value> {
        self.eat(b'{');
        self.skip_space();
        let doubled = self.eat(b'{');
        let mut map = Map::new();
        loop {
            self.skip_space();
            match self.peek() {
                None => {
                    self.missing += 1;
                    return Some(Value::Object(map));
                }
                Some(b'}') => {
                    self.at += 1;
                    if doubled {
                        self.skip_space();
                        self.eat(b'}');
                    }
                    return Some(Value::Object(map));
                }
                Some(quote @ (b'"' | b'\'')) => {
                    let key = self.string(quote)?;
                    self.skip_space();
                    if !self.eat(b':') {
                        return None;
                    }
                    let value = self.value()?;
                    map.insert(key, value);
                    self.skip_space();
                    if !self.eat(b',') && !matches!(self.peek(), None | Some(b'}')) {
                        return None;
                    }
                }
                Some(_) => return None,
            }
        }
    }

    fn array(&mut self) -> Option<Value> {
        self.eat(b'[');
        let mut items = Vec::new();
        loop {
            self.skip_space();
            match self.peek() {
                None => {
                    self.missing += 1;
                    return Some(Value::Array(items));
                }
                Some(b']') => {
                    self.at += 1;
                    return Some(Value::Array(items));
                }
                Some(_) => {
                    items.push(self.value()?);
                    self.skip_space();
                    if !self.eat(b',') && !matches!(self.peek(), None | Some(b']')) {
                        return None;
                    }
                }
            }
        }
    }

    fn string(&mut self, quote: u8) -> Option<String> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b if b == quote => return String::from_utf8(out).ok(),
                b'\\' => self.escape(&mut out)?,
                b => out.push(b),
            }
        }
    }

    /// What follows a backslash; an escape that JSON does not know stays as it is written.
    fn escape(&mut self, out: &mut Vec<u8>) -> Option<()> {
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b'"' | b'\\' | b'/' | b'\'' => out.push(byte),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => match self.unicode() {
                Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                None => out.extend_from_slice(b"\\u"),
            },
            other => out.extend_from_slice(&[b'\\', other]),
        }
        Some(())
    }

    /// The character of `\u`, whose digits come next, and of its second half. A lone half becomes U+FFFD.
    fn unicode(&mut self) -> Option<char> {
        let first = self.hex4(self.at)?;
        self.at += 4;
        if !(0xd800..0xe000).contains(&first) {
            return char::from_u32(first);
        }
        let second = (self.bytes.get(self.at..self.at + 2) == Some(b"\\u")).then(|| self.hex4(self.at + 2)).flatten();
        match second {
            Some(low) if first < 0xdc00 && (0xdc00..0xe000).contains(&low) => {
                self.at += 6;
                char::from_u32(0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00))
            }
            _ => Some(char::REPLACEMENT_CHARACTER),
        }
    }

    fn hex4(&self, at: usize) -> Option<u32> {
        let digits = self.bytes.get(at..at + 4)?;
        digits.iter().try_fold(0, |sum, &digit| Some(sum * 16 + char::from(digit).to_digit(16)?))
    }

    fn number(&mut self) -> Option<Value> {
        let start = self.at;
        while self.peek().is_some_and(|b| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).ok()?;
        text.parse::<Number>().ok().map(Value::Number)
    }

    fn word(&mut self) -> Option<Value> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_alphabetic()) {
            self.at += 1;
        }
        match &self.bytes[start..self.at] {
            b"true" | b"True" => Some(Value::Bool(true)),
            b"false" | b"False" => Some(Value::Bool(false)),
            b"null" | b"None" => Some(Value::Null),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(text: &str) -> Option<Value> {
        parse_prefix(text).map(|p| p.value)
    }

    #[test]
    fn repairs_what_models_write() {
        let cases = [
            ("{'a': 'b'}", json!({"a": "b"})),
            ("{\"a\": True, 'b': None, \"c\": [1, 2,],}", json!({"a": true, "b": null, "c": [1, 2]})),
            ("{\"a\": \"x\ny\"}", json!({"a": "x\ny"})),
            ("{\"a\": \"\\d+\"}", json!({"a": "\\d+"})),
            ("{{\"a\": {}}}", json!({"a": {}})),
            ("{\"a\": {\"b\": 1}", json!({"a": {"b": 1}})),
            ("\"\\ud83d\\ude42 \\u00e9\"", json!("🙂 é")),
            ("-1.5e3", json!(-1500.0)),
        ];
        for (text, expected) in cases {
            assert_eq!(value(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_would_be_a_guess() {
        for text in ["{\"a\": }", "{\"a\" 1}", "{a: 1}", "{\"a\": \"b", "{\"a\": {\"b\": {\"c\": 1", "", "nope", "{,}"] {
            assert_eq!(value(text), None, "{text}");
        }
        assert_eq!(value(&"[".repeat(100_000)), None);
    }
}
