//! What chat templates use beyond minijinja's builtins: Python's `json.dumps` and `str`, `strftime_now`, `raise_exception`, and the
//! `{% generation %}` tags of transformers, which mark the assistant's text for training and mean nothing here.

use std::borrow::Cow;
use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::Serialize;

use super::strftime::strftime_now;

/// Deepest nesting of a value that is printed or sorted.
const MAX_DEPTH: usize = 64;
/// Widest `indent` of `tojson`.
const MAX_INDENT: usize = 16;

/// Registers filters, functions and the formatter.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| python_str(value));
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| strftime_now(&format));
    environment.set_formatter(|out: &mut Output, _state: &mut State, value: &Value| {
        if let Some(text) = value.as_str() {
            return out.write_str(text).map_err(Error::from);
        }
        out.write_str(&python_str(value)?).map_err(Error::from)
    });
}

/// `source` with `{% generation %}` and `{% endgeneration %}` turned into a block that always runs; their whitespace control stays.
pub(super) fn without_generation_tags(source: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut copied = 0;
    for (at, _) in source.match_indices("{%") {
        let body_start = at + 2 + usize::from(source[at + 2..].starts_with(['-', '+']));
        let Some(len) = source[body_start..].find("%}") else { break };
        let body = &source[body_start..body_start + len];
        let word = body.trim_end_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        let word_start = body_start + body.find(word).expect("trimmed from it");
        out.push_str(&source[copied..word_start]);
        out.push_str(replacement);
        copied = word_start + word.len();
    }
    if copied == 0 {
        return Cow::Borrowed(source);
    }
    out.push_str(&source[copied..]);
    Cow::Owned(out)
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`; keys keep their order, nothing is escaped for
/// HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be a pair")),
    };
    let mut json = serde_json::to_value(value).map_err(|error| Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))?;
    if sort_keys {
        json.sort_all_objects();
    }
    let style = JsonStyle { indent: indent.map(|n| n.min(MAX_INDENT)), item, key, ensure_ascii, depth: 0, is_empty: true };
    let mut out = Vec::new();
    json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, style))
        .map_err(|error| Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))?;
    Ok(Value::from(String::from_utf8(out).expect("serde_json writes UTF-8")))
}

/// Python's way of writing JSON.
struct JsonStyle<'a> {
    indent: Option<usize>,
    item: &'a str,
    key: &'a str,
    ensure_ascii: bool,
    depth: usize,
    /// Nothing is written yet of the array or object begun last.
    is_empty: bool,
}

impl JsonStyle<'_> {
    fn open<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }

    fn line<W: ?Sized + std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        match self.indent {
            Some(indent) => write!(writer, "\n{:1$}", "", indent * self.depth),
            None => Ok(()),
        }
    }
}

impl serde_json::ser::Formatter for JsonStyle<'_> {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.open(writer, b"[")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.is_empty = false;
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.line(writer)
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.open(writer, b"{")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.close(writer, b"}")
    }

    fn write_f64<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, value: f64) -> std::io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, fragment: &str) -> std::io::Result<()> {
        if !self.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if c.is_ascii() {
                writer.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// `repr(float)`: shortest digits, an exponent below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    if !value.is_finite() {
        let text = if value.is_nan() { "nan" } else { "inf" };
        return format!("{}{text}", if value < 0.0 { "-" } else { "" });
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`{:e}` writes an exponent");
    let exponent: i32 = exponent.parse().expect("`{:e}` writes a number");
    if (-4..16).contains(&exponent) {
        let text = value.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `str(value)`.
fn python_str(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let mut out = String::new();
    write_repr(&mut out, value, 0)?;
    Ok(out)
}

/// `repr(value)` of what JSON can hold; anything else as minijinja writes it.
fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("a printed value is nested deeper than {MAX_DEPTH}")));
    }
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if !value.is_integer() => out.push_str(&python_float(f64::try_from(value.clone())?)),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => write!(out, "{value}").map_err(Error::from)?,
    }
    Ok(())
}

/// A string as Python quotes it: single quotes unless it holds some and no double ones.
fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;
    use serde_json::{Value as Json, json};

    /// Renders an expression over `x`.
    fn show(expression: &str, x: Json) -> String {
        let mut environment = Environment::new();
        add_to(&mut environment);
        environment.render_str(expression, minijinja::context! { x => Value::from(Serde(x)) }).unwrap()
    }

    #[test]
    fn tojson_is_python_json_dumps() {
        let x = json!({"b": [1, 1.0, 1e16, 1e-5, null, true], "a": "<é&'\"\n\u{1}😀>", "e": {}, "l": []});
        let check = |arguments: &str, expected: &str| assert_eq!(show(&format!("{{{{ x | tojson{arguments} }}}}"), x.clone()), expected);
        check("", r#"{"b": [1, 1.0, 1e+16, 1e-05, null, true], "a": "<é&'\"\n\u0001😀>", "e": {}, "l": []}"#);
        check(
            "(ensure_ascii=true)",
            r#"{"b": [1, 1.0, 1e+16, 1e-05, null, true], "a": "<\u00e9&'\"\n\u0001\ud83d\ude00>", "e": {}, "l": []}"#,
        );
        check("(separators=(',', ':'), sort_keys=true)", r#"{"a":"<é&'\"\n\u0001😀>","b":[1,1.0,1e+16,1e-05,null,true],"e":{},"l":[]}"#);
        assert_eq!(
            show("{{ x | tojson(indent=2) }}", json!({"a": [1, {}], "b": []})),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
        );
    }

    #[test]
    fn values_print_as_in_python() {
        let check = |x: Json, expected: &str| assert_eq!(show("{{ x }}", x), expected);
        check(json!(null), "None");
        check(json!(true), "True");
        check(json!(1.0), "1.0");
        check(json!(12), "12");
        check(json!("it's"), "it's");
        check(json!(["a", "it's", null, {"k": 1.5}]), r#"['a', "it's", None, {'k': 1.5}]"#);
        assert_eq!(show("{{ x is iterable }}{{ [] is iterable }}{{ 'a' is iterable }}", json!(null)), "FalseTrueTrue");
        assert_eq!(show("{{ x.missing }}|{{ x | string }}", json!({"a": false})), "|{'a': False}");
    }

    #[test]
    fn floats_print_as_in_python() {
        for (value, expected) in [
            (0.1, "0.1"),
            (100.0, "100.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (1e-4, "0.0001"),
            (-0.0, "-0.0"),
            (1e100, "1e+100"),
        ] {
            assert_eq!(python_float(value), expected);
        }
    }

    #[test]
    fn generation_tags_become_plain_blocks() {
        for (source, expected) in [
            ("a{% generation %}b{% endgeneration %}c", "a{% if true %}b{% endif %}c"),
            ("{%- generation -%} x {%-endgeneration+%}", "{%- if true -%} x {%-endif+%}"),
            ("{% if generation %}{% endif %}", "{% if generation %}{% endif %}"),
            ("{% generation", "{% generation"),
        ] {
            assert_eq!(without_generation_tags(source), expected);
        }
    }
}
