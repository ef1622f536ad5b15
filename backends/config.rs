//! `Config`: everything a user can set, resolved, checked and typed.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::ToolDialect;
use crate::options::{OPTIONS, parse_switch};
use crate::registry::{BackendKind, ModelConfig, ModelType, check_names};
use crate::settings::{ConfigError, Setting, Sources, parse_file, resolve_one, value_error};

/// The HTTP server's options.
#[derive(Clone, PartialEq)]
pub struct ServerOptions {
    /// Address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Keys given in place; empty: none.
    pub api_keys: Vec<String>,
    /// File with further keys.
    pub api_key_file: Option<PathBuf>,
    /// Names of the model; empty: its own name.
    pub served_model_names: Vec<String>,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// Requests that generate at the same time.
    pub max_concurrent_requests: usize,
    /// Folder of message batches; None: in the cache folder.
    pub batch_dir: Option<PathBuf>,
    /// Origins that a browser may call from; empty: any.
    pub cors_origins: Vec<String>,
    /// Time for requests in flight at shutdown.
    pub shutdown_timeout: Duration,
}

/// With its keys counted, not shown.
impl std::fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("ServerOptions");
        shown.field("host", &self.host).field("port", &self.port);
        shown.field("num_api_keys", &self.api_keys.len()).field("api_key_file", &self.api_key_file);
        shown.field("served_model_names", &self.served_model_names).field("max_body_bytes", &self.max_body_bytes);
        shown.field("max_concurrent_requests", &self.max_concurrent_requests).field("batch_dir", &self.batch_dir);
        shown.field("cors_origins", &self.cors_origins).field("shutdown_timeout", &self.shutdown_timeout).finish()
    }
}

/// Options of pagoda's own engine; None: the engine's own choice.
#[derive(Clone, Debug, PartialEq)]
pub struct NativeOptions {
    /// Longest context.
    pub max_model_len: Option<usize>,
    /// Sequences of a step.
    pub max_num_seqs: Option<usize>,
    /// Tokens of a step.
    pub max_num_batched_tokens: Option<usize>,
    /// Waiting requests.
    pub max_waiting: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// auto, cpu or cuda.
    pub device: String,
    /// auto, f32, f16, bf16.
    pub kv_cache_dtype: String,
    /// Size of the KV cache.
    pub kv_cache_bytes: Option<usize>,
    /// Prefix cache.
    pub prefix_caching: bool,
    /// Bits that do not depend on the batch.
    pub deterministic: bool,
    /// One-step-ahead loop.
    pub step_ahead: bool,
    /// Recorded decode steps.
    pub cuda_graphs: bool,
    /// Go on after a failed step.
    pub restart_on_failure: bool,
    /// CPU threads.
    pub threads: Option<usize>,
    /// Share of free memory.
    pub memory_utilization: f32,
    /// Taken for the free memory.
    pub memory_limit_bytes: Option<usize>,
    /// Memory of several models together.
    pub model_memory_bytes: Option<usize>,
    /// Host memory for models put aside.
    pub swap_bytes: Option<usize>,
    /// Several models are loaded at the start, as many as fit.
    pub load_at_start: bool,
    /// GPUs of one model.
    pub tensor_parallel_size: usize,
    /// Format of weights.
    pub quantization: Option<String>,
    /// Bits of the head, and of an embedding tied to it: 4, 8 or 16.
    pub head_bits: usize,
    /// Bits of an embedding of its own: 4, 8 or 16.
    pub embedding_bits: usize,
    /// Dense copies of packed weights: auto, on, off.
    pub dense_copy: String,
    /// NVFP4 activations of steps of many tokens.
    pub fp4_activations: bool,
    /// File with a chat template.
    pub chat_template: Option<PathBuf>,
}

/// Options of a backend over HTTP.
#[derive(Clone, Default, PartialEq)]
pub struct RemoteOptions {
    /// Address; None: not configured.
    pub url: Option<String>,
    /// Key.
    pub api_key: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// Longest silence.
    pub timeout: Duration,
}

impl std::fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let api_key = self.api_key.as_ref().map(|_| "***");
        let mut shown = f.debug_struct("RemoteOptions");
        shown.field("url", &self.url).field("api_key", &api_key).field("model", &self.model).field("timeout", &self.timeout).finish()
    }
}

/// Options of the huggingface backend.
#[derive(Clone, Debug, PartialEq)]
pub struct HuggingFaceOptions {
    /// auto, cpu, cuda.
    pub device: String,
    /// bitsandbytes: NF4.
    pub quantization: Option<String>,
    /// The same by another name.
    pub load_4bit: bool,
    /// Flash attention.
    pub flash_attention: bool,
    /// The worker's binary.
    pub worker: Option<PathBuf>,
}

/// Everything, resolved and checked.
#[derive(Clone)]
pub struct Config {
    /// Kind asked for; None: to be detected.
    pub backend: Option<BackendKind>,
    /// Model when no argument names one.
    pub model: Option<String>,
    /// What models are for of which no entry says so; None: what their files say.
    pub model_type: Option<ModelType>,
    /// How models write calls of which no entry says so; None: as their chat templates say.
    pub tool_dialect: Option<ToolDialect>,
    /// HTTP server.
    pub server: ServerOptions,
    /// Log filter.
    pub log_level: String,
    /// Log lines as JSON.
    pub log_json: bool,
    /// Native engine.
    pub native: NativeOptions,
    /// huggingface backend.
    pub huggingface: HuggingFaceOptions,
    /// vllm_remote backend.
    pub vllm_remote: RemoteOptions,
    /// remote_openai backend.
    pub remote_openai: RemoteOptions,
    /// Entries of `[[models]]`.
    pub models: Vec<ModelConfig>,
    /// Every option with its origin, in the table's order.
    pub settings: Vec<Setting>,
}

/// As settings, which hide their secrets.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("settings", &self.settings).field("models", &self.models).finish()
    }
}

impl Config {
    /// Resolves and checks everything.
    ///
    /// # Errors
    /// The first wrong value, naming the option, the value, where it came from and what is allowed.
    pub fn resolve(sources: &Sources<'_>) -> Result<Config, ConfigError> {
        let table = match &sources.file {
            Some((path, text)) => Some((path, parse_file(path, text)?)),
            None => None,
        };
        let mut settings = Vec::with_capacity(OPTIONS.len());
        for spec in OPTIONS {
            settings.push(resolve_one(spec, sources, table.as_ref())?);
        }
        let models = match &table {
            Some((path, table)) => parse_models(path, table)?,
            None => Vec::new(),
        };
        check_host(&settings)?;
        Ok(Self::from_settings(settings, models))
    }

    fn from_settings(settings: Vec<Setting>, models: Vec<ModelConfig>) -> Config {
        let values = Values(&settings);
        let (server, native) = (values.server(), values.native());
        Config {
            backend: values.text("backend").and_then(|name| BackendKind::parse(&name)),
            model: values.text("model"),
            model_type: values.text("model_type").and_then(|name| ModelType::parse(&name)),
            tool_dialect: values.text("tool_call_parser").and_then(|name| ToolDialect::parse(&name)),
            server,
            log_level: values.text("log_level").unwrap_or_default(),
            log_json: values.text("log_format").as_deref() == Some("json"),
            native,
            huggingface: HuggingFaceOptions {
                device: values.text("hf_device").unwrap_or_default(),
                quantization: values.text("hf_quantization"),
                load_4bit: values.switch("hf_load_4bit"),
                flash_attention: values.switch("hf_flash_attention"),
                worker: values.text("hf_worker").map(PathBuf::from),
            },
            vllm_remote: values.remote("vllm_remote"),
            remote_openai: values.remote("remote_openai"),
            models,
            settings,
        }
    }
}

fn parse_models(path: &std::path::Path, table: &toml::Table) -> Result<Vec<ModelConfig>, ConfigError> {
    let Some(value) = table.get("models") else { return Ok(Vec::new()) };
    let entries = value.as_array().ok_or_else(|| ConfigError::File { path: path.into(), reason: "models: expected [[models]]".into() })?;
    let mut models = Vec::with_capacity(entries.len());
    for (idx, entry) in entries.iter().enumerate() {
        let entry = entry.as_table().ok_or(ConfigError::Model { idx, key: "(entry)", reason: "expected a table".into() })?;
        models.push(ModelConfig::from_table(entry, idx)?);
    }
    check_names(&models)?;
    Ok(models)
}

fn check_host(settings: &[Setting]) -> Result<(), ConfigError> {
    let Some(setting) = settings.iter().find(|setting| setting.spec.key == "host") else { return Ok(()) };
    let value = setting.value.as_deref().unwrap_or_default();
    let good = value == "localhost" || value.parse::<IpAddr>().is_ok();
    if good { Ok(()) } else { Err(value_error(setting.spec, value, &setting.origin, "an IP address such as 127.0.0.1 or 0.0.0.0".into())) }
}

const GIB: f64 = (1u64 << 30) as f64;

/// Typed views of checked settings.
struct Values<'a>(&'a [Setting]);

impl Values<'_> {
    fn text(&self, key: &str) -> Option<String> {
        let setting = self.0.iter().find(|setting| setting.spec.key == key);
        debug_assert!(setting.is_some(), "{key} is no option");
        setting?.value.clone().filter(|value| !value.is_empty())
    }

    fn texts(&self, key: &str) -> Vec<String> {
        let text = self.text(key).unwrap_or_default();
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_string).collect()
    }

    fn count(&self, key: &str) -> Option<usize> {
        self.text(key)?.parse().ok()
    }

    fn number(&self, key: &str) -> f64 {
        self.text(key).and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    fn switch(&self, key: &str) -> bool {
        self.text(key).and_then(|value| parse_switch(&value)).unwrap_or_default()
    }

    fn server(&self) -> ServerOptions {
        ServerOptions {
            host: self.text("host").unwrap_or_default(),
            port: self.count("port").and_then(|port| u16::try_from(port).ok()).unwrap_or_default(),
            api_keys: self.texts("api_key"),
            api_key_file: self.text("api_key_file").map(PathBuf::from),
            served_model_names: self.texts("served_model_name"),
            max_body_bytes: self.count("max_body_bytes").unwrap_or_default(),
            max_concurrent_requests: self.count("max_concurrent_requests").unwrap_or_default(),
            batch_dir: self.text("batch_dir").map(PathBuf::from),
            cors_origins: self.texts("cors_origins"),
            shutdown_timeout: Duration::from_secs_f64(self.number("shutdown_timeout")),
        }
    }

    fn native(&self) -> NativeOptions {
        let count = |key: &str| self.count(key).expect("the table gives a default");
        NativeOptions {
            max_model_len: self.count("max_model_len"),
            max_num_seqs: self.count("max_num_seqs"),
            max_num_batched_tokens: self.count("max_num_batched_tokens"),
            max_waiting: count("max_waiting"),
            block_size: count("block_size"),
            device: self.text("device").unwrap_or_default(),
            kv_cache_dtype: self.text("kv_cache_dtype").unwrap_or_default(),
            kv_cache_bytes: self.count("kv_cache_bytes"),
            prefix_caching: self.switch("prefix_caching"),
            deterministic: self.switch("deterministic"),
            step_ahead: self.switch("step_ahead"),
            cuda_graphs: self.switch("cuda_graphs"),
            restart_on_failure: self.switch("restart_on_failure"),
            threads: self.count("threads"),
            memory_limit_bytes: self.count("memory_limit_bytes"),
            model_memory_bytes: self.count("model_memory_bytes"),
            swap_bytes: self.text("swap_space").map(|_| (self.number("swap_space") * GIB) as usize),
            load_at_start: self.text("load_models").as_deref() == Some("start"),
            memory_utilization: self.number("gpu_memory_utilization") as f32,
            tensor_parallel_size: count("tensor_parallel_size"),
            quantization: self.text("quantization"),
            head_bits: count("head_bits"),
            embedding_bits: self.count("embedding_bits").unwrap_or_else(|| count("head_bits")),
            dense_copy: self.text("dense_copy").unwrap_or_default(),
            fp4_activations: self.switch("fp4_activations"),
            chat_template: self.text("chat_template").map(PathBuf::from),
        }
    }

    fn remote(&self, prefix: &str) -> RemoteOptions {
        let text = |name: &str| self.text(&format!("{prefix}_{name}"));
        let timeout = Duration::from_secs_f64(self.number(&format!("{prefix}_timeout")));
        RemoteOptions { url: text("url"), api_key: text("api_key"), model: text("model"), timeout }
    }
}
