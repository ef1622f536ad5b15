//! Models by name: what a configuration file's `[[models]]` entries and Rust callers say about each.

use std::path::PathBuf;

use crate::ToolDialect;
use crate::settings::ConfigError;

/// Kinds of backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// Plain model code without paging, for architectures the engine has not.
    HuggingFace,
    /// pagoda's own engine in this process.
    VllmLocal,
    /// A vLLM or pagoda server elsewhere.
    VllmRemote,
    /// Any OpenAI-compatible service.
    RemoteOpenai,
}

impl BackendKind {
    /// All kinds.
    pub const ALL: [BackendKind; 4] =
        [BackendKind::HuggingFace, BackendKind::VllmLocal, BackendKind::VllmRemote, BackendKind::RemoteOpenai];

    /// Name in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            BackendKind::HuggingFace => "huggingface",
            BackendKind::VllmLocal => "vllm_local",
            BackendKind::VllmRemote => "vllm_remote",
            BackendKind::RemoteOpenai => "remote_openai",
        }
    }

    /// The kind of a name.
    pub fn parse(name: &str) -> Option<BackendKind> {
        BackendKind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelType {
    /// Generates text.
    CausalLm,
    /// Makes vectors of texts.
    Embedding,
    /// Scores documents against a query.
    Reranker,
}

impl ModelType {
    const NAMES: &str = "causal_lm, embedding, reranker";

    /// Name in configuration and in `/v1/models`.
    pub fn as_str(self) -> &'static str {
        match self {
            ModelType::CausalLm => "causal_lm",
            ModelType::Embedding => "embedding",
            ModelType::Reranker => "reranker",
        }
    }

    /// The type of a name.
    pub fn parse(name: &str) -> Option<ModelType> {
        match name {
            "causal_lm" => Some(ModelType::CausalLm),
            "embedding" => Some(ModelType::Embedding),
            "reranker" => Some(ModelType::Reranker),
            _ => None,
        }
    }
}

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A repository of the hub (or an alias of one).
    Hub(String),
    /// A folder or file.
    Path(PathBuf),
}

/// One model to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// Name clients ask for.
    pub name: String,
    /// What it is for; None: what its files say.
    pub model_type: Option<ModelType>,
    /// Where it is.
    pub source: ModelSource,
    /// Kind of backend; None: detected.
    pub backend_type: Option<BackendKind>,
    /// Quantise to 4 bits while loading.
    pub quantize_4bit: bool,
    /// Longest context; None: the engine's choice.
    pub context_length: Option<usize>,
    /// How it writes calls of tools; None: as its chat template says.
    pub tool_dialect: Option<ToolDialect>,
    /// Further names.
    pub aliases: Vec<String>,
}

impl ModelConfig {
    /// The model of a folder or file with everything else at its default.
    pub fn from_path(name: impl Into<String>, path: impl Into<PathBuf>) -> ModelConfig {
        ModelConfig {
            name: name.into(),
            model_type: None,
            source: ModelSource::Path(path.into()),
            backend_type: None,
            quantize_4bit: false,
            context_length: None,
            tool_dialect: None,
            aliases: Vec::new(),
        }
    }

    /// Reads one `[[models]]` entry.
    pub(crate) fn from_table(table: &toml::Table, idx: usize) -> Result<ModelConfig, ConfigError> {
        let entry = Entry { table, idx };
        entry.check_keys()?;
        let hub_id = entry.text("hub_id")?;
        let path = entry.text("path")?;
        let source = match (hub_id, path) {
            (Some(id), None) => ModelSource::Hub(id.into()),
            (None, Some(path)) => ModelSource::Path(path.into()),
            _ => return Err(entry.error("hub_id", "give exactly one of hub_id and path")),
        };
        let model_type = match entry.text("type")? {
            Some(name) => {
                Some(ModelType::parse(name).ok_or_else(|| entry.error("type", &format!("`{name}`: expected {}", ModelType::NAMES)))?)
            }
            None => None,
        };
        let backend_type = match entry.text("backend_type")? {
            Some(name) => Some(BackendKind::parse(name).ok_or_else(|| {
                entry.error("backend_type", &format!("`{name}`: expected {}", BackendKind::ALL.map(BackendKind::as_str).join(", ")))
            })?),
            None => None,
        };
        let tool_dialect = match entry.text("tool_call_parser")? {
            Some("auto") | None => None,
            Some(name) => Some(
                ToolDialect::parse(name)
                    .ok_or_else(|| entry.error("tool_call_parser", &format!("`{name}`: expected auto, {}", ToolDialect::NAMES)))?,
            ),
        };
        Ok(ModelConfig {
            name: entry.text("name")?.filter(|name| !name.is_empty()).ok_or_else(|| entry.error("name", "missing"))?.into(),
            model_type,
            source,
            backend_type,
            quantize_4bit: entry.switch("quantize_4bit")?,
            context_length: entry.count("context_length")?,
            tool_dialect,
            aliases: entry.texts("aliases")?,
        })
    }
}

/// Names of all models must differ, aliases included.
pub(crate) fn check_names(models: &[ModelConfig]) -> Result<(), ConfigError> {
    let mut seen = std::collections::HashSet::new();
    for (idx, model) in models.iter().enumerate() {
        for name in std::iter::once(&model.name).chain(&model.aliases) {
            if !seen.insert(name.as_str()) {
                return Err(ConfigError::Model { idx, key: "name", reason: format!("`{name}` is used twice") });
            }
        }
    }
    Ok(())
}

struct Entry<'a> {
    table: &'a toml::Table,
    idx: usize,
}

impl<'a> Entry<'a> {
    const KEYS: [&'static str; 9] =
        ["name", "type", "hub_id", "path", "backend_type", "quantize_4bit", "context_length", "tool_call_parser", "aliases"];

    fn error(&self, key: &'static str, reason: &str) -> ConfigError {
        ConfigError::Model { idx: self.idx, key, reason: reason.into() }
    }

    fn check_keys(&self) -> Result<(), ConfigError> {
        match self.table.keys().find(|key| !Self::KEYS.contains(&key.as_str())) {
            Some(key) => Err(self.error("(key)", &format!("`{key}` is unknown; known: {}", Self::KEYS.join(", ")))),
            None => Ok(()),
        }
    }

    fn text(&self, key: &'static str) -> Result<Option<&'a str>, ConfigError> {
        match self.table.get(key) {
            None => Ok(None),
            Some(toml::Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(key, &format!("`{other}`: expected a string"))),
        }
    }

    fn texts(&self, key: &'static str) -> Result<Vec<String>, ConfigError> {
        let Some(value) = self.table.get(key) else { return Ok(Vec::new()) };
        let strings = value.as_array().and_then(|items| items.iter().map(|item| item.as_str().map(str::to_string)).collect());
        strings.ok_or_else(|| self.error(key, &format!("`{value}`: expected a list of strings")))
    }

    fn switch(&self, key: &'static str) -> Result<bool, ConfigError> {
        match self.table.get(key) {
            None => Ok(false),
            Some(toml::Value::Boolean(value)) => Ok(*value),
            Some(other) => Err(self.error(key, &format!("`{other}`: expected true or false"))),
        }
    }

    fn count(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        match self.table.get(key) {
            None => Ok(None),
            Some(toml::Value::Integer(value)) if *value > 0 => Ok(usize::try_from(*value).ok()),
            Some(other) => Err(self.error(key, &format!("`{other}`: expected a whole number, at least 1"))),
        }
    }
}
