//! The one decoder that all families are settings of: loading its parts, and a forward pass over one sequence.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::attention::{Attention, Step, split};
use crate::cache::Cache;
use crate::config::{Activation, Block, Config, Qkv};
use crate::linear::{Linear, LinearForm};
use crate::norm::Norm;
use crate::rotary::Tables;
use crate::serve::{Fault, fault};
use crate::store::Store;

/// How to load a model.
pub struct LoadOptions {
    pub device: Device,
    /// Linear layers of the blocks in NF4.
    pub four_bit: bool,
    pub flash_attention: bool,
    /// Longest sequence.
    pub max_len: usize,
}

struct Layer {
    attention_norm: Norm,
    /// None: the MLP reads what attention reads.
    mlp_norm: Option<Norm>,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    qkv: Linear,
    o: Linear,
    up: Linear,
    down: Linear,
}

/// A loaded model.
pub struct Decoder {
    pub config: Config,
    /// `[vocab, hidden]`.
    embedding: Tensor,
    /// `[max_len + offset, hidden]`.
    positions: Option<Tensor>,
    embedding_norm: Option<Norm>,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Linear,
    attention: Attention,
}

impl Decoder {
    /// Loads every tensor.
    ///
    /// # Errors
    /// A tensor is missing or of another shape; no memory.
    pub fn load(
        config: Config,
        store: &Store,
        options: &LoadOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> std::result::Result<Decoder, Fault> {
        let device = &options.device;
        // A CPU computes in f32: candle's products of bf16 are many times slower there.
        let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
        let form = LinearForm { device: device.clone(), dtype, four_bit: options.four_bit };
        let loader = Loader { config: &config, store, form: &form };
        let names = &config.family.names;
        let table = |stem: &str, rows: usize| -> std::result::Result<Tensor, Fault> {
            let stored = store.tensor(&loader.find(&format!("{stem}.weight")), &[rows, config.hidden_size])?;
            Ok(stored.to_device(device)?.to_dtype(dtype)?)
        };
        let embedding = table(names.embedding, config.vocab_size)?;
        let positions = config.learned_positions().map(|offset| table(names.positions, config.max_len + offset)).transpose()?;
        let embedding_norm = match names.embedding_norm {
            "" => None,
            name => Some(loader.norm(name, config.hidden_size)?),
        };
        let mut layers = Vec::with_capacity(config.num_layers);
        for layer in 0..config.num_layers {
            progress(layer, config.num_layers);
            layers.push(loader.layer(layer)?);
        }
        progress(config.num_layers, config.num_layers);
        let final_norm = loader.norm(names.final_norm, config.hidden_size)?;
        let head = match config.tied {
            true => Linear::shared(embedding.clone()),
            false => {
                let form = LinearForm { four_bit: false, ..form.clone() };
                Loader { config: &config, store, form: &form }.head()?
            }
        };
        let tables = config.rotary.as_ref().map(|rotary| Tables::new(rotary, options.max_len, device)).transpose()?;
        let attention = Attention::new(&config, tables, device, options.flash_attention)?;
        Ok(Decoder { config, embedding, positions, embedding_norm, layers, final_norm, head, attention })
    }

    /// Whether attention is candle's flash attention.
    pub fn has_flash_attention(&self) -> bool {
        self.attention.is_flash()
    }

    /// A cache for a new sequence.
    pub fn new_cache(&self) -> Cache {
        Cache::new(self.layers.len())
    }

    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> usize {
        let table = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let norm = |norm: &Option<Norm>| norm.as_ref().map_or(0, Norm::bytes);
        let layer = |layer: &Layer| {
            let linears = [&layer.qkv, &layer.o, &layer.up, &layer.down].map(Linear::bytes).iter().sum::<usize>();
            linears + layer.attention_norm.bytes() + norm(&layer.mlp_norm) + norm(&layer.q_norm) + norm(&layer.k_norm)
        };
        let head = if self.config.tied { 0 } else { self.head.bytes() };
        let tables = table(&self.embedding) + self.positions.as_ref().map_or(0, table) + norm(&self.embedding_norm);
        tables + self.layers.iter().map(layer).sum::<usize>() + self.final_norm.bytes() + head
    }

    /// Computes the next tokens of a sequence; f32 logits `[rows, vocab]` of the rows that are wanted, in host memory.
    ///
    /// # Errors
    /// A token outside the vocabulary, no memory, a fault of the device.
    pub fn forward(&self, cache: &mut Cache, tokens: &[u32], rows: &[usize]) -> std::result::Result<Option<Tensor>, Fault> {
        let start = cache.len();
        if tokens.is_empty() || tokens.iter().any(|token| *token as usize >= self.config.vocab_size) {
            return fault(format!("no tokens, or one outside the vocabulary of {}", self.config.vocab_size));
        }
        if rows.iter().any(|row| *row >= tokens.len()) {
            return fault("a row is wanted that is not there");
        }
        let mut x = self.embed(tokens, start)?;
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            x = self.block(layer, &x, cache, start)?;
        }
        cache.advance(tokens.len());
        if rows.is_empty() {
            return Ok(None);
        }
        let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let rows = Tensor::new(rows, x.device())?;
        Ok(Some(self.logits(&x.index_select(&rows, 0)?)?))
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let mut logits = self.head.forward(&self.final_norm.forward(x)?)?.to_dtype(DType::F32)?;
        if self.config.logit_scale != 1.0 {
            logits = (logits * self.config.logit_scale)?;
        }
        logits.to_device(&Device::Cpu)
    }

    fn embed(&self, tokens: &[u32], start: usize) -> Result<Tensor> {
        let device = self.embedding.device();
        let mut x = self.embedding.index_select(&Tensor::new(tokens, device)?, 0)?;
        if self.config.embedding_scale != 1.0 {
            x = (x * self.config.embedding_scale)?;
        }
        if let (Some(positions), Some(offset)) = (&self.positions, self.config.learned_positions()) {
            x = (x + positions.narrow(0, start + offset, tokens.len())?)?;
        }
        match &self.embedding_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    fn block(&self, layer: &Layer, x: &Tensor, cache: &mut candle_nn::kv_cache::KvCache, start: usize) -> Result<Tensor> {
        let scaled = |y: Tensor| if self.config.residual_scale == 1.0 { Ok(y) } else { y * self.config.residual_scale };
        let mlp_norm = layer.mlp_norm.as_ref().unwrap_or(&layer.attention_norm);
        match self.config.block {
            Block::Sequential => {
                let x = (x + scaled(self.attend(layer, &layer.attention_norm.forward(x)?, cache, start)?)?)?;
                let out = scaled(self.mlp(layer, &mlp_norm.forward(&x)?)?)?;
                x + out
            }
            Block::Parallel => {
                let normed = layer.attention_norm.forward(x)?;
                let attended = self.attend(layer, &normed, cache, start)?;
                let normed = if let Some(norm) = &layer.mlp_norm { norm.forward(x)? } else { normed };
                (x + attended)? + self.mlp(layer, &normed)?
            }
            Block::PostNorm => {
                let x = (x + layer.attention_norm.forward(&self.attend(layer, x, cache, start)?)?)?;
                let out = mlp_norm.forward(&self.mlp(layer, &x)?)?;
                x + out
            }
        }
    }

    fn attend(&self, layer: &Layer, x: &Tensor, cache: &mut candle_nn::kv_cache::KvCache, start: usize) -> Result<Tensor> {
        let mut qkv = layer.qkv.forward(x)?;
        if let Some(bound) = self.config.clip_qkv {
            qkv = qkv.clamp(-bound, bound)?;
        }
        let [q, k, v] = split(&qkv, &self.config)?;
        let (q, k) = (self.normed(&layer.q_norm, q)?, self.normed(&layer.k_norm, k)?);
        layer.o.forward(&self.attention.forward(&Step { q: &q, k: &k, v: &v, start }, cache)?)
    }

    /// Norms of queries and keys, over a head or over all of them.
    fn normed(&self, norm: &Option<Norm>, x: Tensor) -> Result<Tensor> {
        let Some(norm) = norm else { return Ok(x) };
        let (num_tokens, width) = x.dims2()?;
        match norm.width() == width {
            true => norm.forward(&x),
            false => norm.forward(&x.reshape((num_tokens, width / norm.width(), norm.width()))?)?.reshape((num_tokens, width)),
        }
    }

    fn mlp(&self, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        let inner = layer.up.forward(x)?;
        let inner = match self.config.family.names.up.len() {
            2 => {
                let width = self.config.intermediate_size;
                let gate = activate(&inner.narrow(D::Minus1, 0, width)?.contiguous()?, self.config.activation)?;
                (gate * inner.narrow(D::Minus1, width, width)?)?
            }
            _ => activate(&inner, self.config.activation)?,
        };
        layer.down.forward(&inner)
    }
}

fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
    }
}

/// Reads the parts of a model by their names.
struct Loader<'a> {
    config: &'a Config,
    store: &'a Store,
    form: &'a LinearForm,
}

impl Loader<'_> {
    /// The full name of a tensor: some checkpoints leave the base out.
    fn find(&self, name: &str) -> String {
        let full = format!("{}{name}", self.config.family.names.base);
        if !self.store.has(&full) && self.store.has(name) { name.to_owned() } else { full }
    }

    fn norm(&self, stem: &str, width: usize) -> std::result::Result<Norm, Fault> {
        let Config { family, eps, .. } = self.config;
        let stem = self.find(&format!("{stem}.weight"));
        Norm::load(self.store, stem.trim_end_matches(".weight"), width, family.norm, (*eps as f32, &self.form.device))
    }

    fn layer(&self, layer: usize) -> std::result::Result<Layer, Fault> {
        let Config { family, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, .. } = self.config;
        let (hidden, inner) = (*hidden_size, *intermediate_size);
        let names = &family.names;
        let prefix = names.layer.replace("{l}", &layer.to_string());
        let (q, kv) = (num_heads * head_dim, num_kv_heads * head_dim);
        let norm = |name: &str| (!name.is_empty()).then(|| self.norm(&format!("{prefix}{name}"), hidden)).transpose();
        // Over one head (Qwen 3) or over all of them (OLMo 2): as wide as the file says.
        let wide_norm = |name: &str, width: usize| -> std::result::Result<Option<Norm>, Fault> {
            if name.is_empty() {
                return Ok(None);
            }
            let stem = format!("{prefix}{name}");
            let width = if family.block == Block::PostNorm { width } else { *head_dim };
            Ok(Some(self.norm(&stem, width)?))
        };
        let qkv = match names.qkv {
            [one] => self.stacked(&prefix, &[(one, q + 2 * kv)], hidden)?,
            parts => self.stacked(&prefix, &[(parts[0], q), (parts[1], kv), (parts[2], kv)], hidden)?,
        };
        let up: Vec<(&str, usize)> = names.up.iter().map(|name| (*name, inner)).collect();
        Ok(Layer {
            attention_norm: self.norm(&format!("{prefix}{}", self.config.attention_norm), hidden)?,
            mlp_norm: norm(self.config.mlp_norm)?,
            q_norm: wide_norm(names.q_norm, q)?,
            k_norm: wide_norm(names.k_norm, kv)?,
            qkv,
            o: self.stacked(&prefix, &[(names.o, hidden)], q)?,
            up: self.stacked(&prefix, &up, hidden)?,
            down: self.stacked(&prefix, &[(names.down, hidden)], inner)?,
        })
    }

    /// The head of a model that has one, dense.
    fn head(&self) -> std::result::Result<Linear, Fault> {
        let Config { family, vocab_size, hidden_size, .. } = self.config;
        let named = |end: &str| format!("{}.{end}", family.names.head);
        let weight = self.store.tensor(&named("weight"), &[*vocab_size, *hidden_size])?;
        let bias = self.store.has(&named("bias")).then(|| self.store.tensor(&named("bias"), &[*vocab_size])).transpose()?;
        Linear::new(vec![weight], bias, self.form)
    }

    /// A linear layer of parts, one under the other: (name, rows) each, of `k` columns. Biases are those that the file has.
    fn stacked(&self, prefix: &str, parts: &[(&str, usize)], k: usize) -> std::result::Result<Linear, Fault> {
        let family = self.config.family;
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for (name, n) in parts {
            let stem = format!("{prefix}{name}");
            let full = |end: &str| self.find(&format!("{stem}.{end}"));
            let weight = match family.is_transposed {
                true => self.store.tensor(&full("weight"), &[k, *n])?.t()?.contiguous()?,
                false => self.store.tensor(&full("weight"), &[*n, k])?,
            };
            let is_fused = parts.len() == 1 && family.names.qkv.first() == Some(name);
            let order = |tensor: Tensor| if is_fused { self.in_order(tensor) } else { Ok(tensor) };
            weights.push(order(weight)?);
            if self.store.has(&full("bias")) {
                biases.push(order(self.store.tensor(&full("bias"), &[*n])?)?);
            }
        }
        if !biases.is_empty() && biases.len() != parts.len() {
            return fault(format!("{prefix}{}: some of its parts have a bias, others none", parts[0].0));
        }
        let bias = if biases.is_empty() { None } else { Some(Tensor::cat(&biases, 0)?) };
        Linear::new(weights, bias, self.form)
    }

    /// Rows of a fused projection as `attention::split` expects them: all of q, then k, then v.
    fn in_order(&self, tensor: Tensor) -> Result<Tensor> {
        let Config { num_heads, num_kv_heads, head_dim, qkv, .. } = *self.config;
        if qkv == Qkv::Stacked {
            return Ok(tensor);
        }
        let per_group = num_heads / num_kv_heads + 2;
        let shape = tensor.dims().to_vec();
        let rest = shape[1..].iter().product::<usize>();
        let groups = tensor.reshape((shape[0] / (per_group * head_dim), per_group, head_dim * rest))?;
        let part = |first, len| groups.narrow(1, first, len)?.contiguous()?.flatten_all();
        let rows = Tensor::cat(&[part(0, per_group - 2)?, part(per_group - 2, 1)?, part(per_group - 1, 1)?], 0)?;
        rows.reshape(shape)
    }
}
