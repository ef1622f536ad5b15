//! Reading JSON files of a checkpoint folder: bounded, and every complaint names file and key.
//!
//! Used by `models/families.rs`, `text_files.rs` and `safetensors.rs`. Knows no key by name.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{EngineError, Result};

/// Largest JSON file read into memory (a sharded index of a very large model has a few MiB).
pub const MAX_JSON_BYTES: u64 = 64 << 20;

/// An error about `path`.
pub fn checkpoint_error(path: &Path, reason: impl Into<String>) -> EngineError {
    EngineError::Checkpoint { path: path.to_owned(), reason: reason.into() }
}

/// An error of the system about `path`.
pub fn io_error(path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Io { path: path.to_owned(), source }
}

/// Reads a JSON object.
///
/// # Errors
/// The file is missing, too large, no JSON or no object.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = read_text(path)?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(checkpoint_error(path, format!("holds {}, expected an object", kind(&other)))),
        Err(error) => Err(checkpoint_error(path, format!("is not valid JSON: {error}"))),
    }
}

/// Reads a JSON object, or nothing when there is no such file.
///
/// # Errors
/// As `read_object`, except for a missing file.
pub fn read_optional(path: &Path) -> Result<Option<Map<String, Value>>> {
    if path.exists() { read_object(path).map(Some) } else { Ok(None) }
}

/// Reads a text file of at most `MAX_JSON_BYTES`.
///
/// # Errors
/// The file is missing, too large or not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let len = std::fs::metadata(path).map_err(|error| io_error(path, error))?.len();
    if len > MAX_JSON_BYTES {
        return Err(checkpoint_error(path, format!("has {len} bytes, at most {MAX_JSON_BYTES} are read")));
    }
    let bytes = std::fs::read(path).map_err(|error| io_error(path, error))?;
    String::from_utf8(bytes).map_err(|_| checkpoint_error(path, "is not UTF-8"))
}

/// What a value is, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The keys of one object of a file, read with range checks. A null counts as absent.
#[derive(Clone)]
pub struct Fields {
    path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The top-level object of `path`.
    pub fn new(path: &Path, map: Map<String, Value>) -> Fields {
        Fields { path: path.to_owned(), prefix: String::new(), map }
    }

    /// The raw value; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// An error that names file and key.
    pub fn error(&self, key: &str, reason: impl std::fmt::Display) -> EngineError {
        checkpoint_error(&self.path, format!("`{}{key}` {reason}", self.prefix))
    }

    fn wrong(&self, key: &str, value: &Value, expected: impl std::fmt::Display) -> EngineError {
        let mut shown = value.to_string();
        if shown.len() > 80 {
            shown = kind(value).to_owned();
        }
        self.error(key, format_args!("is {shown}, expected {expected}"))
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(key, "is missing"))
    }

    /// An integer in `1 ..= max`.
    pub fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.required(key, self.opt_size(key, max)?)
    }

    /// An integer in `1 ..= max`, if present.
    pub fn opt_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        match self.opt_count(key, max)? {
            Some(0) => Err(self.error(key, format_args!("is 0, expected 1 to {max}"))),
            other => Ok(other),
        }
    }

    /// An integer in `0 ..= max`, if present.
    pub fn opt_count(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Some writers store integers as 4096.0.
        let number = value.as_u64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0 && *x < 1e15).map(|x| x as u64));
        match number {
            Some(x) if x <= max as u64 => Ok(Some(x as usize)),
            _ => Err(self.wrong(key, value, format_args!("an integer of at most {max}"))),
        }
    }

    /// A finite number above zero, if present.
    pub fn opt_positive(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().map(|x| x as f32) {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(self.wrong(key, value, "a number above 0")),
        }
    }

    /// A finite number above zero.
    pub fn positive(&self, key: &str) -> Result<f32> {
        self.required(key, self.opt_positive(key)?)
    }

    /// A finite number of zero or more, if present.
    pub fn opt_non_negative(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().map(|x| x as f32) {
            Some(x) if x.is_finite() && x >= 0.0 => Ok(Some(x)),
            _ => Err(self.wrong(key, value, "a number of 0 or more")),
        }
    }

    /// A boolean, if present.
    pub fn opt_flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// A string, if present.
    pub fn opt_text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a string"))
    }

    /// A list of at most `max` entries, if present.
    pub fn opt_list(&self, key: &str, max: usize) -> Result<Option<&[Value]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_array() {
            Some(list) if list.len() <= max => Ok(Some(list)),
            _ => Err(self.wrong(key, value, format_args!("a list of at most {max} entries"))),
        }
    }

    /// An object inside, if present.
    pub fn opt_object(&self, key: &str) -> Result<Option<Fields>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.wrong(key, value, "an object"))?;
        Ok(Some(Fields { path: self.path.clone(), prefix: format!("{}{key}.", self.prefix), map: map.clone() }))
    }

    /// The keys of the object, at most `max` of them.
    pub fn keys(&self, max: usize) -> Result<Vec<String>> {
        match self.map.len() {
            len if len > max => Err(self.error("", format_args!("has {len} entries, expected at most {max}"))),
            _ => Ok(self.map.keys().cloned().collect()),
        }
    }

    /// Exactly `len` finite numbers above zero.
    pub fn positives(&self, key: &str, len: usize) -> Result<Vec<f32>> {
        let list = self.required(key, self.opt_list(key, 1 << 16)?)?;
        if list.len() != len {
            return Err(self.error(key, format_args!("has {} entries, expected {len}", list.len())));
        }
        let number = |value: &Value| value.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && *x > 0.0);
        list.iter().map(|value| number(value).ok_or_else(|| self.wrong(key, value, "numbers above 0"))).collect()
    }

    /// Token ids from a number or a list of numbers; empty when absent.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(list) if list.len() <= 4096 => list.iter().map(one).collect(),
            other => one(other).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(key, value, "a token id or a list of them"))
    }
}
