//! The operations: their inputs for a shape, what they read and write, and how to run them once.

use std::sync::Arc;

use pagoda_engine::Result;
use pagoda_engine::device::{AttentionParams, DType, Device, Linear, RopeKvParams, Tensor};
use pagoda_engine::models::config::Activation;
use pagoda_engine::sampling::{SampleRow, SamplingParams, TokenHistory};
use pagoda_engine::weights::format::WeightFormat;
use pagoda_engine::weights::quant::LoadFormat;

use super::inputs::{self, Outcome, Stored};
use super::shapes::ModelShape;

/// Names of the operations, in the order in which they are measured.
pub const OPS: [&str; 16] = [
    "linear",
    "linear_nf4",
    "linear_fp8",
    "linear_q8_0",
    "linear_q4_k",
    "linear_q5_k",
    "linear_q6_k",
    "rms_norm",
    "rope_kv",
    "activation",
    "decode",
    "decode_fp8",
    "prefill",
    "prefill_fp8",
    "greedy",
    "sample",
];

/// Bytes that the copies of an input fill together, so that none is found in a cache: five times the L2 of an H100.
const ROTATED_BYTES: usize = 256 << 20;
const MAX_COPIES: usize = 64;
/// Prompt tokens of one sequence in the prefill case, at most.
const MAX_PROMPT: usize = 8192;

/// One operation on inputs of its own.
pub struct Case<'a> {
    /// Name, with the matrix where there are several.
    pub op: String,
    /// Sizes in words.
    pub shape: String,
    /// Bytes it reads and writes at least.
    pub bytes: f64,
    /// Multiplications and additions of its products.
    pub flops: f64,
    /// Copies of its inputs.
    pub num_copies: usize,
    /// It only queues work, so that it can be recorded.
    pub can_record: bool,
    /// Runs it on one of the copies.
    pub run: Box<dyn FnMut(usize) -> Outcome + 'a>,
}

/// A device, a model's shape and the sizes to go through.
pub struct Bench<'a, D: Device> {
    /// What computes.
    pub device: &'a D,
    /// Whose matrices and heads.
    pub model: ModelShape,
    /// Tokens of a step.
    pub tokens: &'a [usize],
    /// Sequences and context of attention.
    pub contexts: &'a [(usize, usize)],
}

type Each<'a> = &'a mut dyn FnMut(&mut Case<'_>) -> anyhow::Result<()>;

impl<D: Device> Bench<'_, D> {
    /// Calls `each` with every case of `op`; its inputs are gone when the next one is made.
    ///
    /// # Errors
    /// What the device or `each` answers.
    pub fn each_case(&self, op: &str, each: Each<'_>) -> anyhow::Result<()> {
        match op {
            "linear" => self.linear(op, Stored::Dense, each),
            "linear_nf4" => self.linear(op, Stored::AtLoad(LoadFormat::Nf4), each),
            "linear_fp8" => self.linear(op, Stored::AtLoad(LoadFormat::Fp8), each),
            "linear_q8_0" => self.linear(op, Stored::Blocks(WeightFormat::Q8_0), each),
            "linear_q4_k" => self.linear(op, Stored::Blocks(WeightFormat::Q4K), each),
            "linear_q5_k" => self.linear(op, Stored::Blocks(WeightFormat::Q5K), each),
            "linear_q6_k" => self.linear(op, Stored::Blocks(WeightFormat::Q6K), each),
            "rms_norm" => self.tokens.iter().try_for_each(|&tokens| self.rms_norm(tokens, each)),
            "rope_kv" => self.tokens.iter().try_for_each(|&tokens| self.rope_kv(tokens, each)),
            "activation" => self.tokens.iter().try_for_each(|&tokens| self.activation(tokens, each)),
            "decode" => self.decode(op, self.device.default_kv_dtype(), each),
            "decode_fp8" => self.decode(op, DType::E4M3, each),
            "prefill" => self.prefill(op, self.device.default_kv_dtype(), each),
            "prefill_fp8" => self.prefill(op, DType::E4M3, each),
            name => self.contexts.iter().try_for_each(|&(seqs, _)| self.sample(name, seqs, each)),
        }
    }

    fn element(&self) -> usize {
        self.device.activation_dtype().size()
    }

    /// All matrices whose rows are whole blocks.
    fn linear(&self, prefix: &str, stored: Stored, each: Each<'_>) -> anyhow::Result<()> {
        for (name, n, k) in self.model.matrices().into_iter().filter(|(_, _, k)| stored.takes(*k)) {
            let matrix_bytes = stored.bytes(n, k);
            let num_copies = copies(matrix_bytes);
            let linears = inputs::linears(self.device, num_copies, [n, k], stored, inputs::usage(name))?;
            self.device.weights_loaded()?;
            for &tokens in self.tokens {
                // A head is applied to one row a sequence.
                if name == "lm_head" && tokens > 512 {
                    continue;
                }
                let x = inputs::activations(self.device, tokens, k)?;
                if name == "gate_up" {
                    self.gated(tokens, &x, &linears, (prefix, matrix_bytes), each)?;
                    continue;
                }
                let out_dtype = if name == "lm_head" { DType::F32 } else { self.device.activation_dtype() };
                let mut out = self.device.alloc(tokens, n, out_dtype)?;
                each(&mut Case {
                    op: format!("{prefix} {name}"),
                    shape: format!("{tokens}x{n}x{k}"),
                    bytes: (matrix_bytes + tokens * (k * self.element() + n * out_dtype.size())) as f64,
                    flops: 2.0 * (tokens * n * k) as f64,
                    num_copies,
                    can_record: true,
                    run: Box::new(|i| self.device.linear(&mut out, &x, &linears[i])),
                })?;
            }
        }
        Ok(())
    }

    /// gate and up with the activation between them, as a layer runs them.
    fn gated(
        &self,
        tokens: usize,
        x: &Tensor<D>,
        linears: &[Linear<D>],
        (prefix, matrix_bytes): (&str, usize),
        each: Each<'_>,
    ) -> anyhow::Result<()> {
        let (n, k) = (linears[0].n, linears[0].k);
        let mut out = self.device.alloc(tokens, n / 2, self.device.activation_dtype())?;
        let mut scratch = self.device.alloc(tokens, n, self.device.activation_dtype())?;
        each(&mut Case {
            op: format!("{prefix} gate_up, act"),
            shape: format!("{tokens}x{n}x{k}"),
            bytes: (matrix_bytes + tokens * (k + n / 2) * self.element()) as f64,
            flops: 2.0 * (tokens * n * k) as f64,
            num_copies: linears.len(),
            can_record: true,
            run: Box::new(|i| self.device.linear_gated(&mut out, &mut scratch, x, &linears[i], Activation::Silu)),
        })
    }

    fn rms_norm(&self, tokens: usize, each: Each<'_>) -> anyhow::Result<()> {
        let hidden = self.model.hidden;
        let weight = self.device.load_vector(&vec![1.0; hidden])?;
        let num_copies = copies(tokens * hidden * self.element());
        let xs = (0..num_copies).map(|_| inputs::activations(self.device, tokens, hidden)).collect::<Result<Vec<_>>>()?;
        let mut residuals = (0..num_copies).map(|_| inputs::activations(self.device, tokens, hidden)).collect::<Result<Vec<_>>>()?;
        let mut out = self.device.alloc(tokens, hidden, self.device.activation_dtype())?;
        each(&mut Case {
            op: "add_rms_norm".into(),
            shape: format!("{tokens}x{hidden}"),
            bytes: (4 * tokens * hidden * self.element()) as f64,
            flops: 0.0,
            num_copies,
            can_record: true,
            run: Box::new(|i| self.device.add_rms_norm(&mut out, &mut residuals[i], &xs[i], &weight, 1e-6)),
        })
    }

    fn rope_kv(&self, tokens: usize, each: Each<'_>) -> anyhow::Result<()> {
        let m = self.model;
        let (seqs, query) = if tokens > 512 { (tokens.div_ceil(2048), tokens.min(2048)) } else { (tokens, 1) };
        let context = query.max(1024);
        let step = inputs::paged_step(self.device, seqs, context, query)?;
        let rope = inputs::rope(self.device, context, m.head_dim)?;
        let mut kv = self.kv(seqs, context, self.device.default_kv_dtype())?;
        let mut qkv = inputs::activations(self.device, step.num_tokens, m.qkv())?;
        let params = self.rope_params(&rope);
        each(&mut Case {
            op: "rope_kv_store".into(),
            shape: format!("{}x{}", step.num_tokens, m.qkv()),
            bytes: (step.num_tokens * (2 * m.qkv() + 2 * m.kv_heads * m.head_dim) * self.element()) as f64,
            flops: 0.0,
            num_copies: 1,
            can_record: true,
            run: Box::new(|_| self.device.rope_kv_store(&mut qkv, &mut kv, &step, &params)),
        })
    }

    fn activation(&self, tokens: usize, each: Each<'_>) -> anyhow::Result<()> {
        let width = self.model.intermediate;
        let num_copies = copies(tokens * 2 * width * self.element());
        let inputs = (0..num_copies).map(|_| inputs::activations(self.device, tokens, 2 * width)).collect::<Result<Vec<_>>>()?;
        let mut out = self.device.alloc(tokens, width, self.device.activation_dtype())?;
        each(&mut Case {
            op: "gated_activation".into(),
            shape: format!("{tokens}x{width}"),
            bytes: (3 * tokens * width * self.element()) as f64,
            flops: 0.0,
            num_copies,
            can_record: true,
            run: Box::new(|i| self.device.gated_activation(&mut out, &inputs[i], Activation::Silu)),
        })
    }

    fn decode(&self, name: &str, cache: DType, each: Each<'_>) -> anyhow::Result<()> {
        self.contexts.iter().try_for_each(|&(seqs, context)| self.attention((name, cache), seqs, context, 1, each))
    }

    fn prefill(&self, name: &str, cache: DType, each: Each<'_>) -> anyhow::Result<()> {
        let longest = self.tokens.iter().copied().max().unwrap_or(1).min(MAX_PROMPT);
        self.attention((name, cache), 1, longest, longest, each)?;
        let short = longest.div_ceil(4);
        self.attention((name, cache), 4, short, short, each)?;
        // The last chunk of a long prompt.
        self.attention((name, cache), 1, 2 * longest, short, each)
    }

    fn attention(&self, (name, cache): (&str, DType), seqs: usize, context: usize, query: usize, each: Each<'_>) -> anyhow::Result<()> {
        let m = self.model;
        let step = inputs::paged_step(self.device, seqs, context, query)?;
        let rope = inputs::rope(self.device, context, m.head_dim)?;
        let mut kv = self.kv(seqs, context, cache)?;
        let mut qkv = inputs::activations(self.device, step.num_tokens, m.qkv())?;
        let rotation = self.rope_params(&rope);
        let num_slots = seqs * context.next_multiple_of(inputs::BLOCK_SIZE);
        inputs::fill_cache(self.device, &mut kv, num_slots, context.min(4096), (m.qkv(), &rotation))?;
        let mut out = self.device.alloc(step.num_tokens, m.heads * m.head_dim, self.device.activation_dtype())?;
        let scale = 1.0 / (m.head_dim as f32).sqrt();
        let params =
            AttentionParams { num_heads: m.heads, num_kv_heads: m.kv_heads, head_dim: m.head_dim, scale, window: None, soft_cap: None };
        // Keys that a query sees: all before the chunk, and half of the chunk.
        let pairs = (seqs * query) as f64 * ((context - query) as f64 + (query + 1) as f64 / 2.0);
        let cache = 2 * seqs * context * m.kv_heads * m.head_dim * cache.size();
        each(&mut Case {
            op: format!("rope, attention {name}"),
            shape: format!("{seqs}x{query} of {context}"),
            bytes: (cache + step.num_tokens * 2 * m.heads * m.head_dim * self.element()) as f64,
            flops: 4.0 * pairs * (m.heads * m.head_dim) as f64,
            num_copies: 1,
            can_record: true,
            run: Box::new(|_| self.device.rope_attention(&mut out, &mut qkv, &mut kv, &step, &rotation, &params)),
        })
    }

    fn sample(&self, name: &str, rows: usize, each: Each<'_>) -> anyhow::Result<()> {
        let vocab = self.model.vocab;
        let mut logits = inputs::logits(self.device, rows, vocab)?;
        let mut last_tokens = self.device.alloc_ints(rows)?;
        self.device.prepare_sampling(rows, vocab)?;
        let sampled = SamplingParams { temperature: 0.8, top_p: 0.95, top_k: 50, seed: Some(1), ..SamplingParams::default() };
        let params = if name == "greedy" { SamplingParams::default() } else { sampled };
        let history = TokenHistory::new(&params, &[1], &[]);
        let stop_ids: Arc<[u32]> = Arc::from([]);
        let row = |row: usize| SampleRow {
            logits_row: row,
            slot: row,
            params: &params,
            seed: row as u64,
            stop_ids: &stop_ids,
            output_index: 0,
            choice: 0,
            history: &history,
            allowed: None,
        };
        let sample_rows: Vec<SampleRow<'_>> = (0..rows).map(row).collect();
        self.device.admit(&sample_rows)?;
        each(&mut Case {
            op: format!("{name}, to the host"),
            shape: format!("{rows}x{vocab}"),
            bytes: (rows * vocab * 4) as f64,
            flops: 0.0,
            num_copies: 1,
            can_record: false,
            run: Box::new(|_| {
                let pending = self.device.sample(&mut logits, &sample_rows, &mut last_tokens)?;
                self.device.sampled(pending).map(|_| ())
            }),
        })
    }

    fn kv(&self, seqs: usize, context: usize, dtype: DType) -> Result<D::KvLayer> {
        let m = self.model;
        self.device.alloc_kv(inputs::kv_shape(seqs, context, m.kv_heads, m.head_dim, dtype))
    }

    fn rope_params<'a>(&self, rope: &'a pagoda_engine::device::RopeTable<D>) -> RopeKvParams<'a, D> {
        let m = self.model;
        let (num_heads, num_kv_heads, head_dim) = (m.heads, m.kv_heads, m.head_dim);
        RopeKvParams { num_heads, num_kv_heads, head_dim, q_norm: None, k_norm: None, eps: 1e-6, rope }
    }
}

fn copies(bytes: usize) -> usize {
    ROTATED_BYTES.div_ceil(bytes.max(1)).clamp(1, MAX_COPIES)
}
