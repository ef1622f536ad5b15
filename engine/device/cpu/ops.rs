//! `impl Device for CpuDevice`: checks shapes, takes slices out of tensors and hands them to the op's own file.
#![allow(unsafe_code)]

use std::convert::Infallible;

use super::activation::SoftCap;
use super::attention::Attention;
use super::buffer::Buffer;
use super::coded::is_supported;
use super::norm::{AddRmsNorm, NormStore, RmsNorm};
use super::threads::SharedMut;
use super::{CpuBuffer, CpuDevice, CpuKv, CpuVector, CpuWeight, memory};
use crate::device::{
    AttentionParams, DType, Device, HostMatrix, HostWeight, KvScales, KvShape, Linear, MatrixLoad, MoeWeights, RopeKvParams, StepTensors,
    Tensor,
};
use crate::error::EngineError;
use crate::memory_plan::StepSize;
use crate::models::config::Activation;
use crate::sampling::logprobs::token_logprobs;
use crate::sampling::sampler::sample_row;
use crate::sampling::{SampleOutput, SampleRow, TokenLogprobs};
use crate::weights::size::WeightSize;

type CpuTensor = Tensor<CpuDevice>;

impl CpuTensor {
    /// The rows in use.
    pub fn values(&self) -> &[f32] {
        &self.buffer.values.as_slice()[..self.rows * self.cols]
    }

    /// The rows in use, after setting their number.
    pub(super) fn values_mut(&mut self, rows: usize) -> &mut [f32] {
        self.set_rows(rows);
        &mut self.buffer.values.as_mut_slice()[..rows * self.cols]
    }
}

impl Device for CpuDevice {
    type Buffer = CpuBuffer;
    type Ints = Vec<i32>;
    type Weight = CpuWeight;
    type Vector = CpuVector;
    type KvLayer = CpuKv;
    type Pending = Vec<SampleOutput>;
    type Recording = Infallible;

    fn name(&self) -> String {
        format!("cpu {}", self.level.name())
    }

    fn activation_dtype(&self) -> DType {
        DType::F32
    }

    fn default_kv_dtype(&self) -> DType {
        DType::F32
    }

    fn free_memory(&self) -> Result<usize, EngineError> {
        memory::available()
    }

    fn weight_bytes(&self, weights: &WeightSize) -> usize {
        weights.bytes
    }

    fn kv_share(&self) -> f32 {
        0.25 // a laptop has other work to do
    }

    fn step_size(&self) -> StepSize {
        StepSize { max_num_seqs: 64, max_num_batched_tokens: 512, max_logit_rows: 64 }
    }

    fn alloc(&self, max_rows: usize, cols: usize, dtype: DType) -> Result<CpuTensor, EngineError> {
        if dtype != DType::F32 {
            return Err(EngineError::Unsupported(format!("{dtype:?} activations on the cpu; they are F32")));
        }
        let len = max_rows.saturating_mul(cols);
        let values = Buffer::zeroed("activations", len)?;
        Ok(Tensor { buffer: CpuBuffer { values }, rows: 0, max_rows, cols, dtype })
    }

    fn alloc_ints(&self, len: usize) -> Result<Vec<i32>, EngineError> {
        Ok(vec![0; len])
    }

    fn alloc_kv(&self, shape: KvShape) -> Result<CpuKv, EngineError> {
        CpuKv::new(shape)
    }

    /// Weights are mapped files, or were made of them once; the KV pool gives its pages back.
    fn sleep(&self, kv: &mut [CpuKv]) -> Result<(), EngineError> {
        kv.iter_mut().try_for_each(CpuKv::forget)
    }

    fn set_kv_scales(&self, kv: &mut CpuKv, scales: &KvScales) -> Result<(), EngineError> {
        kv.set_scales(scales);
        Ok(())
    }

    fn load_weight(&self, weight: HostWeight) -> Result<CpuWeight, EngineError> {
        let (name, format, n, k) = (&weight.name, weight.format, weight.n, weight.k);
        let (values, _) = format.block();
        if k % values != 0 {
            return Err(EngineError::Device(format!("weight {name}: {format:?} rows of {k} values, expected a multiple of {values}")));
        }
        let (bytes, expected) = (weight.bytes.len(), n * weight.row_bytes());
        if bytes != expected {
            return Err(EngineError::Device(format!("weight {name}: {bytes} bytes for {format:?} [{n}, {k}], expected {expected}")));
        }
        Ok(CpuWeight { host: HostMatrix::Rows(weight) })
    }

    fn load_matrix(&self, matrix: HostMatrix, load: MatrixLoad) -> Result<CpuWeight, EngineError> {
        match matrix.converted(load)? {
            HostMatrix::Rows(weight) => self.load_weight(weight),
            HostMatrix::Coded(matrix) if is_supported(&matrix) => Ok(CpuWeight { host: HostMatrix::Coded(matrix) }),
            // Odd shapes: exact, but eight times as large.
            HostMatrix::Coded(matrix) => self.load_weight(matrix.to_f32()),
        }
    }

    fn load_vector(&self, values: &[f32]) -> Result<CpuVector, EngineError> {
        let mut buffer = Buffer::zeroed("vector", values.len())?;
        buffer.as_mut_slice().copy_from_slice(values);
        Ok(CpuVector { values: buffer })
    }

    fn weight_shape(&self, weight: &CpuWeight) -> (usize, usize) {
        (weight.host.n(), weight.host.k())
    }

    fn write_ints(&self, dst: &mut Vec<i32>, src: &[i32]) -> Result<(), EngineError> {
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn resolve_tokens(&self, step: &mut StepTensors<Self>, last_tokens: &Vec<i32>) -> Result<(), EngineError> {
        for (token, source) in step.token_ids.iter_mut().zip(&step.token_source).take(step.num_tokens) {
            if let Ok(slot) = usize::try_from(*source) {
                *token = last_tokens[slot];
            }
        }
        Ok(())
    }

    fn embedding(&self, out: &mut CpuTensor, table: &CpuWeight, step: &StepTensors<Self>, scale: f32) -> Result<(), EngineError> {
        let (cols, ids) = (out.cols, &step.token_ids[..step.num_tokens]);
        assert_eq!(cols, table.host.k(), "columns of the embedding");
        self.for_rows(ids.len(), 8 * cols, out.values_mut(ids.len()), cols, |row, out| {
            let id = usize::try_from(ids[row]).expect("a token id is not negative");
            assert!(id < table.host.n(), "token {id} of a vocabulary of {}", table.host.n());
            table.host.dequantize_row(id, out);
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        });
        Ok(())
    }

    fn rms_norm(&self, out: &mut CpuTensor, x: &CpuTensor, weight: &CpuVector, eps: f32) -> Result<(), EngineError> {
        assert_eq!((out.cols, weight.values.len()), (x.cols, x.cols), "columns of a norm");
        self.norm_rows(out.values_mut(x.rows), x, weight, eps, NormStore::Set);
        Ok(())
    }

    fn add_rms_norm(
        &self,
        out: &mut CpuTensor,
        residual: &mut CpuTensor,
        x: &CpuTensor,
        weight: &CpuVector,
        eps: f32,
    ) -> Result<(), EngineError> {
        let cols = x.cols;
        assert_eq!((out.cols, residual.cols, weight.values.len()), (cols, cols, cols), "columns of a norm");
        assert_eq!(residual.rows, x.rows, "rows of the residual");
        let (values, weight) = (x.values(), weight.values.as_slice());
        let residual = SharedMut::new(residual.values_mut(x.rows));
        self.for_rows(x.rows, 16 * cols, out.values_mut(x.rows), cols, |row, out| {
            // SAFETY: every row is of one task.
            let residual = unsafe { residual.slice(row * cols, cols) };
            self.dispatch.run(AddRmsNorm { residual, x: &values[row * cols..][..cols], weight, eps, out });
        });
        Ok(())
    }

    fn norm_add(&self, residual: &mut CpuTensor, x: &CpuTensor, weight: &CpuVector, eps: f32) -> Result<(), EngineError> {
        assert_eq!((residual.cols, weight.values.len()), (x.cols, x.cols), "columns of a norm");
        assert_eq!(residual.rows, x.rows, "rows of the residual");
        self.norm_rows(residual.values_mut(x.rows), x, weight, eps, NormStore::Add);
        Ok(())
    }

    fn linear(&self, out: &mut CpuTensor, x: &CpuTensor, linear: &Linear<Self>) -> Result<(), EngineError> {
        assert_eq!((out.cols, x.cols), (linear.n, linear.k), "columns of a linear layer");
        self.linear_slices(out.values_mut(x.rows), x.values(), x.rows, linear);
        Ok(())
    }

    fn rope_kv_store(
        &self,
        qkv: &mut CpuTensor,
        kv: &mut CpuKv,
        step: &StepTensors<Self>,
        params: &RopeKvParams<'_, Self>,
    ) -> Result<(), EngineError> {
        let tokens = step.num_tokens;
        assert_eq!(qkv.rows, tokens, "rows of qkv");
        self.rope_kv_slices(qkv.values_mut(tokens), kv, &step.positions[..tokens], &step.slot_mapping[..tokens], params);
        Ok(())
    }

    fn attention(
        &self,
        out: &mut CpuTensor,
        qkv: &CpuTensor,
        kv: &CpuKv,
        step: &StepTensors<Self>,
        params: &AttentionParams,
    ) -> Result<(), EngineError> {
        assert_eq!((qkv.rows, out.cols), (step.num_tokens, params.num_heads * params.head_dim), "shape of attention");
        let op = Attention {
            qkv: qkv.values(),
            qkv_cols: qkv.cols,
            kv,
            cu_seqlens_q: &step.cu_seqlens_q[..=step.num_seqs],
            context_lens: &step.context_lens[..step.num_seqs],
            block_tables: &step.block_tables,
            max_blocks_per_seq: step.max_blocks_per_seq,
            params,
        };
        self.attention_slices(out.values_mut(step.num_tokens), &op);
        Ok(())
    }

    fn gated_activation(&self, out: &mut CpuTensor, gate_up: &CpuTensor, activation: Activation) -> Result<(), EngineError> {
        assert_eq!(gate_up.cols, 2 * out.cols, "columns of gate and up");
        self.gated_slices(out.values_mut(gate_up.rows), gate_up.values(), gate_up.rows, activation);
        Ok(())
    }

    fn moe(&self, out: &mut CpuTensor, x: &CpuTensor, weights: &MoeWeights<Self>) -> Result<(), EngineError> {
        assert_eq!((out.cols, x.cols), (weights.router.k, weights.router.k), "columns of a mixture");
        self.moe_slices(out.values_mut(x.rows), x.values(), x.rows, weights);
        Ok(())
    }

    fn gather_rows(&self, out: &mut CpuTensor, x: &CpuTensor, step: &StepTensors<Self>) -> Result<(), EngineError> {
        assert_eq!(out.cols, x.cols, "columns of a gather");
        let (cols, values) = (x.cols, x.values());
        let rows = &step.logit_rows[step.first_logit_row..][..step.num_logit_rows];
        for (out, row) in out.values_mut(rows.len()).chunks_exact_mut(cols).zip(rows) {
            out.copy_from_slice(&values[*row as usize * cols..][..cols]);
        }
        Ok(())
    }

    fn soft_cap(&self, x: &mut CpuTensor, cap: f32) -> Result<(), EngineError> {
        const CHUNK: usize = 4096;
        let rows = x.rows;
        let values = x.values_mut(rows);
        let len = values.len();
        let values = SharedMut::new(values);
        self.pool.run(len.div_ceil(CHUNK), |task| {
            let start = task * CHUNK;
            // SAFETY: chunks do not overlap.
            let x = unsafe { values.slice(start, CHUNK.min(len - start)) };
            self.dispatch.run(SoftCap { x, cap });
        });
        Ok(())
    }

    fn record(&self, _run: &mut dyn FnMut() -> Result<(), EngineError>) -> Result<Infallible, EngineError> {
        Err(EngineError::Unsupported("recorded steps on the CPU".into()))
    }

    fn replay(&self, recording: &Infallible) -> Result<(), EngineError> {
        match *recording {}
    }

    fn copy_blocks(&self, kv: &mut CpuKv, pairs: &[(u32, u32)]) -> Result<(), EngineError> {
        kv.copy_blocks(pairs);
        Ok(())
    }

    fn sample(&self, logits: &mut CpuTensor, rows: &[SampleRow<'_>], last_tokens: &mut Vec<i32>) -> Result<Vec<SampleOutput>, EngineError> {
        let (cols, num_rows) = (logits.cols, logits.rows);
        assert!(rows.iter().all(|row| row.logits_row < num_rows), "a sampled row is one of the {num_rows} logits rows");
        let shared = |row: &SampleRow<'_>| rows.iter().filter(|other| other.logits_row == row.logits_row).count() > 1;
        let values = SharedMut::new(logits.values_mut(num_rows));
        let mut outputs: Vec<Option<SampleOutput>> = vec![None; rows.len()];
        let slots = SharedMut::new(&mut outputs);
        // Several choices of one request may sample from one logits row: those work on copies, made before anyone writes.
        let mut copies: Vec<Option<Vec<f32>>> = Vec::with_capacity(rows.len());
        for row in rows {
            // SAFETY: nothing else has a slice yet.
            copies.push(shared(row).then(|| unsafe { values.slice(row.logits_row * cols, cols) }.to_vec()));
        }
        let copies = SharedMut::new(&mut copies);
        self.pool.run(rows.len(), |index| {
            // SAFETY: every task has its own entry.
            let copy = unsafe { copies.slice(index, 1) };
            let sampled = match &mut copy[0] {
                Some(copy) => sample_row(copy, &rows[index]),
                // SAFETY: this logits row is of this task alone.
                None => sample_row(unsafe { values.slice(rows[index].logits_row * cols, cols) }, &rows[index]),
            };
            // SAFETY: every task has its own entry.
            unsafe { slots.set(index, Some(sampled)) };
        });
        let outputs: Vec<SampleOutput> = outputs.into_iter().map(|output| output.expect("every task ran")).collect();
        for (row, output) in rows.iter().zip(&outputs) {
            last_tokens[row.slot] = output.token.cast_signed();
        }
        Ok(outputs)
    }

    fn sampled(&self, pending: Vec<SampleOutput>) -> Result<Vec<SampleOutput>, EngineError> {
        Ok(pending)
    }

    fn is_sampled(&self, _pending: &Vec<SampleOutput>) -> bool {
        true
    }

    fn row_logprobs(&self, logits: &CpuTensor, rows: &[(usize, u32)], top: usize) -> Result<Vec<TokenLogprobs>, EngineError> {
        let (cols, values) = (logits.cols, logits.values());
        let mut outputs: Vec<Option<TokenLogprobs>> = vec![None; rows.len()];
        let slots = SharedMut::new(&mut outputs);
        self.pool.run(rows.len(), |index| {
            let (row, token) = rows[index];
            let entry = token_logprobs(&values[row * cols..][..cols], token, top);
            // SAFETY: every task has its own entry.
            unsafe { slots.set(index, Some(entry)) };
        });
        Ok(outputs.into_iter().map(|output| output.expect("every task ran")).collect())
    }
}

impl CpuDevice {
    fn norm_rows(&self, out: &mut [f32], x: &CpuTensor, weight: &CpuVector, eps: f32, store: NormStore) {
        let (cols, values, weight) = (x.cols, x.values(), weight.values.as_slice());
        self.for_rows(x.rows, 12 * cols, out, cols, |row, out| {
            self.dispatch.run(RmsNorm { x: &values[row * cols..][..cols], weight, eps, out, store });
        });
    }
}
