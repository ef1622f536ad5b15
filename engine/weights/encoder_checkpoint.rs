//! `EncoderCheckpoint`: an opened encoder. Like `Checkpoint`, it checks every tensor that the model will ask for before memory is taken.

use std::path::{Path, PathBuf};

use super::checkpoint::{HostLinear, TextConfig, TokenizerSource};
use super::encoder_names::EncoderNames;
use super::json::{Fields, checkpoint_error, read_object};
use super::store::{TensorStore, aligned};
use super::{safetensors, text_files};
use crate::device::{HostMatrix, MatrixLoad, MatrixUse};
use crate::error::Result;
use crate::models::encoder_config::{EncoderConfig, HeadActivation, Positions};
use crate::models::encoder_families::parse_encoder_config;

/// Which matrix of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderLinear {
    /// q, k, v stacked: `[3 * hidden, hidden]`.
    Qkv,
    /// Attention output `[hidden, hidden]`.
    O,
    /// First matrix of the MLP: `[intermediate, hidden]`, gated `[2 * intermediate, hidden]`.
    Up,
    /// `[hidden, intermediate]`.
    Down,
    /// First matrix of the head `[hidden, hidden]`.
    HeadDense,
    /// Scores `[num_labels, hidden]`.
    HeadOut,
}

/// Which table of vectors of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderTable {
    /// `[vocab, hidden]`.
    Tokens,
    /// `[rows, hidden]`.
    Positions,
    /// `[num_token_types, hidden]`.
    TokenTypes,
}

/// Which norm of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderNorm {
    /// Of the embeddings' sum.
    Embedding,
    /// Of attention.
    Attention,
    /// Of the MLP.
    Mlp,
    /// Behind the last layer.
    Final,
    /// Of the head.
    Head,
}

/// Weight and shift of a layer norm on the host.
pub struct HostNorm {
    /// `[hidden]`.
    pub weight: Vec<f32>,
    /// `[hidden]`, zeros where the checkpoint has none.
    pub bias: Vec<f32>,
}

/// An opened encoder.
pub struct EncoderCheckpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Its shape.
    pub config: EncoderConfig,
    /// Tokeniser.
    pub tokenizer: TokenizerSource,
    /// Special strings.
    pub text: TextConfig,
    store: TensorStore,
    names: &'static EncoderNames,
    prefix: &'static str,
}

impl EncoderCheckpoint {
    /// Opens a Hugging Face folder: reads headers, checks every tensor, reads no weight.
    ///
    /// # Errors
    /// The files are missing or damaged, a tensor is missing or of the wrong shape or type, the architecture is unknown.
    pub fn open(folder: &Path) -> Result<EncoderCheckpoint> {
        let path = folder.join("config.json");
        let fields = Fields::new(&path, read_object(&path)?);
        let (config, names) = parse_encoder_config(&path, &fields)?;
        let text = text_files::read_folder(folder)?;
        let store = safetensors::open_folder(folder)?;
        let holds = |prefix: &&&str| store.contains(&(names.embedding.replace("{p}", prefix) + ".weight"));
        let prefix = names.prefixes.iter().find(holds).copied().unwrap_or_default();
        let checkpoint =
            EncoderCheckpoint { path: folder.to_owned(), config, tokenizer: text.tokenizer, text: text.text, store, names, prefix };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Bytes of the tensors of all files.
    pub fn weight_bytes(&self) -> usize {
        self.store.tensors.values().map(|tensor| tensor.bytes.len()).sum()
    }

    /// Weights of all files.
    pub fn num_values(&self) -> usize {
        self.store.tensors.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    /// A linear layer; `layer` is ignored for the head.
    ///
    /// # Errors
    /// The model has no such matrix (all that it has were checked when it was opened).
    pub fn linear(&self, which: EncoderLinear, layer: usize) -> Result<HostLinear> {
        let Shape { stems, n, k, bias } = self.shape(which);
        let rows = n / stems.len();
        let (mut parts, mut biases) = (Vec::with_capacity(stems.len()), Vec::new());
        for stem in stems {
            let stem = self.fill(stem, layer);
            parts.push(HostMatrix::Rows(aligned(self.store.matrix(&format!("{stem}.weight"), rows, k)?)));
            if bias {
                biases.extend(self.store.vector(&format!("{stem}.bias"), rows)?);
            }
        }
        let load = MatrixLoad { usage: MatrixUse::Projection, quantize: None };
        Ok(HostLinear { parts, load, bias: bias.then_some(biases) })
    }

    /// A table of vectors.
    ///
    /// # Errors
    /// As `linear`.
    pub fn table(&self, which: EncoderTable) -> Result<HostMatrix> {
        let (stem, rows) = self.table_shape(which);
        Ok(HostMatrix::Rows(aligned(self.store.matrix(&(self.fill(stem, 0) + ".weight"), rows, self.config.hidden_size)?)))
    }

    /// What is added to scores by distance: `[buckets, num_heads]`; None where the model adds nothing.
    ///
    /// # Errors
    /// As `linear`.
    pub fn relative_bias(&self) -> Result<Option<HostMatrix>> {
        let Some(rows) = self.config.relative_buckets else { return Ok(None) };
        let name = self.fill(self.names.relative_bias, 0) + ".weight";
        Ok(Some(HostMatrix::Rows(aligned(self.store.matrix(&name, rows, self.config.num_heads)?))))
    }

    /// A norm, or none where the model has none at this place; `layer` is ignored for those outside of the layers.
    ///
    /// # Errors
    /// As `linear`.
    pub fn norm(&self, which: EncoderNorm, layer: usize) -> Result<Option<HostNorm>> {
        let stem = match which {
            EncoderNorm::Embedding => self.names.embedding_norm,
            EncoderNorm::Attention if self.config.pre_norm && layer == 0 => "",
            EncoderNorm::Attention => self.names.attention_norm,
            EncoderNorm::Mlp => self.names.mlp_norm,
            EncoderNorm::Final => self.names.final_norm,
            EncoderNorm::Head => self.names.head_norm,
        };
        if stem.is_empty() {
            return Ok(None);
        }
        let (stem, len) = (self.fill(stem, layer), self.config.hidden_size);
        let read = |names: [&str; 2]| {
            // TensorFlow's names of the two vectors live on in some checkpoints.
            let name = names.map(|name| format!("{stem}.{name}")).into_iter().find(|name| self.store.contains(name));
            self.store.vector(&name.unwrap_or_else(|| format!("{stem}.{}", names[0])), len)
        };
        let bias = if self.config.norm_bias { read(["bias", "beta"])? } else { vec![0.0; len] };
        Ok(Some(HostNorm { weight: read(["weight", "gamma"])?, bias }))
    }

    fn fill(&self, stem: &str, layer: usize) -> String {
        stem.replace("{p}", self.prefix).replace("{l}", &layer.to_string())
    }

    fn shape(&self, which: EncoderLinear) -> Shape {
        let (c, names) = (&self.config, self.names);
        let (hidden, wide) = (c.hidden_size, c.intermediate_size);
        let one = std::slice::from_ref::<&'static str>;
        let labels = c.head.map_or(0, |head| head.num_labels);
        let dense_bias = c.head.is_some_and(|head| head.dense_bias);
        let (stems, n, k, bias) = match which {
            EncoderLinear::Qkv => (names.qkv, 3 * hidden, hidden, c.attention_bias),
            EncoderLinear::O => (one(&names.o), hidden, hidden, c.attention_bias),
            EncoderLinear::Up => (one(&names.up), if c.gated { 2 * wide } else { wide }, hidden, c.mlp_bias),
            EncoderLinear::Down => (one(&names.down), hidden, wide, c.mlp_bias),
            EncoderLinear::HeadDense => (one(&names.head_dense), hidden, hidden, dense_bias),
            EncoderLinear::HeadOut => (one(&names.head_out), labels, hidden, true),
        };
        Shape { stems, n, k, bias }
    }

    fn table_shape(&self, which: EncoderTable) -> (&'static str, usize) {
        match which {
            EncoderTable::Tokens => (self.names.embedding, self.config.vocab_size),
            EncoderTable::TokenTypes => (self.names.token_types, self.config.num_token_types),
            EncoderTable::Positions => match self.config.positions {
                Positions::Learned { rows, .. } => (self.names.positions, rows),
                Positions::Rotary { .. } => ("", 0),
            },
        }
    }

    /// Asks for everything once: views into the mapped files, and the few vectors.
    fn check(&self) -> Result<()> {
        self.table(EncoderTable::Tokens)?;
        if matches!(self.config.positions, Positions::Learned { .. }) {
            self.table(EncoderTable::Positions)?;
        }
        if self.config.num_token_types > 0 {
            self.table(EncoderTable::TokenTypes)?;
        }
        self.relative_bias()?;
        self.norm(EncoderNorm::Embedding, 0)?;
        for layer in 0..self.config.radii.len() {
            for which in [EncoderLinear::Qkv, EncoderLinear::O, EncoderLinear::Up, EncoderLinear::Down] {
                self.linear(which, layer)?;
            }
            for which in [EncoderNorm::Attention, EncoderNorm::Mlp] {
                self.norm(which, layer)?;
            }
        }
        self.norm(EncoderNorm::Final, 0)?;
        if let Some(head) = self.config.head {
            self.linear(EncoderLinear::HeadDense, 0)?;
            self.linear(EncoderLinear::HeadOut, 0)?;
            if head.activation == HeadActivation::GeluNorm && self.norm(EncoderNorm::Head, 0)?.is_none() {
                return Err(checkpoint_error(&self.path, "the head has no norm"));
            }
        }
        Ok(())
    }
}

struct Shape {
    stems: &'static [&'static str],
    n: usize,
    k: usize,
    bias: bool,
}
