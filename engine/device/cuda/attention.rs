//! Rotation, KV cache and attention: which kernels a step needs.

use pagoda_kernels::heuristics::{decode_ctas, decode_split_len, takes_prefixes};
use pagoda_kernels::ops::attention::{Attention, HeadShape, RopeKv, attention_prefill, rope_kv};
use pagoda_kernels::ops::attention_decode::{Decode, DecodeRope, DecodeScratch, SharedPrefixes, attention_decode, attention_prefix};

use super::{CudaDevice, CudaKv};
use crate::device::{AttentionParams, RopeKvParams, RopeStyle, StepTensors, Tensor};
use crate::error::Result;

type CudaTensor = Tensor<CudaDevice>;
type Rope<'a> = RopeKvParams<'a, CudaDevice>;
type Step = StepTensors<CudaDevice>;

impl CudaDevice {
    /// See `Device::rope_kv_store`.
    pub(super) fn rotate_and_store(&self, qkv: &mut CudaTensor, kv: &mut CudaKv, step: &Step, p: &Rope<'_>) -> Result<()> {
        let shape = head_shape(kv, p.num_heads, p.num_kv_heads, p.head_dim);
        assert_eq!((qkv.cols, qkv.rows), (shape.qkv_cols(), step.num_tokens), "shape of q, k, v");
        let params = RopeKv {
            qkv: qkv.bf16(),
            kv: kv.memory.bytes(),
            kv_scales: kv.scales,
            positions: step.positions.bytes(),
            slot_mapping: step.slot_mapping.bytes(),
            cos: p.rope.cos.bytes,
            sin: p.rope.sin.bytes,
            q_norm: p.q_norm.map(|v| v.bytes),
            k_norm: p.k_norm.map(|v| v.bytes),
            eps: p.eps,
            num_tokens: step.num_tokens,
            shape,
            rotary_dim: p.rope.rotary_dim,
            interleaved: p.rope.style == RopeStyle::Interleaved,
        };
        self.launch(|stream| rope_kv(&params, stream))
    }

    /// See `Device::attention`.
    pub(super) fn attend(&self, out: &mut CudaTensor, qkv: &CudaTensor, kv: &CudaKv, step: &Step, p: &AttentionParams) -> Result<()> {
        let params = attention_operands(out, qkv, kv, step, p);
        if step.max_query_len > 1 {
            self.launch(|stream| attention_prefill(&params, self.counters.bytes(), stream))?;
        }
        if step.max_query_len > 1 && step.num_seqs == 1 {
            return Ok(());
        }
        self.decode(&params, None, step)
    }

    /// See `Device::rope_attention`. Steps of single tokens rotate and store inside of attention, which rounds less: not where a token must
    /// give the same bits beside a chunk of a prompt.
    pub(super) fn rotate_and_attend(
        &self,
        out: &mut CudaTensor,
        qkv: &mut CudaTensor,
        kv: &mut CudaKv,
        step: &Step,
        rope: &Rope<'_>,
        p: &AttentionParams,
    ) -> Result<()> {
        let inside = decode_rope(rope);
        if step.max_query_len > 1 || self.deterministic || !inside.is_supported(rope.head_dim) {
            self.rotate_and_store(qkv, kv, step, rope)?;
            return self.attend(out, qkv, kv, step, p);
        }
        self.decode(&attention_operands(out, qkv, kv, step, p), Some(&inside), step)
    }

    fn decode(&self, params: &Attention, rope: Option<&DecodeRope>, step: &Step) -> Result<()> {
        let scratch = DecodeScratch { partials: self.partials.bytes(), counters: self.counters.bytes() };
        let HeadShape { num_heads, num_kv_heads, head_dim, block_size } = params.shape;
        let num_sms = self.gpu.info().num_sms;
        let num_ctas = decode_ctas(step.num_seqs, num_heads, num_kv_heads, head_dim, step.max_context_len, num_sms);
        let shares = step.num_prefix_groups > 0 && params.window.is_none() && takes_prefixes(head_dim, block_size, step.num_seqs);
        let prefixes = shares.then(|| SharedPrefixes {
            groups: step.prefix_groups.bytes(),
            members: step.prefix_members.bytes(),
            lens: step.prefix_lens.bytes(),
            partials: self.prefix_partials.bytes(),
        });
        let decode = Decode { rope, prefixes: prefixes.as_ref(), scratch, split_len: decode_split_len(self.sum_order()), num_ctas };
        if shares {
            let prefix = Decode { num_ctas: num_sms as usize, ..decode };
            self.launch(|stream| attention_prefix(params, &prefix, stream))?;
        }
        self.launch(|stream| attention_decode(params, &decode, stream))
    }
}

fn decode_rope(p: &Rope<'_>) -> DecodeRope {
    DecodeRope {
        cos: p.rope.cos.bytes,
        sin: p.rope.sin.bytes,
        q_norm: p.q_norm.map(|v| v.bytes),
        k_norm: p.k_norm.map(|v| v.bytes),
        eps: p.eps,
        rotary_dim: p.rope.rotary_dim,
        interleaved: p.rope.style == RopeStyle::Interleaved,
    }
}

/// Checks the columns of the operands and sets the rows of `out`.
fn attention_operands(out: &mut CudaTensor, qkv: &CudaTensor, kv: &CudaKv, step: &Step, p: &AttentionParams) -> Attention {
    let shape = head_shape(kv, p.num_heads, p.num_kv_heads, p.head_dim);
    assert_eq!((out.cols, qkv.cols), (p.num_heads * p.head_dim, shape.qkv_cols()), "columns of attention");
    out.set_rows(step.num_tokens);
    Attention {
        out: out.bf16(),
        qkv: qkv.bf16(),
        kv: kv.memory.bytes(),
        kv_scales: kv.scales,
        cu_seqlens_q: step.cu_seqlens_q.bytes(),
        context_lens: step.context_lens.bytes(),
        block_tables: step.block_tables.bytes(),
        num_tokens: step.num_tokens,
        num_seqs: step.num_seqs,
        max_blocks_per_seq: step.max_blocks_per_seq,
        shape,
        scale: p.scale,
        window: p.window,
        soft_cap: p.soft_cap,
    }
}

fn head_shape(kv: &CudaKv, num_heads: usize, num_kv_heads: usize, head_dim: usize) -> HeadShape {
    assert_eq!((kv.shape.num_kv_heads, kv.shape.head_dim), (num_kv_heads, head_dim), "heads of the KV cache");
    HeadShape { num_heads, num_kv_heads, head_dim, block_size: kv.shape.block_size }
}
