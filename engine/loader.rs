//! From a path to a running engine: open, plan memory, load, start. The only place that ties the parts together.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pagoda_scheduler::SchedulerConfig;
use tracing::info;

use crate::core::{EngineConfig, EngineHandle, start_runner};
use crate::device::cpu::CpuDevice;
use crate::device::cuda::CudaDevice;
use crate::device::{DType, Device, KvShape};
use crate::error::{EngineError, Result};
use crate::memory_meter::MemoryMeter;
use crate::memory_plan::{MemoryPlan, PlanRequest, StepSize};
use crate::models::config::ModelConfig;
use crate::models::decoder::Decoder;
use crate::runner::{Runner, StepBounds};
use crate::text::chat_template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use crate::weights::checkpoint::{Checkpoint, GenerationDefaults};
use crate::weights::quant::{LoadFormat, Quantization};

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// What the device prefers.
    #[default]
    Auto,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// e4m3 with a scale for each head: the checkpoint's, else 1.
    Fp8,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where the binary holds kernels and there is a GPU, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU.
    Cuda,
}

impl DeviceChoice {
    /// Whether it comes to CUDA on this machine.
    pub(crate) fn is_cuda(self) -> bool {
        match self {
            DeviceChoice::Auto => !CudaDevice::available().is_empty(),
            DeviceChoice::Cpu => false,
            DeviceChoice::Cuda => true,
        }
    }
}

/// Whether a device that packs weights keeps a dense copy beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DenseCopy {
    /// Where a KV pool of a useful size still fits.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How to run a model. `Default` holds the documented defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// What computes.
    pub device: DeviceChoice,
    /// Compute threads; None: all cores.
    pub threads: Option<usize>,
    /// Element type of the KV cache.
    pub kv_cache_dtype: KvDtype,
    /// What weights must be, or are made at load; None: as stored.
    pub quantization: Option<Quantization>,
    /// What the head is made at load, and an embedding that is the same matrix; None: as stored.
    pub head_format: Option<LoadFormat>,
    /// What an embedding of its own is made at load; None: as stored.
    pub embedding_format: Option<LoadFormat>,
    /// Whether packed weights are kept as bf16 too, for steps of many tokens.
    pub dense_copy: DenseCopy,
    /// Round what NVFP4 weights are multiplied with to NVFP4 too, in steps of many tokens on a GPU of compute capability 12.x.
    pub fp4_activations: bool,
    /// Longest prompt plus output; None: what the checkpoint allows, at most 32768 and what the memory holds.
    pub max_model_len: Option<usize>,
    /// Tokens of a KV block.
    pub block_size: usize,
    /// Bytes of the KV pool; None: planned from free memory.
    pub kv_cache_bytes: Option<usize>,
    /// Share of free memory that weights, workspace and KV pool may take together.
    pub memory_utilization: f32,
    /// Count this as the free memory instead of asking the system.
    pub memory_limit_bytes: Option<usize>,
    /// Sequences of a step; None: what suits the device (`Device::step_size`).
    pub max_num_seqs: Option<usize>,
    /// Tokens of a step; None: what suits the device.
    pub max_num_batched_tokens: Option<usize>,
    /// Keep finished prefixes findable.
    pub prefix_caching: bool,
    /// The same request gives the same bits alone and in any batch. A CPU always does; a GPU pays for it with speed.
    pub deterministic: bool,
    /// Make the next step while the last one runs.
    pub step_ahead: bool,
    /// Record decode steps once and replay them, on a device that can.
    pub cuda_graphs: bool,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Go on after a failed step.
    pub restart_on_failure: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            device: DeviceChoice::Auto,
            threads: None,
            kv_cache_dtype: KvDtype::Auto,
            quantization: None,
            head_format: None,
            embedding_format: None,
            dense_copy: DenseCopy::Auto,
            fp4_activations: false,
            max_model_len: None,
            block_size: 16,
            kv_cache_bytes: None,
            memory_utilization: 0.9,
            memory_limit_bytes: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            prefix_caching: true,
            deterministic: false,
            step_ahead: true,
            cuda_graphs: true,
            max_waiting: 1024,
            restart_on_failure: false,
        }
    }
}

impl EngineOptions {
    pub(crate) fn validate(&self) -> Result<()> {
        let check = |option: &'static str, ok: bool, reason: String| if ok { Ok(()) } else { Err(EngineError::Option { option, reason }) };
        let block = self.block_size;
        check("block_size", (1..=256).contains(&block) && block.is_power_of_two(), format!("{block} is not a power of two in 1..=256"))?;
        let share = self.memory_utilization;
        check("memory_utilization", share > 0.0 && share <= 1.0, format!("{share} is not in (0, 1]"))?;
        let seqs = self.max_num_seqs.unwrap_or(1);
        check("max_num_seqs", (1..=4096).contains(&seqs), format!("{seqs} is not in 1..=4096"))?;
        let tokens = self.max_num_batched_tokens.unwrap_or(seqs);
        check("max_num_batched_tokens", (1..=131_072).contains(&tokens), format!("{tokens} is not in 1..=131072"))?;
        check("max_num_batched_tokens", tokens >= seqs, format!("{tokens} is less than max_num_seqs {seqs}"))?;
        check(
            "max_num_batched_tokens",
            !self.deterministic || self.max_num_batched_tokens.is_none() || tokens >= seqs + 2,
            format!("{tokens} is less than max_num_seqs {seqs} plus 2, which deterministic needs"),
        )?;
        let fp4 = self.fp4_activations;
        check("fp4_activations", !(fp4 && self.deterministic), "rounds by the size of a step, which deterministic excludes".into())?;
        check("fp4_activations", !fp4 || self.device.is_cuda(), "expected a GPU of compute capability 12.x".into())?;
        let waiting = self.max_waiting;
        check("max_waiting", (1..=1_000_000).contains(&waiting), format!("{waiting} is not in 1..=1000000"))?;
        let threads = self.threads.unwrap_or(1);
        check("threads", (1..=1024).contains(&threads), format!("{threads} is not in 1..=1024"))?;
        let len = self.max_model_len.unwrap_or(2);
        check("max_model_len", len >= 2, format!("{len} is less than 2"))
    }
}

/// Where a load has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// What is being done: "weights".
    pub stage: &'static str,
    /// Bytes done.
    pub done_bytes: usize,
    /// Bytes in all.
    pub total_bytes: usize,
}

/// A running model and what callers need around it.
pub struct LoadedModel {
    /// The engine.
    pub handle: EngineHandle,
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
    /// Its chat template, if the checkpoint has one.
    pub chat_template: Option<ChatTemplate>,
    /// Its shape.
    pub config: ModelConfig,
    /// Sampling defaults of the checkpoint.
    pub generation: GenerationDefaults,
    /// Where the memory goes.
    pub plan: MemoryPlan,
    /// What was taken of it.
    pub memory: MemoryMeter,
    /// "cpu avx512".
    pub device: String,
}

/// Opens the checkpoint at `path` (folder or .gguf file), loads it and starts an engine thread.
///
/// # Errors
/// Options out of range, a damaged or unknown checkpoint, not enough memory: all before memory is taken.
pub fn load(path: &Path, options: &EngineOptions, progress: &mut dyn FnMut(LoadProgress)) -> Result<LoadedModel> {
    options.validate()?;
    let checkpoint = open(path, options)?;
    // A large vocabulary takes as long as some gigabytes of weights: both at once.
    let (started, text) = std::thread::scope(|scope| {
        let text = scope.spawn(|| read_text(&checkpoint));
        let started = if options.device.is_cuda() {
            cuda_device(options).and_then(|device| load_on(&Arc::new(device), &checkpoint, options, progress))
        } else {
            CpuDevice::new(options.threads).and_then(|device| load_on(&Arc::new(device), &checkpoint, options, progress))
        };
        (started, text.join())
    });
    let (tokenizer, chat_template) = text.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let Started { handle, plan, memory, device } = started?;
    let (config, generation) = (checkpoint.config, checkpoint.generation);
    Ok(LoadedModel { handle, tokenizer, chat_template, config, generation, plan, memory, device })
}

pub(crate) fn read_text(checkpoint: &Checkpoint) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let tokenizer = Tokenizer::from_source(&checkpoint.tokenizer, &checkpoint.text)?;
    let chat_template = checkpoint.text.chat_template.as_deref().map(|source| ChatTemplate::new(source, &checkpoint.text)).transpose()?;
    Ok((tokenizer, chat_template))
}

/// Opens the checkpoint at `path`, loads it and starts an engine thread, for a caller who has read its texts already.
///
/// # Errors
/// As `load`.
pub fn load_engine(path: &Path, options: &EngineOptions, progress: &mut dyn FnMut(LoadProgress)) -> Result<EngineHandle> {
    options.validate()?;
    let checkpoint = open(path, options)?;
    let started = if options.device.is_cuda() {
        load_on(&Arc::new(cuda_device(options)?), &checkpoint, options, progress)
    } else {
        load_on(&Arc::new(CpuDevice::new(options.threads)?), &checkpoint, options, progress)
    };
    Ok(started?.handle)
}

/// The memory plan of a checkpoint, without loading it.
///
/// # Errors
/// As `load`.
pub fn plan(path: &Path, options: &EngineOptions) -> Result<(ModelConfig, MemoryPlan)> {
    options.validate()?;
    let checkpoint = open(path, options)?;
    let plan = plan_of(&checkpoint, options)?;
    Ok((checkpoint.config, plan))
}

pub(crate) fn plan_of(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<MemoryPlan> {
    if options.device.is_cuda() {
        plan_on(&cuda_device(options)?, checkpoint, options)
    } else {
        plan_on(&CpuDevice::new(options.threads)?, checkpoint, options)
    }
}

pub(crate) fn open(path: &Path, options: &EngineOptions) -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint::open(path)?;
    if options.quantization.is_some() || options.head_format.is_some() || options.embedding_format.is_some() {
        checkpoint.quantize_at_load(options.quantization, options.head_format, options.embedding_format)?;
    }
    Ok(checkpoint)
}

pub(crate) fn cuda_device(options: &EngineOptions) -> Result<CudaDevice> {
    let device = CudaDevice::new(0)?;
    let device = if options.deterministic { device.deterministic() } else { device };
    if options.fp4_activations { device.with_fp4_activations() } else { Ok(device) }
}

fn plan_on<D: Device>(device: &D, checkpoint: &Checkpoint, options: &EngineOptions) -> Result<MemoryPlan> {
    let free_bytes = match options.memory_limit_bytes {
        Some(bytes) => bytes,
        None => device.free_memory()?,
    };
    let step = StepSize::new(options, device.step_size());
    MemoryPlan::new(&PlanRequest {
        config: &checkpoint.config,
        options,
        kv_dtype: kv_dtype(device, options.kv_cache_dtype),
        activation_dtype: device.activation_dtype(),
        residual_dtype: device.residual_dtype(),
        weight_bytes: device.weight_bytes(checkpoint.weight_size()),
        dense_copy_bytes: device.dense_copy_bytes(checkpoint.weight_size()),
        scratch_bytes: device.scratch_bytes(&checkpoint.config, step, checkpoint.weight_size())?,
        free_bytes,
        in_use_bytes: device.memory_in_use(),
        step,
        kv_share: device.kv_share(),
    })
}

/// An engine with what is known of its device.
struct Started {
    handle: EngineHandle,
    plan: MemoryPlan,
    memory: MemoryMeter,
    device: String,
}

fn load_on<D: Device>(
    device: &Arc<D>,
    checkpoint: &Checkpoint,
    options: &EngineOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Started> {
    let plan = plan_on(&**device, checkpoint, options)?;
    let memory = MemoryMeter::new(device.clone());
    device.keep_dense_copies(plan.dense_copy_bytes > 0);
    let total_bytes = plan.weight_bytes;
    let mut on_layer = |done: usize, layers: usize| {
        progress(LoadProgress { stage: "weights", done_bytes: total_bytes / layers * done, total_bytes });
    };
    let started = Instant::now();
    let decoder = Decoder::load(&**device, checkpoint, plan.max_model_len, &mut on_layer)?;
    info!(bytes = total_bytes, seconds = started.elapsed().as_secs_f32(), "weights loaded");
    let config = &checkpoint.config;
    let kv = KvShape {
        num_blocks: plan.num_blocks,
        block_size: options.block_size,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        dtype: plan.kv_dtype,
    };
    let bounds = StepBounds {
        max_tokens: plan.step.max_num_batched_tokens,
        max_seqs: plan.step.max_num_seqs,
        max_blocks_per_seq: plan.max_model_len.div_ceil(options.block_size),
        block_size: options.block_size,
        max_logit_rows: plan.step.max_logit_rows,
        record: options.cuda_graphs,
    };
    let runner = Runner::new(device.clone(), decoder, kv, bounds)?;
    let engine = EngineConfig {
        scheduler: SchedulerConfig {
            block_size: options.block_size,
            num_blocks: plan.num_blocks,
            max_num_seqs: plan.step.max_num_seqs,
            max_num_batched_tokens: plan.step.max_num_batched_tokens,
            // A GPU's attention of one token is another kernel than that of several.
            min_chunk: if options.deterministic { 2 } else { 1 },
            max_model_len: plan.max_model_len,
            prefix_caching: options.prefix_caching,
            max_waiting: options.max_waiting,
        },
        vocab_size: config.vocab_size,
        eos_token_ids: config.eos_token_ids.clone(),
        step_ahead: options.step_ahead,
        restart_on_failure: options.restart_on_failure,
    };
    #[cfg(any(test, feature = "testing"))]
    let runner = crate::testing::with_fault(&checkpoint.path, runner);
    let handle = start_runner(engine, runner)?;
    let device = device.name();
    report(config.family, &device, &plan, &memory);
    Ok(Started { handle, plan, memory, device })
}

/// Says what is ready, and what was taken of the device's memory against what was planned.
fn report(family: &str, device: &str, plan: &MemoryPlan, memory: &MemoryMeter) {
    let StepSize { max_num_seqs, max_num_batched_tokens, .. } = plan.step;
    let (num_blocks, max_model_len) = (plan.num_blocks, plan.max_model_len);
    info!(family, device, num_blocks, max_model_len, max_num_seqs, max_num_batched_tokens, "engine ready");
    if let Some(taken_bytes) = memory.taken_bytes() {
        let planned_bytes = plan.total_bytes();
        info!(taken_bytes, planned_bytes, ratio = taken_bytes as f32 / planned_bytes as f32, "device memory");
    }
}

pub(crate) fn kv_dtype<D: Device>(device: &D, wanted: KvDtype) -> DType {
    match wanted {
        KvDtype::Auto => device.default_kv_dtype(),
        KvDtype::F32 => DType::F32,
        KvDtype::F16 => DType::F16,
        KvDtype::Bf16 => DType::BF16,
        KvDtype::Fp8 => DType::E4M3,
    }
}
