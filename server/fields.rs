//! `Fields`: typed access to a JSON object of a request, with errors that name the field, what it must be and what came.
//!
//! Unknown fields are never looked at. `null` means the same as an absent field. No value is converted: `"5"`, `5.0` and `true` are no integers.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// Longest piece of a wrong value that is quoted.
const MAX_QUOTED: usize = 60;

/// An object of a request and where it stands.
#[derive(Clone)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

/// Range of a number.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    low: f64,
    high: f64,
    low_excluded: bool,
}

impl Range {
    /// `low ..= high`
    pub(crate) const fn closed(low: f64, high: f64) -> Self {
        Range { low, high, low_excluded: false }
    }

    /// Above `low`, up to and with `high`.
    pub(crate) const fn above(low: f64, high: f64) -> Self {
        Range { low, high, low_excluded: true }
    }

    fn contains(&self, value: f64) -> bool {
        value <= self.high && if self.low_excluded { value > self.low } else { value >= self.low }
    }

    fn describe(&self) -> String {
        match (self.low_excluded, self.high >= f64::from(f32::MAX)) {
            (true, true) => format!("a number above {}", self.low),
            (true, false) => format!("a number above {} and at most {}", self.low, self.high),
            (false, true) => format!("a number of at least {}", self.low),
            (false, false) => format!("a number between {} and {}", self.low, self.high),
        }
    }
}

impl<'a> Fields<'a> {
    /// The object `value`, which stands at `path` ("" for the body itself).
    pub(crate) fn of(value: &'a Value, path: impl Into<String>) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Fields { map, path }),
            other => Err(wrong(&path, "an object", other)),
        }
    }

    /// The value of a field; None when absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Where the field stands, for messages and `param`.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// An error about a field.
    pub(crate) fn error(&self, name: &str, message: impl std::fmt::Display) -> ApiError {
        ApiError::field(self.path(name), message)
    }

    /// "must be `expected`, got ..." about a field.
    pub(crate) fn wrong(&self, name: &str, expected: &str) -> ApiError {
        wrong(&self.path(name), expected, self.map.get(name).unwrap_or(&Value::Null))
    }

    /// The value of a field that must be there.
    pub(crate) fn require(&self, name: &str) -> Result<&'a Value, ApiError> {
        self.get(name).ok_or_else(|| self.error(name, "field required"))
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.as_bool().map(Some).ok_or_else(|| self.wrong(name, "true or false")),
        }
    }

    /// An integer within `low ..= high`; `i64::MAX` as `high` means no upper bound.
    pub(crate) fn integer(&self, name: &str, low: i64, high: i64) -> Result<Option<i64>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => integer(value, low, high).map(Some).ok_or_else(|| self.wrong(name, &describe_integer(low, high))),
        }
    }

    pub(crate) fn number(&self, name: &str, range: Range) -> Result<Option<f32>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| range.contains(*number)) {
                Some(number) => Ok(Some(number as f32)),
                None => Err(self.wrong(name, &range.describe())),
            },
        }
    }

    pub(crate) fn string(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(name, "a string")),
        }
    }

    /// A string that must be there and must not be empty.
    pub(crate) fn required_string(&self, name: &str) -> Result<&'a str, ApiError> {
        match self.require(name)?.as_str() {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(self.wrong(name, "a non-empty string")),
        }
    }

    pub(crate) fn array(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.as_array().map(|items| Some(items.as_slice())).ok_or_else(|| self.wrong(name, "an array")),
        }
    }

    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(name).map(|value| Fields::of(value, self.path(name))).transpose()
    }

    /// The object's entries.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// An array of at most `max` non-empty strings.
    pub(crate) fn strings(&self, name: &str, max: usize) -> Result<Option<Vec<String>>, ApiError> {
        let Some(items) = self.array(name)? else { return Ok(None) };
        self.check_len(name, items.len(), max)?;
        let text = |(idx, item): (usize, &Value)| match item.as_str() {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err(wrong(&format!("{}[{idx}]", self.path(name)), "a non-empty string", item)),
        };
        items.iter().enumerate().map(text).collect::<Result<_, _>>().map(Some)
    }

    /// An array of at most `max` token ids.
    pub(crate) fn token_ids(&self, name: &str, max: usize) -> Result<Option<Vec<u32>>, ApiError> {
        let Some(items) = self.array(name)? else { return Ok(None) };
        self.check_len(name, items.len(), max)?;
        token_ids(items, &self.path(name)).map(Some)
    }

    fn check_len(&self, name: &str, len: usize, max: usize) -> Result<(), ApiError> {
        if len > max { Err(self.error(name, format!("at most {max} entries, got {len}"))) } else { Ok(()) }
    }

    /// Refuses fields that this server knows and cannot honour.
    pub(crate) fn refuse(&self, names: &[&str]) -> Result<(), ApiError> {
        match names.iter().find(|name| self.get(name).is_some()) {
            Some(name) => Err(self.unsupported(name)),
            None => Ok(()),
        }
    }

    /// Refuses switches that this server knows and cannot honour, when they are on.
    pub(crate) fn refuse_true(&self, names: &[&str]) -> Result<(), ApiError> {
        for name in names {
            if self.boolean(name)? == Some(true) {
                return Err(self.unsupported(name));
            }
        }
        Ok(())
    }

    pub(crate) fn unsupported(&self, name: &str) -> ApiError {
        self.error(name, "not supported by this server yet")
    }
}

/// Token ids of an array that stands at `path`.
pub(crate) fn token_ids(items: &[Value], path: &str) -> Result<Vec<u32>, ApiError> {
    let id = |(idx, item): (usize, &Value)| match integer(item, 0, i64::from(u32::MAX)) {
        Some(id) => Ok(id as u32),
        None => Err(wrong(&format!("{path}[{idx}]"), "a token id (an integer of at least 0)", item)),
    };
    items.iter().enumerate().map(id).collect()
}

/// "path: must be `expected`, got ..."
pub(crate) fn wrong(path: &str, expected: &str, got: &Value) -> ApiError {
    let mut quoted: String = match got {
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
        Value::String(text) => Value::from(text.chars().take(MAX_QUOTED).collect::<String>()).to_string(),
        other => other.to_string(),
    };
    if matches!(got, Value::String(text) if text.chars().nth(MAX_QUOTED).is_some()) {
        quoted.push_str(" (cut)");
    }
    let message = format!("must be {expected}, got {quoted}");
    if path.is_empty() { ApiError::new(crate::error::ErrorKind::Invalid, message) } else { ApiError::field(path, message) }
}

fn integer(value: &Value, low: i64, high: i64) -> Option<i64> {
    value.as_i64().filter(|number| (low..=high).contains(number))
}

fn describe_integer(low: i64, high: i64) -> String {
    match (low, high) {
        (i64::MIN, i64::MAX) => "a 64-bit integer".into(),
        (low, i64::MAX) => format!("an integer of at least {low}"),
        (low, high) => format!("an integer between {low} and {high}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_name_field_range_and_value() {
        let body = json!({"a": "hot", "b": 3, "c": true, "d": 5.0, "e": [1, -1], "f": {"g": 1}});
        let fields = Fields::of(&body, "").unwrap();
        let nested = fields.object("f").unwrap().unwrap();
        for (error, expected) in [
            (fields.number("a", Range::closed(0.0, 2.0)).unwrap_err(), r#"a: must be a number between 0 and 2, got "hot""#),
            (fields.number("b", Range::above(0.0, 1.0)).unwrap_err(), "b: must be a number above 0 and at most 1, got 3"),
            (fields.integer("c", 1, i64::MAX).unwrap_err(), "c: must be an integer of at least 1, got true"),
            (fields.integer("d", 1, 9).unwrap_err(), "d: must be an integer between 1 and 9, got 5.0"),
            (fields.token_ids("e", 9).unwrap_err(), "e[1]: must be a token id (an integer of at least 0), got -1"),
            (nested.string("g").unwrap_err(), "f.g: must be a string, got 1"),
            (fields.require("z").unwrap_err(), "z: field required"),
        ] {
            assert_eq!(error.message, expected);
        }
    }
}
