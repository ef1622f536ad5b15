//! `Checkpoint`: an opened model, whichever file format it came from. The decoder asks it for weights by role.
//!
//! Opening reads headers only and checks every tensor that the model will ask for (name, shape, format) before memory is taken.

use std::path::{Path, PathBuf};

use super::json::{Fields, read_object};
use super::names::{Names, fill};
use super::quant::{self, AtLoad, LoadFormat, QuantConfig, Quantization, Source};
use super::size::WeightSize;
use super::store::TensorStore;
use super::{gguf_model, safetensors, text_files};
use crate::device::{HostMatrix, MatrixLoad, MatrixUse};
use crate::error::{EngineError, Result};
use crate::models::config::{Activation, ModelConfig};
use crate::models::families;
use crate::models::limits::check_config;

/// Which matrix of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinearRole {
    /// Token embedding `[vocab, hidden]`.
    Embedding,
    /// Output head `[vocab, hidden]` (the embedding again when tied).
    LmHead,
    /// q, k, v stacked: `[(num_heads + 2 num_kv_heads) * head_dim, hidden]`.
    Qkv,
    /// Attention output `[hidden, num_heads * head_dim]`.
    O,
    /// gate and up stacked: `[2 * intermediate, hidden]`.
    GateUp,
    /// `[hidden, intermediate]`.
    Down,
    /// MoE router `[num_experts, hidden]`.
    Router,
    /// gate and up of one expert.
    ExpertGateUp(usize),
    /// down of one expert.
    ExpertDown(usize),
}

/// Which vector of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VectorRole {
    /// Norm before attention.
    InputNorm,
    /// Norm before the MLP (HF `post_attention_layernorm`; Gemma: `pre_feedforward_layernorm`).
    MlpNorm,
    /// Gemma's norm after attention.
    PostAttentionNorm,
    /// Gemma's norm after the MLP.
    PostMlpNorm,
    /// Norm before the head.
    FinalNorm,
    /// Per-head norm of q.
    QNorm,
    /// Per-head norm of k.
    KNorm,
}

/// A linear layer on the host: stacked parts and their concatenated bias.
pub struct HostLinear {
    /// Stacked along n, each a view into the file where its layout allows.
    pub parts: Vec<HostMatrix>,
    /// How a device is to take each of them.
    pub load: MatrixLoad,
    /// Concatenated biases, f32, or none.
    pub bias: Option<Vec<f32>>,
}

/// Where the tokeniser comes from.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// A tokenizer.json.
    File(PathBuf),
    /// The vocabulary inside a GGUF file.
    Gguf(Box<GgufVocab>),
}

/// A GGUF file's `tokenizer.ggml.*` keys.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// Pre-tokeniser name (`smollm`, `llama-bpe`, `qwen2`, ...).
    pub pre: String,
    /// Token texts by id.
    pub tokens: Vec<String>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// SentencePiece scores; empty for BPE.
    pub scores: Vec<f32>,
    /// BPE merges, "left right".
    pub merges: Vec<String>,
    /// Special ids.
    pub bos: Option<u32>,
    /// Special ids.
    pub eos: Option<u32>,
    /// Special ids.
    pub unk: Option<u32>,
    /// Special ids.
    pub pad: Option<u32>,
    /// Put BOS in front.
    pub add_bos: Option<bool>,
    /// SentencePiece: put a space in front.
    pub add_space_prefix: Option<bool>,
}

/// Sampling defaults of generation_config.json; None where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Temperature; 0 when `do_sample` is false.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// Top-k.
    pub top_k: Option<u32>,
    /// Repetition penalty.
    pub repetition_penalty: Option<f32>,
}

/// What the text layer needs beside the tokeniser.
#[derive(Clone, Debug, Default)]
pub struct TextConfig {
    /// Jinja source: chat_template.jinja, tokenizer_config.json (`default` of a list) or GGUF.
    pub chat_template: Option<String>,
    /// The string of BOS, for the template.
    pub bos_token: Option<String>,
    /// The string of EOS.
    pub eos_token: Option<String>,
    /// Further special-token strings by name (`pad_token`, `unk_token`).
    pub special_tokens: Vec<(String, String)>,
    /// tokenizer_config.json's `add_bos_token` where present (else the tokeniser's own post-processor decides).
    pub add_bos_token: Option<bool>,
}

/// An opened checkpoint.
pub struct Checkpoint {
    /// Folder or file it was opened from.
    pub path: PathBuf,
    /// Resolved shape.
    pub config: ModelConfig,
    /// Tokeniser.
    pub tokenizer: TokenizerSource,
    /// Templates and special strings.
    pub text: TextConfig,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
    pub(super) store: TensorStore,
    pub(super) names: &'static Names,
    /// None: the weights are dense, or GGUF.
    pub(super) quantization: Option<QuantConfig>,
    /// What dense matrices become when they are read.
    pub(super) at_load: AtLoad,
    pub(super) size: WeightSize,
}

/// What a linear role is made of: stacked parts, each a tensor or one matrix of a stack of experts.
pub(super) struct Plan {
    stems: &'static [&'static str],
    /// Rows of each part where there are as many parts as stems; summed where one tensor holds all.
    pub rows: Vec<usize>,
    pub k: usize,
    pub bias: bool,
    pub usage: MatrixUse,
    /// What dense parts become.
    pub quantize: Option<LoadFormat>,
    expert: Option<usize>,
}

impl Checkpoint {
    /// Opens a Hugging Face folder or a .gguf file: reads headers, checks every tensor that the decoder will ask for, reads no weight.
    ///
    /// # Errors
    /// The files are missing or damaged, a tensor is missing or of the wrong shape or type, the architecture is unknown.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let meta = std::fs::metadata(path).map_err(|source| EngineError::Io { path: path.to_owned(), source })?;
        let gguf = if meta.is_dir() { lone_gguf(path) } else { Some(path.to_owned()) };
        let mut checkpoint = match gguf {
            Some(file) => gguf_model::open(&file)?,
            None => Checkpoint::open_folder(path)?,
        };
        check_config(&checkpoint.config).map_err(|reason| EngineError::Checkpoint { path: path.to_owned(), reason })?;
        checkpoint.size = checkpoint.check()?;
        Ok(checkpoint)
    }

    fn open_folder(folder: &Path) -> Result<Checkpoint> {
        let path = folder.join("config.json");
        let fields = Fields::new(&path, read_object(&path)?);
        let (mut config, names) = families::parse_config(&path, &fields)?;
        let text = text_files::read_folder(folder)?;
        for id in text.eos_token_ids {
            if !config.eos_token_ids.contains(&id) {
                config.eos_token_ids.push(id);
            }
        }
        let mut store = safetensors::open_folder(folder)?;
        if store.name_as_part_of("model.", names.embedding) && !store.contains(&format!("{}.weight", names.lm_head)) {
            // A model that was saved without its head, as models of embeddings are.
            config.tie_word_embeddings = true;
        }
        Ok(Checkpoint {
            path: folder.to_owned(),
            config,
            tokenizer: text.tokenizer,
            text: text.text,
            generation: text.generation,
            store,
            names,
            quantization: quant::config::read(folder, &fields)?,
            at_load: AtLoad::default(),
            size: WeightSize::default(),
        })
    }

    /// A linear layer; `layer` is ignored for `Embedding` and `LmHead`.
    ///
    /// # Errors
    /// The model has no such matrix (all that it has were checked when it was opened).
    pub fn linear(&self, role: LinearRole, layer: usize) -> Result<HostLinear> {
        let plan = self.plan(role);
        let parts = self.parts(&plan, layer)?.into_iter().map(Source::read).collect::<Result<_>>()?;
        let mut bias = None;
        if plan.bias {
            let values: Result<Vec<Vec<f32>>> =
                self.biases(&plan, layer).into_iter().map(|(name, len)| self.store.vector(&name, len)).collect();
            bias = Some(values?.concat());
        }
        Ok(HostLinear { parts, load: MatrixLoad { usage: plan.usage, quantize: plan.quantize }, bias })
    }

    /// A vector in f32; `layer` is ignored for `FinalNorm`.
    ///
    /// # Errors
    /// As `linear`.
    pub fn vector(&self, role: VectorRole, layer: usize) -> Result<Vec<f32>> {
        let (name, len) = self.vector_name(role, layer)?;
        let mut values = self.store.vector(&name, len)?;
        if self.config.norm_plus_one {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(values)
    }

    /// How large the weights are, and every matrix's form.
    pub fn weight_size(&self) -> &WeightSize {
        &self.size
    }

    /// Bytes the weights take.
    pub fn weight_bytes(&self) -> usize {
        self.size.bytes
    }

    /// Numbers in all weights, whatever their format.
    pub fn weight_values(&self) -> usize {
        self.size.values
    }

    /// Has dense matrices quantised when they are read. `head` is for the head and an embedding tied to it, `embedding` for another one.
    ///
    /// # Errors
    /// `Option` where the checkpoint is of another kind than wanted.
    pub fn quantize_at_load(
        &mut self,
        wanted: Option<Quantization>,
        head: Option<LoadFormat>,
        embedding: Option<LoadFormat>,
    ) -> Result<()> {
        let format = wanted.map_or(Ok(None), |wanted| wanted.load_format(self.quantization.as_ref()));
        let projections = format.map_err(|reason| EngineError::Option { option: "quantization", reason })?;
        self.at_load = AtLoad { projections, head, embedding };
        self.size = self.check()?;
        Ok(())
    }

    /// How the weights are quantised, as config.json says.
    pub fn quantization(&self) -> Option<&QuantConfig> {
        self.quantization.as_ref()
    }

    /// The files that hold the weights.
    pub fn paths(&self) -> &[PathBuf] {
        &self.store.files
    }

    /// Reads all weights once, so that they are in the page cache; `progress` gets (bytes read, bytes in all).
    pub fn prefetch(&self, mut progress: impl FnMut(usize, usize)) {
        const STEP: usize = 16 << 20;
        const PAGE: usize = 4096;
        let mut tensors: Vec<_> = self.store.tensors.values().collect();
        tensors.sort_by_key(|tensor| (tensor.file, tensor.bytes.as_slice().as_ptr()));
        let total = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
        let mut done = 0;
        for tensor in tensors {
            for chunk in tensor.bytes.as_slice().chunks(STEP) {
                std::hint::black_box(chunk.iter().step_by(PAGE).fold(0u8, |sum, byte| sum ^ byte));
                done += chunk.len();
                progress(done, total);
            }
        }
    }

    pub(super) fn plan(&self, role: LinearRole) -> Plan {
        let c = &self.config;
        let names = self.names;
        let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
        let moe = c.moe.map_or((0, 0), |moe| (moe.num_experts, moe.intermediate_size));
        let usage = match role {
            LinearRole::Embedding | LinearRole::LmHead => MatrixUse::Table,
            LinearRole::Router => MatrixUse::Router,
            LinearRole::ExpertGateUp(_) | LinearRole::ExpertDown(_) => MatrixUse::Expert,
            LinearRole::GateUp if c.activation == Activation::Silu => MatrixUse::GateUp,
            _ => MatrixUse::Projection,
        };
        let plan = |stems: &'static [&'static str], rows: Vec<usize>, k: usize, bias: bool, expert: Option<usize>| Plan {
            stems,
            rows,
            k,
            bias,
            usage,
            quantize: self.load_format(role, usage),
            expert,
        };
        let one = std::slice::from_ref::<&'static str>;
        match role {
            LinearRole::LmHead if !c.tie_word_embeddings => plan(one(&names.lm_head), vec![c.vocab_size], c.hidden_size, false, None),
            LinearRole::Embedding | LinearRole::LmHead => plan(one(&names.embedding), vec![c.vocab_size], c.hidden_size, false, None),
            LinearRole::Qkv => plan(names.qkv, vec![q, kv, kv], c.hidden_size, c.qkv_bias, None),
            LinearRole::O => plan(one(&names.o), vec![c.hidden_size], q, c.o_bias, None),
            LinearRole::GateUp => plan(names.gate_up, vec![c.intermediate_size; 2], c.hidden_size, c.mlp_bias, None),
            LinearRole::Down => plan(one(&names.down), vec![c.hidden_size], c.intermediate_size, c.mlp_bias, None),
            LinearRole::Router => plan(one(&names.router), vec![moe.0], c.hidden_size, false, None),
            LinearRole::ExpertGateUp(expert) => plan(names.expert_gate_up, vec![moe.1; 2], c.hidden_size, false, Some(expert)),
            LinearRole::ExpertDown(expert) => plan(one(&names.expert_down), vec![c.hidden_size], moe.1, false, Some(expert)),
        }
    }

    pub(super) fn parts(&self, plan: &Plan, layer: usize) -> Result<Vec<Source>> {
        let part = |(stem, n): (&&str, usize)| {
            let name = fill(stem, layer, plan.expert.unwrap_or(0));
            match (plan.expert, self.config.moe) {
                // GGUF stacks all experts of a layer in one tensor.
                (Some(expert), Some(moe)) if !stem.contains("{e}") => {
                    self.store.expert(&(name + ".weight"), expert, moe.num_experts, n, plan.k).map(Source::rows)
                }
                _ => quant::find(&self.store, self.quantization.as_ref(), &name, n, plan.k),
            }
        };
        let load_in = |source: Source| match plan.quantize {
            Some(format) => source.load_in(format),
            None => source,
        };
        plan.stems.iter().zip(plan.part_rows()).map(|stem| part(stem).map(load_in)).collect()
    }

    fn load_format(&self, role: LinearRole, usage: MatrixUse) -> Option<LoadFormat> {
        match usage {
            MatrixUse::Projection | MatrixUse::GateUp | MatrixUse::Expert => self.at_load.projections,
            MatrixUse::Table if role == LinearRole::Embedding && !self.config.tie_word_embeddings => self.at_load.embedding,
            MatrixUse::Table => self.at_load.head,
            MatrixUse::Router => None,
        }
    }

    pub(super) fn biases(&self, plan: &Plan, layer: usize) -> Vec<(String, usize)> {
        plan.stems.iter().zip(plan.part_rows()).map(|(stem, n)| (fill(stem, layer, plan.expert.unwrap_or(0)) + ".bias", n)).collect()
    }

    pub(super) fn vector_name(&self, role: VectorRole, layer: usize) -> Result<(String, usize)> {
        let stem = self.names.vector(role);
        if stem.is_empty() {
            return Err(EngineError::Unsupported(format!("{} has no {role:?}", self.config.family)));
        }
        let len = if matches!(role, VectorRole::QNorm | VectorRole::KNorm) { self.config.head_dim } else { self.config.hidden_size };
        Ok((fill(stem, layer, 0) + ".weight", len))
    }
}

impl Plan {
    /// The names of the parts, without `.weight`.
    pub(super) fn stems(&self, layer: usize) -> Vec<String> {
        self.stems.iter().map(|stem| fill(stem, layer, self.expert.unwrap_or(0))).collect()
    }

    pub(super) fn part_rows(&self) -> Vec<usize> {
        if self.stems.len() == self.rows.len() { self.rows.clone() } else { vec![self.rows.iter().sum()] }
    }
}

/// The only .gguf file of a folder that has no config.json.
fn lone_gguf(folder: &Path) -> Option<PathBuf> {
    if folder.join("config.json").exists() {
        return None;
    }
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let mut ggufs = files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    ggufs.next().filter(|_| ggufs.next().is_none())
}
