//! From a kind, a model's files and the configuration to a running backend.

use std::path::Path;
use std::sync::Arc;

use pagoda_engine::description::unknown_architecture;
use pagoda_engine::loader::{self, DenseCopy, DeviceChoice, EngineOptions, KvDtype, LoadProgress};
use pagoda_engine::memory_plan::MemoryPlan;
use pagoda_engine::models::config::ModelConfig as ModelShape;
use pagoda_engine::pooling::{self, PoolingPlan};
use pagoda_engine::text::ChatTemplate;
use pagoda_engine::weights::checkpoint::Checkpoint;
use pagoda_engine::weights::quant::{LoadFormat, Quantization};
use pagoda_engine::{EngineError, Result as EngineResult};

use crate::config::{Config, NativeOptions, RemoteOptions};
use crate::pooling_local::kind_of;
use crate::registry::{BackendKind, ModelConfig, ModelType};
use crate::remote::RemoteSettings;
use crate::remote::serving::{self, ServedRemote, ServingError, Wanted};
use crate::{
    BackendError, HuggingFace, HuggingFaceError, HuggingFaceSettings, InferenceBackend, PoolingLocal, ToolDialect, VllmLocal,
    remote_openai, vllm_remote,
};

/// Why a backend could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FactoryError {
    /// The option has no effect in this build and must not be ignored.
    #[error("{option}: `{value}`: {reason}")]
    Option {
        /// The flag.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is possible.
        reason: &'static str,
    },
    /// A model does not fit into the memory of all.
    #[error("--model-memory-bytes: {0}")]
    Pool(BackendError),
    /// The type of model is not served by this kind of backend.
    #[error("type `{0}` is not available with backend kind `{kind}`; use vllm_local", kind = .1.as_str())]
    Type(&'static str, BackendKind),
    /// A kind that needs an address has none.
    #[error("backend kind `{}`: {option} is not set; it takes the address of the service", .kind.as_str())]
    Address {
        /// The kind.
        kind: BackendKind,
        /// The flag, with its variable.
        option: &'static str,
    },
    /// A kind that runs models elsewhere was given files to load.
    #[error("backend kind `{}` loads no files: the service has the model", .0.as_str())]
    NoFiles(BackendKind),
    /// No model of a service can be served.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The engine refused the model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The huggingface backend refused it.
    #[error(transparent)]
    HuggingFace(#[from] HuggingFaceError),
}

/// The kind to use for a model, and why.
pub fn detect(config: &Config, model: Option<&ModelConfig>) -> (BackendKind, &'static str) {
    match (model.and_then(|model| model.backend_type), config.backend) {
        (Some(kind), _) => (kind, "the model's backend_type"),
        (None, Some(kind)) => (kind, "asked for"),
        (None, None) if config.vllm_remote.url.is_some() => (BackendKind::VllmRemote, "VLLM_REMOTE_URL is set"),
        (None, None) if config.remote_openai.url.is_some() => (BackendKind::RemoteOpenai, "REMOTE_OPENAI_URL is set"),
        (None, None) => (BackendKind::VllmLocal, "no remote address is set"),
    }
}

/// Whether a model of files goes to the huggingface backend because nobody asked for a kind and pagoda's own engine has not its
/// architecture; says so then.
///
/// # Errors
/// A damaged file.
pub fn detect_files(config: &Config, model: Option<&ModelConfig>, path: &Path) -> EngineResult<Option<String>> {
    let is_asked = config.backend.is_some() || model.is_some_and(|model| model.backend_type.is_some());
    if is_asked || detect(config, model).0 != BackendKind::VllmLocal {
        return Ok(None);
    }
    Ok(unknown_architecture(path)?.map(|unknown| format!("the engine has not the architecture: {unknown}")))
}

/// Checks what can be known before any file is opened.
///
/// # Errors
/// A kind, a type of model or an option that this build does not have.
pub fn check(kind: BackendKind, model: Option<&ModelConfig>, config: &Config) -> Result<(), FactoryError> {
    if let Some(model_type) = model_type(model, config).filter(|wanted| *wanted != ModelType::CausalLm && kind == BackendKind::HuggingFace)
    {
        return Err(FactoryError::Type(model_type.as_str(), kind));
    }
    if is_remote(kind) {
        return remote_settings(kind, config).map(|_| ());
    }
    let native = &config.native;
    let refuse = |option, value: String, reason| Err(FactoryError::Option { option, value, reason });
    if native.tensor_parallel_size != 1 {
        return refuse("--tensor-parallel-size", native.tensor_parallel_size.to_string(), "this build runs a model on one device; use 1");
    }
    Ok(())
}

/// Whether models of this kind run elsewhere: no files, no device.
pub fn is_remote(kind: BackendKind) -> bool {
    matches!(kind, BackendKind::VllmRemote | BackendKind::RemoteOpenai)
}

fn remote_options(kind: BackendKind, config: &Config) -> &RemoteOptions {
    if kind == BackendKind::VllmRemote { &config.vllm_remote } else { &config.remote_openai }
}

/// How to reach the service of a remote kind.
///
/// # Errors
/// No address.
pub fn remote_settings(kind: BackendKind, config: &Config) -> Result<RemoteSettings, FactoryError> {
    let (settings, option) = match kind {
        BackendKind::VllmRemote => (vllm_remote::settings(&config.vllm_remote), "--vllm-remote-url (VLLM_REMOTE_URL)"),
        _ => (remote_openai::settings(&config.remote_openai), "--remote-openai-url (REMOTE_OPENAI_URL)"),
    };
    settings.ok_or(FactoryError::Address { kind, option })
}

/// The models that a remote kind serves, with their names.
///
/// # Errors
/// No address, a wrong one, or a service that has to list its models and does not.
pub async fn remote_models(kind: BackendKind, wanted: Wanted<'_>, config: &Config) -> Result<Vec<ServedRemote>, FactoryError> {
    let dialect = tool_dialect(wanted.entry, config);
    Ok(serving::models(&remote_settings(kind, config)?, remote_options(kind, config), wanted, dialect).await?)
}

/// Loads a model's files into a backend of the given kind.
///
/// # Errors
/// As `check`, and whatever the engine says about the files.
pub fn create(
    kind: BackendKind,
    path: &Path,
    model: Option<&ModelConfig>,
    config: &Config,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Arc<dyn InferenceBackend>, FactoryError> {
    check(kind, model, config)?;
    if is_remote(kind) {
        return Err(FactoryError::NoFiles(kind));
    }
    if kind == BackendKind::HuggingFace {
        return Ok(Arc::new(load_huggingface(path, &huggingface_settings(model, config), progress)?));
    }
    let options = options_for(model, config);
    if let Some(kind) = kind_of(path, model_type(model, config))? {
        return Ok(Arc::new(PoolingLocal::new(pooling::load(path, Some(kind), &options, progress)?)));
    }
    Ok(Arc::new(load_local(path, &options, config, tool_dialect(model, config), progress)?))
}

/// What a model is for, where its entry or the configuration says so.
pub(crate) fn model_type(model: Option<&ModelConfig>, config: &Config) -> Option<ModelType> {
    model.and_then(|model| model.model_type).or(config.model_type)
}

/// How a model writes calls, where its entry or the configuration says so.
pub(crate) fn tool_dialect(model: Option<&ModelConfig>, config: &Config) -> Option<ToolDialect> {
    model.and_then(|model| model.tool_dialect).or(config.tool_dialect)
}

/// Loads a model onto pagoda's own engine. `dialect`: how it writes calls; None: as its chat template says.
///
/// # Errors
/// Whatever the engine says about files and options.
pub fn load_local(
    path: &Path,
    options: &EngineOptions,
    config: &Config,
    dialect: Option<ToolDialect>,
    progress: &mut dyn FnMut(LoadProgress),
) -> EngineResult<VllmLocal> {
    // Read first: a wrong template should not cost a load.
    let template = config.native.chat_template.as_deref().map(|file| template_from(file, path)).transpose()?;
    let mut model = loader::load(path, options, progress)?;
    model.chat_template = template.or(model.chat_template);
    Ok(VllmLocal::writing(model, dialect))
}

/// Starts a worker with a model.
///
/// # Errors
/// Whatever the worker says about files and options.
pub fn load_huggingface(
    path: &Path,
    settings: &HuggingFaceSettings,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<HuggingFace, HuggingFaceError> {
    let files = std::fs::read_dir(path).into_iter().flatten().flatten();
    let weights = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "safetensors"));
    let total_bytes: u64 = weights.filter_map(|file| Some(file.path().metadata().ok()?.len())).sum();
    let total_bytes = usize::try_from(total_bytes).unwrap_or(usize::MAX);
    HuggingFace::load(path, settings, &mut |done, layers| {
        progress(LoadProgress { stage: "weights", done_bytes: total_bytes / layers.max(1) * done, total_bytes });
    })
}

/// The huggingface backend's settings for a model.
pub fn huggingface_settings(model: Option<&ModelConfig>, config: &Config) -> HuggingFaceSettings {
    let (wanted, native) = (&config.huggingface, &config.native);
    HuggingFaceSettings {
        worker: wanted.worker.clone(),
        device: wanted.device.clone(),
        four_bit: wanted.load_4bit || wanted.quantization.is_some() || model.is_some_and(|model| model.quantize_4bit),
        flash_attention: wanted.flash_attention,
        threads: native.threads,
        max_model_len: model.and_then(|model| model.context_length).or(native.max_model_len),
        max_waiting: native.max_waiting,
        chat_template: native.chat_template.clone(),
        tool_dialect: tool_dialect(model, config),
    }
}

pub(crate) fn template_from(file: &Path, model: &Path) -> EngineResult<ChatTemplate> {
    let source = std::fs::read_to_string(file).map_err(|source| EngineError::Io { path: file.into(), source })?;
    ChatTemplate::new(&source, &Checkpoint::open(model)?.text)
}

/// Where the memory of a model goes.
pub enum Plan {
    /// Of one that generates text.
    Generates(Box<(ModelShape, MemoryPlan)>),
    /// Of a model of embeddings or a reranker.
    Pools(PoolingPlan),
}

/// The memory plan of a model's files under these options, without loading them.
///
/// # Errors
/// As `create`.
pub fn plan(path: &Path, model: Option<&ModelConfig>, config: &Config, options: &EngineOptions) -> Result<Plan, FactoryError> {
    Ok(match kind_of(path, model_type(model, config))? {
        Some(kind) => Plan::Pools(pooling::describe(path, Some(kind), options)?.plan),
        None => Plan::Generates(Box::new(loader::plan(path, options)?)),
    })
}

/// The engine's options for a model.
pub fn options_for(model: Option<&ModelConfig>, config: &Config) -> EngineOptions {
    let mut options = engine_options(&config.native);
    options.max_model_len = model.and_then(|model| model.context_length).or(options.max_model_len);
    // What the whole server asks for is more exact than a model's wish for four bits.
    let four_bit = model.is_some_and(|model| model.quantize_4bit).then_some(Quantization::FourBit);
    options.quantization = options.quantization.or(four_bit);
    options
}

/// Formats of embedding and head by their bits; None: as stored.
fn table_format(bits: usize) -> Option<LoadFormat> {
    match bits {
        4 => Some(LoadFormat::Nf4),
        8 => Some(LoadFormat::Int8),
        _ => None,
    }
}

fn engine_options(native: &NativeOptions) -> EngineOptions {
    EngineOptions {
        device: match native.device.as_str() {
            "cpu" => DeviceChoice::Cpu,
            "cuda" => DeviceChoice::Cuda,
            _ => DeviceChoice::Auto,
        },
        threads: native.threads,
        kv_cache_dtype: match native.kv_cache_dtype.as_str() {
            "f32" => KvDtype::F32,
            "f16" => KvDtype::F16,
            "bf16" => KvDtype::Bf16,
            "fp8" => KvDtype::Fp8,
            _ => KvDtype::Auto,
        },
        quantization: native.quantization.as_deref().and_then(Quantization::parse),
        head_format: table_format(native.head_bits),
        embedding_format: table_format(native.embedding_bits),
        dense_copy: match native.dense_copy.as_str() {
            "on" => DenseCopy::On,
            "off" => DenseCopy::Off,
            _ => DenseCopy::Auto,
        },
        fp4_activations: native.fp4_activations,
        max_model_len: native.max_model_len,
        block_size: native.block_size,
        kv_cache_bytes: native.kv_cache_bytes,
        memory_utilization: native.memory_utilization,
        memory_limit_bytes: native.memory_limit_bytes,
        max_num_seqs: native.max_num_seqs,
        max_num_batched_tokens: native.max_num_batched_tokens,
        prefix_caching: native.prefix_caching,
        deterministic: native.deterministic,
        step_ahead: native.step_ahead,
        cuda_graphs: native.cuda_graphs,
        max_waiting: native.max_waiting,
        restart_on_failure: native.restart_on_failure,
    }
}
