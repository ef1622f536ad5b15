//! Attention of one sequence over its cache: causal, with groups of queries that share keys, windows and ALiBi.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::kv_cache::KvCache;
use candle_nn::ops::softmax_last_dim;

use crate::config::{Alibi, Config};
use crate::rotary::Tables;

/// What all layers share.
pub struct Attention {
    num_kv_heads: usize,
    /// Query heads of a key head.
    group: usize,
    head_dim: usize,
    scale: f64,
    window: Option<usize>,
    /// `[heads, 1, 1]` f32.
    slopes: Option<Tensor>,
    alibi: Option<Alibi>,
    tables: Option<Tables>,
    flash: bool,
}

/// One step's tokens: queries, keys and values `[tokens, heads * head_dim]`, the first token at position `start`.
pub struct Step<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    pub start: usize,
}

impl Attention {
    /// For a model's layers.
    ///
    /// # Errors
    /// No memory.
    pub fn new(config: &Config, tables: Option<Tables>, device: &candle_core::Device, flash: bool) -> Result<Attention> {
        let slopes = match config.alibi {
            None => None,
            Some(_) => {
                let slopes: Vec<f32> = slopes(config.num_heads).into_iter().map(|slope| slope as f32).collect();
                Some(Tensor::from_vec(slopes, (config.num_heads, 1, 1), device)?)
            }
        };
        Ok(Attention {
            num_kv_heads: config.num_kv_heads,
            group: config.num_heads / config.num_kv_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            window: config.window,
            flash: flash && device.is_cpu() && slopes.is_none() && config.window.is_none(),
            slopes,
            alibi: config.alibi,
            tables,
        })
    }

    /// Whether flash attention is used.
    pub fn is_flash(&self) -> bool {
        self.flash
    }

    /// Appends keys and values to the cache; out: `[tokens, heads * head_dim]`.
    pub fn forward(&self, step: &Step<'_>, cache: &mut KvCache) -> Result<Tensor> {
        let num_tokens = step.q.dim(0)?;
        let heads = |x: &Tensor, num_heads: usize| x.reshape((num_tokens, num_heads, self.head_dim))?.transpose(0, 1)?.contiguous();
        let turned = |x: Tensor| self.tables.as_ref().map_or(Ok(x.clone()), |tables| tables.apply(&x, step.start));
        let q = turned(heads(step.q, self.num_kv_heads * self.group)?)?;
        let k = turned(heads(step.k, self.num_kv_heads)?)?;
        let (k, v) = cache.append(&k.contiguous()?, &heads(step.v, self.num_kv_heads)?)?;
        let out = match self.flash {
            true => self.flash(&q, &k, &v, step.start)?,
            false => self.plain(&q, &k, &v, step.start)?,
        };
        out.reshape((num_tokens, self.num_kv_heads * self.group * self.head_dim))
    }

    /// q: `[heads, t, d]`; k, v: `[kv_heads, len, d]`; out: `[t, heads, d]`.
    fn plain(&self, q: &Tensor, k: &Tensor, v: &Tensor, start: usize) -> Result<Tensor> {
        let (num_tokens, len) = (q.dim(1)?, k.dim(1)?);
        // One token sees the end of its window only; several have a mask.
        let first = self.window.filter(|_| num_tokens == 1).map_or(0, |window| len.saturating_sub(window));
        let (k, v, len) = (k.narrow(1, first, len - first)?, v.narrow(1, first, len - first)?, len - first);
        let rows = (self.num_kv_heads, self.group * num_tokens, self.head_dim);
        let scores = q.reshape(rows)?.matmul(&k.transpose(1, 2)?)?.to_dtype(DType::F32)?;
        let mut scores = (scores * self.scale)?.reshape((self.num_kv_heads * self.group, num_tokens, len))?;
        if let Some(slopes) = &self.slopes {
            scores = scores.broadcast_add(&self.biases(slopes, len)?)?;
        }
        if num_tokens > 1 {
            scores = scores.broadcast_add(&self.mask(num_tokens, start, scores.device())?)?;
        }
        let shares = softmax_last_dim(&scores.contiguous()?)?.to_dtype(v.dtype())?;
        let out = shares.reshape((self.num_kv_heads, self.group * num_tokens, len))?.matmul(&v.contiguous()?)?;
        out.reshape((self.num_kv_heads * self.group, num_tokens, self.head_dim))?.transpose(0, 1)?.contiguous()
    }

    /// What far tokens lose: `[heads, 1, len]` f32.
    fn biases(&self, slopes: &Tensor, len: usize) -> Result<Tensor> {
        let positions = Tensor::arange(0u32, len as u32, slopes.device())?.to_dtype(DType::F32)?;
        if self.alibi != Some(Alibi::Scaled) {
            return slopes.broadcast_mul(&positions);
        }
        // Falcon's are products in bf16, whatever the model is computed in.
        let product = slopes.to_dtype(DType::BF16)?.broadcast_mul(&positions.to_dtype(DType::BF16)?)?;
        product.to_dtype(DType::F32)? * self.scale
    }

    fn flash(&self, q: &Tensor, k: &Tensor, v: &Tensor, start: usize) -> Result<Tensor> {
        let of = |x: &Tensor| x.transpose(0, 1)?.unsqueeze(0)?.contiguous();
        let mask = AttnMask::causal_with_offset(start);
        let out = flash_attn::<f32>(&of(q)?, &of(k)?, &of(v)?, self.scale as f32, mask, None, None)?;
        // It comes as [1, heads, t, d].
        out.squeeze(0)?.transpose(0, 1)?.contiguous()
    }

    /// 0 where a token is seen, else minus infinity: `[tokens, start + tokens]`.
    fn mask(&self, num_tokens: usize, start: usize, device: &candle_core::Device) -> Result<Tensor> {
        let len = start + num_tokens;
        let window = self.window.unwrap_or(usize::MAX);
        let values = (start..len)
            .flat_map(|query| (0..len).map(move |key| if key <= query && query - key < window { 0.0 } else { f32::NEG_INFINITY }));
        Tensor::from_vec(values.collect::<Vec<f32>>(), (num_tokens, len), device)
    }
}

/// Slopes of ALiBi (Press, Smith, Lewis 2021): powers of 2^(-8 / n) for the largest power of two n, then odd powers of its root.
fn slopes(num_heads: usize) -> Vec<f64> {
    let whole = if num_heads.is_power_of_two() { num_heads } else { num_heads.next_power_of_two() / 2 };
    let base = |n: usize| 2f64.powf(-8.0 / n as f64);
    let first = (1..=whole).map(|i| base(whole).powi(i as i32));
    let rest = (0..num_heads - whole).map(|i| base(2 * whole).powi(2 * i as i32 + 1));
    first.chain(rest).collect()
}

/// The parts of a fused projection `[tokens, (heads + 2 kv_heads) * head_dim]`.
pub fn split(qkv: &Tensor, config: &Config) -> Result<[Tensor; 3]> {
    let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    let part = |first, len| qkv.narrow(D::Minus1, first, len)?.contiguous();
    Ok([part(0, q)?, part(q, kv)?, part(q + kv, kv)?])
}
