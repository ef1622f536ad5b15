//! Typed reading of GGUF metadata; every complaint names file and key. `{arch}` in a key stands for the file's architecture.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::gguf::GgufValue;
use super::json::checkpoint_error;
use crate::error::{EngineError, Result};

/// The metadata of a file.
pub struct Keys {
    path: PathBuf,
    arch: String,
    map: HashMap<String, GgufValue>,
}

impl Keys {
    /// Metadata of `path`.
    ///
    /// # Errors
    /// `general.architecture` is missing.
    pub fn new(path: &Path, map: HashMap<String, GgufValue>) -> Result<Keys> {
        match map.get("general.architecture") {
            Some(GgufValue::Text(arch)) => Ok(Keys { path: path.to_owned(), arch: arch.clone(), map }),
            _ => Err(checkpoint_error(path, "key `general.architecture` is missing or no string")),
        }
    }

    /// The architecture.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    fn full(&self, key: &str) -> String {
        key.replace("{arch}", &self.arch)
    }

    fn get(&self, key: &str) -> Option<&GgufValue> {
        self.map.get(&self.full(key))
    }

    /// An error that names file and key.
    pub fn error(&self, key: &str, reason: impl std::fmt::Display) -> EngineError {
        checkpoint_error(&self.path, format!("key `{}` {reason}", self.full(key)))
    }

    fn wrong(&self, key: &str, expected: impl std::fmt::Display) -> EngineError {
        let mut shown = format!("{:?}", self.get(key));
        shown.truncate(shown.char_indices().nth(80).map_or(shown.len(), |(at, _)| at));
        self.error(key, format_args!("is {shown}, expected {expected}"))
    }

    /// An integer of zero or more, if present. An array of one value throughout counts as that value.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(GgufValue::Int(value)) => usize::try_from(*value).ok(),
            Some(GgufValue::Ints(list)) if list.windows(2).all(|pair| pair[0] == pair[1]) => {
                list.first().and_then(|value| usize::try_from(*value).ok())
            }
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| self.wrong(key, "one integer of 0 or more"))
    }

    /// An integer in `1 ..= max`, if present.
    pub fn opt_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        match self.count(key)? {
            Some(value) if value == 0 || value > max => Err(self.error(key, format_args!("is {value}, expected 1 to {max}"))),
            other => Ok(other),
        }
    }

    /// An integer in `1 ..= max`.
    pub fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.opt_size(key, max)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A finite number of zero or more, if present.
    pub fn opt_float(&self, key: &str) -> Result<Option<f32>> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(GgufValue::Float(value)) => *value as f32,
            Some(GgufValue::Int(value)) => *value as f32,
            Some(_) => f32::NAN,
        };
        if number.is_finite() && number >= 0.0 { Ok(Some(number)) } else { Err(self.wrong(key, "a number of 0 or more")) }
    }

    /// A finite number of zero or more.
    pub fn float(&self, key: &str) -> Result<f32> {
        self.opt_float(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A boolean, if present.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "a boolean")),
        }
    }

    /// A string, if present.
    pub fn opt_text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// An array of strings; empty when absent.
    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(GgufValue::Texts(list)) => Ok(list.clone()),
            Some(_) => Err(self.wrong(key, "an array of strings")),
        }
    }

    /// An array of 32-bit integers; empty when absent.
    pub fn ints(&self, key: &str) -> Result<Vec<i32>> {
        let list = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(GgufValue::Ints(list)) => list.iter().map(|value| i32::try_from(*value).ok()).collect(),
            Some(_) => None,
        };
        list.ok_or_else(|| self.wrong(key, "an array of 32-bit integers"))
    }

    /// An array of floats; empty when absent.
    pub fn floats(&self, key: &str) -> Result<Vec<f32>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(GgufValue::Floats(list)) => Ok(list.clone()),
            Some(_) => Err(self.wrong(key, "an array of floats")),
        }
    }

    /// Which of the `num_layers` layers slide: an array of flags, or a number n for "all but every n-th".
    pub fn window_pattern(&self, key: &str, num_layers: usize) -> Result<Option<Vec<bool>>> {
        let pattern = match self.get(key) {
            None => return Ok(None),
            Some(GgufValue::Bools(list)) => list.clone(),
            Some(GgufValue::Ints(list)) => list.iter().map(|value| *value != 0).collect(),
            Some(_) => {
                let every = self.size(key, usize::MAX)?;
                (1..=num_layers).map(|layer| !layer.is_multiple_of(every)).collect()
            }
        };
        if pattern.len() < num_layers {
            return Err(self.error(key, format_args!("has {} entries, expected {num_layers}", pattern.len())));
        }
        Ok(Some(pattern))
    }
}
