//! Options with the place each value came from: command line over environment over file over defaults.
//!
//! Reads no environment and no file itself; the binary hands both in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::options::{OPTIONS, OptionSpec};

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value is out of its range.
    #[error("{option}: `{value}` ({origin}): expected {expected}")]
    Value {
        /// The flag.
        option: String,
        /// As given.
        value: String,
        /// Where it was given.
        origin: String,
        /// The range.
        expected: String,
    },
    /// The file has a key that is no option.
    #[error("{}: unknown option `{key}`; `pagoda doctor` lists the options", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// The file cannot be read or parsed.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// One line.
        reason: String,
    },
    /// A `[[models]]` entry is wrong.
    #[error("models[{idx}].{key}: {reason}")]
    Model {
        /// Which entry.
        idx: usize,
        /// Which key.
        key: &'static str,
        /// Value and what was expected.
        reason: String,
    },
}

/// Where values come from, strongest first.
pub struct Sources<'a> {
    /// Command line: option key to value.
    pub cli: &'a BTreeMap<&'static str, String>,
    /// Environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Configuration file: its path and text.
    pub file: Option<(PathBuf, String)>,
}

/// Where one value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag.
    CommandLine,
    /// An environment variable.
    Environment(&'static str),
    /// The configuration file.
    File(PathBuf),
    /// The table of options.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::CommandLine => f.write_str("command line"),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// One option's value, checked.
#[derive(Clone)]
pub struct Setting {
    /// Its row.
    pub spec: &'static OptionSpec,
    /// Its value; None: unset.
    pub value: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} = {} ({})", self.spec.key, self.shown(), self.origin)
    }
}

impl Setting {
    /// The value as it may be shown.
    pub fn shown(&self) -> String {
        match &self.value {
            None => "-".into(),
            Some(_) if self.spec.secret => "***".into(),
            Some(value) => value.clone(),
        }
    }

    /// Whether the user set it.
    pub fn is_set(&self) -> bool {
        self.origin != Origin::Default
    }
}

/// Parses a configuration file; every key must be an option or `models`.
pub(crate) fn parse_file(path: &std::path::Path, text: &str) -> Result<toml::Table, ConfigError> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConfigError::File { path: path.into(), reason: format!("line {line}: {}", error.message().replace('\n', " ")) }
    })?;
    match table.keys().find(|key| *key != "models" && OPTIONS.iter().all(|spec| spec.key != *key)) {
        Some(key) => Err(ConfigError::UnknownKey { path: path.into(), key: key.clone() }),
        None => Ok(table),
    }
}

/// Picks the strongest source of one option and checks the value.
pub(crate) fn resolve_one(
    spec: &'static OptionSpec,
    sources: &Sources<'_>,
    file: Option<&(&PathBuf, toml::Table)>,
) -> Result<Setting, ConfigError> {
    // An empty variable counts as unset, as compose files write it.
    let env = spec.env.and_then(|name| Some((name, (sources.env)(name).filter(|value| !value.trim().is_empty())?)));
    let in_file = file.and_then(|(path, table)| Some((*path, table.get(spec.key)?)));
    let (value, origin) = match (sources.cli.get(spec.key), env, in_file) {
        (Some(value), _, _) => (Some(value.clone()), Origin::CommandLine),
        (None, Some((name, value)), _) => (Some(value), Origin::Environment(name)),
        (None, None, Some((path, value))) => (Some(file_text(value)), Origin::File(path.clone())),
        (None, None, None) => (spec.default.map(str::to_string), Origin::Default),
    };
    if let Some(value) = &value {
        let value = value.trim();
        spec.check(value).map_err(|expected| value_error(spec, value, &origin, expected))?;
    }
    Ok(Setting { spec, value: value.map(|value| value.trim().to_string()), origin })
}

pub(crate) fn value_error(spec: &OptionSpec, value: &str, origin: &Origin, expected: String) -> ConfigError {
    let shown = if spec.secret { "***" } else { value };
    ConfigError::Value { option: spec.flag(), value: shown.into(), origin: origin.to_string(), expected }
}

fn file_text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(file_text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
