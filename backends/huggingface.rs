//! `HuggingFace`: architectures that pagoda's own engine has not, on candle, behind `InferenceBackend`.
//!
//! A worker process computes logits (`worker.rs`, `frame.rs`; its own code is in `huggingface/`). Around it is pagoda's engine thread with
//! everything but a device: queue, sampler, grammars, text (`steps.rs`). One request runs at a time; the others wait here.

mod frame;
mod lanes;
mod steps;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use pagoda_engine::EngineError;
use pagoda_engine::core::{OutsideModel, start};
use pagoda_engine::description::{TextDescription, describe_text};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use crate::vllm_local::{Parts, VllmLocal};
use crate::{
    BackendCapabilities, BackendError, BackendStats, GenerateEvent, GenerateRequest, GenerateStream, GenerationConfig, InferenceBackend,
    Prompt, ToolDialect,
};
use frame::Load;
pub use frame::Loaded;
use steps::Steps;
pub use worker::WorkerError;
use worker::{Worker, WorkerSettings};

/// Outputs of one request at most (`n`).
const MAX_CHOICES: usize = 16;
/// Tokens of a step: a request that is dropped is noticed between two steps.
const STEP_TOKENS: usize = 512;
/// Seconds after which a refused request may be sent again.
const RETRY_AFTER_S: u32 = 1;

/// How to run a model.
#[derive(Clone, Debug, PartialEq)]
pub struct HuggingFaceSettings {
    /// The worker's binary; None: beside this program.
    pub worker: Option<PathBuf>,
    /// auto, cpu, cuda.
    pub device: String,
    /// Linear layers in NF4.
    pub four_bit: bool,
    /// Flash attention where candle has it.
    pub flash_attention: bool,
    /// CPU threads; None: all cores.
    pub threads: Option<usize>,
    /// Longest sequence; None: what the model allows, at most 32768.
    pub max_model_len: Option<usize>,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// File with a chat template, instead of the model's own.
    pub chat_template: Option<PathBuf>,
    /// How the model writes calls of tools; None: as its chat template says.
    pub tool_dialect: Option<ToolDialect>,
}

impl HuggingFaceSettings {
    /// Where the worker's binary is: where the user says, else beside this program.
    pub fn worker_program(&self) -> PathBuf {
        worker::program(self.worker.as_deref())
    }
}

/// Why a model does not run.
#[derive(Debug, thiserror::Error)]
pub enum HuggingFaceError {
    /// The worker, or what it says about the model.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The files around the weights.
    #[error(transparent)]
    Text(#[from] EngineError),
    /// Only folders of safetensors files are read.
    #[error("{}: backend kind `huggingface` reads a folder with config.json and safetensors files", .0.display())]
    Files(PathBuf),
}

/// One model on a worker.
pub struct HuggingFace {
    text: VllmLocal,
    loaded: Loaded,
    capabilities: BackendCapabilities,
    turn: Arc<Semaphore>,
    num_waiting: Arc<AtomicUsize>,
    max_waiting: usize,
}

impl HuggingFace {
    /// Starts a worker with the model of a folder; `progress` gets (layers done, layers in all).
    ///
    /// # Errors
    /// The folder is no checkpoint, or the worker cannot be started or refuses the model.
    pub fn load(
        path: &Path,
        settings: &HuggingFaceSettings,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<HuggingFace, HuggingFaceError> {
        if !path.join("config.json").is_file() {
            return Err(HuggingFaceError::Files(path.to_owned()));
        }
        let TextDescription { tokenizer, chat_template, generation, eos_token_ids } =
            describe_text(path, settings.chat_template.as_deref())?;
        let load = Load {
            path: path.display().to_string(),
            device: settings.device.clone(),
            four_bit: settings.four_bit,
            flash_attention: settings.flash_attention,
            max_len: settings.max_model_len,
        };
        let worker = WorkerSettings { program: settings.worker_program(), threads: settings.threads, load };
        let worker = Worker::start(worker, progress)?;
        let loaded = worker.loaded.clone();
        for ignored in &loaded.ignored {
            warn!("ignored: {ignored}");
        }
        info!(
            family = loaded.family,
            device = loaded.device,
            weight_bytes = loaded.weight_bytes,
            resident_bytes = loaded.resident_bytes,
            "huggingface worker ready"
        );
        let model = OutsideModel {
            vocab_size: loaded.vocab_size,
            eos_token_ids: eos_token_ids.clone(),
            max_model_len: loaded.max_len,
            max_seqs: MAX_CHOICES,
            max_step_tokens: STEP_TOKENS,
            max_waiting: settings.max_waiting,
        };
        let mut steps = Steps::new(worker, MAX_CHOICES, STEP_TOKENS);
        let handle = start(model.engine_config(), move |inputs| steps.execute(inputs))?;
        let text = VllmLocal::from_parts(Parts {
            handle,
            tokenizer,
            chat_template,
            eos_token_ids,
            generation,
            tool_dialect: settings.tool_dialect,
        });
        let capabilities = BackendCapabilities {
            batching: false,
            quantization: vec!["bitsandbytes"],
            continuous_batching: false,
            paged_attention: false,
            ..text.capabilities().clone()
        };
        let (turn, num_waiting) = (Arc::new(Semaphore::new(1)), Arc::default());
        Ok(HuggingFace { text, loaded, capabilities, turn, num_waiting, max_waiting: settings.max_waiting })
    }

    /// What the worker says about the model.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The engine thread in front of the worker, which takes no turns.
    pub fn engine(&self) -> &VllmLocal {
        &self.text
    }

    /// A place among those who wait.
    fn wait(&self) -> Result<Waiting, BackendError> {
        let waiting = Waiting::new(&self.num_waiting);
        if waiting.before >= self.max_waiting {
            let message = format!("{} requests are waiting for a backend that runs one at a time", waiting.before);
            return Err(BackendError::Overloaded { message, retry_after_s: RETRY_AFTER_S });
        }
        Ok(waiting)
    }
}

/// The events of a request that has its turn, which ends with them.
fn holding(turn: OwnedSemaphorePermit, events: GenerateStream) -> GenerateStream {
    let mut turn = Some(turn);
    let events = events.map(move |event| {
        if matches!(event, GenerateEvent::Done(_) | GenerateEvent::Failed(_)) {
            drop(turn.take());
        }
        event
    });
    events.boxed()
}

/// A request that waits for its turn.
struct Waiting {
    count: Arc<AtomicUsize>,
    before: usize,
}

impl Waiting {
    fn new(count: &Arc<AtomicUsize>) -> Waiting {
        Waiting { count: count.clone(), before: count.fetch_add(1, Relaxed) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

#[async_trait]
impl InferenceBackend for HuggingFace {
    async fn generate_stream(&self, request: GenerateRequest) -> Result<GenerateStream, BackendError> {
        if let Ok(turn) = self.turn.clone().try_acquire_owned() {
            return Ok(holding(turn, self.text.generate_stream(request).await?));
        }
        // A caller may hold several streams and read one after another: a stream waits for its turn when it is read.
        let waiting = self.wait()?;
        let (turn, text) = (self.turn.clone(), self.text.clone());
        let events = async move {
            let turn = turn.acquire_owned().await;
            drop(waiting);
            let begun = match turn {
                Ok(turn) => text.generate_stream(request).await.map(|events| holding(turn, events)),
                Err(error) => Err(BackendError::Internal(error.to_string())),
            };
            begun.unwrap_or_else(|error| stream::iter([GenerateEvent::Failed(error)]).boxed())
        };
        Ok(stream::once(events).flatten().boxed())
    }

    async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        self.text.tokenize(prompt).await
    }

    async fn detokenize(&self, tokens: &[u32]) -> Result<String, BackendError> {
        self.text.detokenize(tokens).await
    }

    fn token_str(&self, token: u32) -> Option<String> {
        self.text.token_str(token)
    }

    fn default_config(&self) -> GenerationConfig {
        self.text.default_config()
    }

    fn capabilities(&self) -> &BackendCapabilities {
        &self.capabilities
    }

    fn stats(&self) -> BackendStats {
        let stats = self.text.stats();
        BackendStats {
            num_waiting: stats.num_waiting + self.num_waiting.load(Relaxed),
            num_blocks: 0,
            num_used_blocks: 0,
            block_size: 0,
            ..stats
        }
    }

    fn health(&self) -> Result<(), String> {
        self.text.health()
    }

    fn unload(&self) {
        self.text.unload();
    }
}
