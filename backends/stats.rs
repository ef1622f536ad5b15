//! What a backend says of itself: what it can do, and live numbers.

use crate::ToolDialect;

pub use pagoda_engine::core::{STEP_SIZE_BOUNDS, StepSizes};

/// What a backend can do; served at `/v1/models/{id}` and printed by `pagoda doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendCapabilities {
    /// Tokens arrive one by one.
    pub streaming: bool,
    /// Tool calls are understood.
    pub tool_calling: bool,
    /// How calls are written in the model's text; None: not a model that calls.
    pub tool_dialect: Option<ToolDialect>,
    /// Answers are made to fit schemas and grammars, and calls of tools are forced: `Constraint` and forced `ToolChoice`s are honoured.
    /// Without it a request that has one is `Unsupported`.
    pub structured_output: bool,
    /// Several requests share a step.
    pub batching: bool,
    /// More than one GPU.
    pub multi_gpu: bool,
    /// Names accepted by VLLM_QUANTIZATION and formats read.
    pub quantization: Vec<&'static str>,
    /// Longest prompt plus answer, tokens; 0: not known.
    pub max_context_length: usize,
    /// Requests join and leave at every step.
    pub continuous_batching: bool,
    /// KV memory is paged.
    pub paged_attention: bool,
}

/// Live numbers of a backend, for `/health` and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BackendStats {
    /// Sequences in the running batch.
    pub num_running: usize,
    /// Sequences waiting.
    pub num_waiting: usize,
    /// Blocks of the KV pool.
    pub num_blocks: usize,
    /// Of these, held by sequences.
    pub num_used_blocks: usize,
    /// Slots allocated and unused / slots allocated, over the running sequences (0 when none run).
    pub kv_waste: f32,
    /// Preemptions since start.
    pub num_preemptions: u64,
    /// Steps since start.
    pub num_steps: u64,
    /// Most sequences ever seen in one step.
    pub max_running: usize,
    /// Tokens of a KV block; 0: no paged cache.
    pub block_size: usize,
    /// Prompt tokens looked up in the prefix cache since start.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Steps since start by their number of tokens.
    pub step_sizes: StepSizes,
}

impl BackendStats {
    /// Adds what `other` counted; what is true only now stays.
    pub fn add_counts(&mut self, other: &BackendStats) {
        self.num_preemptions += other.num_preemptions;
        self.num_steps += other.num_steps;
        self.max_running = self.max_running.max(other.max_running);
        self.prefix_queries += other.prefix_queries;
        self.prefix_hits += other.prefix_hits;
        self.step_sizes.add(&other.step_sizes);
    }
}
