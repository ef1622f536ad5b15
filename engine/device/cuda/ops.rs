//! `impl Device for CudaDevice`: checks shapes, takes addresses out of tensors and hands them to the launchers.

use pagoda_kernels::heuristics::has_prefix_kernel;
use pagoda_kernels::ops::elementwise::{RmsNorm, RmsNormParams, rms_norm};
use pagoda_kernels::ops::w4::w4_gather_rows;
use pagoda_kernels::ops::{self, DeviceBytes, step as rows};
use pagoda_kernels::{Capture, DeviceMemory, Graph};

use super::planned::planned_copies;
use super::product::Rows;
use super::sample::{CudaPending, is_on_host};
use super::{CudaDevice, CudaInts, CudaKv, CudaVector, CudaWeight, Stored, engine_error};
use crate::device::{
    AttentionParams, DType, Device, HostMatrix, HostWeight, KvScales, KvShape, Linear, MatrixLoad, MoeWeights, RopeKvParams, StepInts,
    StepRoom, StepTensors, Tensor,
};
use crate::error::Result;
use crate::memory_plan::StepSize;
use crate::models::config::{Activation, ModelConfig};
use crate::sampling::{SampleOutput, SampleRow, SamplingParams, TokenLogprobs};
use crate::weights::size::WeightSize;

type CudaTensor = Tensor<CudaDevice>;

impl CudaTensor {
    pub(super) fn bytes(&self) -> DeviceBytes {
        self.buffer.bytes()
    }

    /// The address of activations: every op but products and norms knows bf16 alone.
    pub(super) fn bf16(&self) -> DeviceBytes {
        assert_eq!(self.dtype, DType::BF16, "activations");
        self.bytes()
    }

    /// The tensor as an operand of a product.
    pub(super) fn operand(&self) -> Rows {
        Rows { bytes: self.bytes(), max_rows: self.max_rows, dtype: self.dtype }
    }
}

impl CudaInts {
    pub(super) fn bytes(&self) -> DeviceBytes {
        self.memory.bytes().from(self.start).first(self.len)
    }
}

pub(super) fn kernel_activation(activation: Activation) -> rows::Activation {
    match activation {
        Activation::Silu => rows::Activation::Silu,
        Activation::GeluTanh => rows::Activation::GeluTanh,
        Activation::Gelu => rows::Activation::Gelu,
    }
}

impl CudaDevice {
    pub(super) fn launch(&self, op: impl FnOnce(ops::Stream) -> pagoda_kernels::Result<()>) -> Result<()> {
        self.gpu.stream().and_then(op).map_err(engine_error)
    }

    fn norm(&self, norm: RmsNorm, x: &CudaTensor, weight: &CudaVector, eps: f32, stream_dtype: DType) -> Result<()> {
        assert_eq!(weight.len, x.cols, "columns of a norm");
        let params = RmsNormParams { norm, x: x.bytes(), weight: weight.bytes, num_tokens: x.rows, hidden: x.cols, eps, stream_dtype };
        self.launch(|stream| rms_norm(&params, stream))
    }

    /// out = rows of a table (address, type, rows), by index.
    fn gather(&self, out: &CudaTensor, table: (DeviceBytes, DType, usize), index: DeviceBytes, scale: f32) -> Result<()> {
        let (table, table_dtype, num_table_rows) = table;
        let params = rows::GatherRows {
            out: out.bytes(),
            out_dtype: out.dtype,
            table,
            table_dtype,
            index,
            num_rows: out.rows,
            num_table_rows,
            cols: out.cols,
            scale,
        };
        self.launch(|stream| rows::gather_rows(&params, stream))
    }
}

impl Device for CudaDevice {
    type Buffer = DeviceMemory;
    type Ints = CudaInts;
    type Weight = CudaWeight;
    type Vector = CudaVector;
    type KvLayer = CudaKv;
    type Pending = CudaPending;
    type Recording = Graph;

    fn name(&self) -> String {
        format!("cuda {}", self.gpu.info().name)
    }

    fn activation_dtype(&self) -> DType {
        DType::BF16
    }

    fn residual_dtype(&self) -> DType {
        DType::F32
    }

    fn default_kv_dtype(&self) -> DType {
        DType::BF16
    }

    fn free_memory(&self) -> Result<usize> {
        self.gpu.memory().map(|(free, _)| free).map_err(engine_error)
    }

    fn weight_bytes(&self, weights: &WeightSize) -> usize {
        self.planned_weights(weights)
    }

    fn kv_share(&self) -> f32 {
        1.0
    }

    fn step_size(&self) -> StepSize {
        self.default_step_size()
    }

    fn scratch_bytes(&self, config: &ModelConfig, step: StepSize, weights: &WeightSize) -> Result<usize> {
        self.planned_scratch(config, step, weights)
    }

    fn memory_in_use(&self) -> Option<usize> {
        self.gpu.memory().ok().map(|(free, total)| total - free)
    }

    fn sleep(&self, _kv: &mut [CudaKv]) -> Result<()> {
        self.put_aside()
    }

    fn wake(&self) -> Result<()> {
        self.take_back()
    }

    fn wait(&self) -> Result<()> {
        self.synchronize()
    }

    fn alloc(&self, max_rows: usize, cols: usize, dtype: DType) -> Result<CudaTensor> {
        self.new_tensor(max_rows, cols, dtype)
    }

    fn alloc_ints(&self, len: usize) -> Result<CudaInts> {
        self.new_ints(len)
    }

    fn alloc_kv(&self, shape: KvShape) -> Result<CudaKv> {
        self.new_kv(shape)
    }

    fn set_kv_scales(&self, kv: &mut CudaKv, scales: &KvScales) -> Result<()> {
        if kv.shape.dtype == DType::E4M3 { self.upload_kv_scales(kv, scales) } else { Ok(()) }
    }

    fn load_weight(&self, weight: HostWeight) -> Result<CudaWeight> {
        self.upload_weight(&weight)
    }

    fn load_matrix(&self, matrix: HostMatrix, load: MatrixLoad) -> Result<CudaWeight> {
        self.upload_matrix(matrix, load)
    }

    fn load_parts(&self, parts: Vec<HostMatrix>, load: MatrixLoad) -> Result<Vec<CudaWeight>> {
        self.upload_parts(parts, load)
    }

    fn dense_copy_bytes(&self, weights: &WeightSize) -> usize {
        planned_copies(weights)
    }

    fn keep_dense_copies(&self, kept: bool) {
        self.set_dense_copies(kept);
    }

    fn weights_loaded(&self) -> Result<()> {
        self.end_of_weights()
    }

    fn load_vector(&self, values: &[f32]) -> Result<CudaVector> {
        self.upload_vector(values)
    }

    fn weight_shape(&self, weight: &CudaWeight) -> (usize, usize) {
        (weight.n, weight.k)
    }

    fn write_ints(&self, dst: &mut CudaInts, src: &[i32]) -> Result<()> {
        self.staging.lock().upload(dst.bytes(), bytemuck::cast_slice(src))
    }

    fn alloc_step(&self, room: &StepRoom) -> Result<StepTensors<Self>> {
        self.new_step(room)
    }

    fn write_step(&self, step: &mut StepTensors<Self>, ints: &StepInts) -> Result<()> {
        self.upload_step(step, ints)
    }

    fn resolve_tokens(&self, step: &mut StepTensors<Self>, last_tokens: &CudaInts) -> Result<()> {
        let (ids, source) = (step.token_ids.bytes(), step.token_source.bytes());
        self.launch(|stream| rows::resolve_tokens(ids, source, last_tokens.bytes(), step.num_tokens, stream))
    }

    fn embedding(&self, out: &mut CudaTensor, table: &CudaWeight, step: &StepTensors<Self>, scale: f32) -> Result<()> {
        assert_eq!(out.cols, table.k, "columns of the embedding");
        out.set_rows(step.num_tokens);
        match table.stored {
            Stored::Dense(bytes) => self.gather(out, (bytes, DType::BF16, table.n), step.token_ids.bytes(), scale),
            Stored::Bytes(matrix) => self.gather_bytes(out, &matrix, table.n, step.token_ids.bytes(), scale),
            Stored::Blocks(weight) => self.gather_blocks(out, &weight.matrix, step.token_ids.bytes(), scale),
            Stored::Tiles(weight) => {
                assert!(weight.order.is_none(), "an embedding whose columns are in another order");
                let index = step.token_ids.bytes();
                self.launch(|stream| w4_gather_rows(&weight.matrix, (out.bytes(), out.dtype), index, out.rows, scale, stream))
            }
        }
    }

    fn rms_norm(&self, out: &mut CudaTensor, x: &CudaTensor, weight: &CudaVector, eps: f32) -> Result<()> {
        assert_eq!(out.cols, x.cols, "columns of a norm");
        out.set_rows(x.rows);
        self.norm(RmsNorm::Plain { out: out.bf16() }, x, weight, eps, x.dtype)
    }

    fn add_rms_norm(&self, out: &mut CudaTensor, residual: &mut CudaTensor, x: &CudaTensor, weight: &CudaVector, eps: f32) -> Result<()> {
        assert_eq!((out.cols, residual.cols, residual.rows, x.dtype), (x.cols, x.cols, x.rows, DType::BF16), "shape of a norm");
        out.set_rows(x.rows);
        self.norm(RmsNorm::AddThenNorm { out: out.bf16(), residual: residual.bytes() }, x, weight, eps, residual.dtype)
    }

    fn norm_add(&self, residual: &mut CudaTensor, x: &CudaTensor, weight: &CudaVector, eps: f32) -> Result<()> {
        assert_eq!((residual.cols, residual.rows, x.dtype), (x.cols, x.rows, DType::BF16), "shape of a norm");
        self.norm(RmsNorm::NormThenAdd { residual: residual.bytes() }, x, weight, eps, residual.dtype)
    }

    fn linear(&self, out: &mut CudaTensor, x: &CudaTensor, linear: &Linear<Self>) -> Result<()> {
        assert_eq!((out.cols, x.cols, x.dtype), (linear.n, linear.k, DType::BF16), "input and columns of a linear layer");
        out.set_rows(x.rows);
        self.product(out.operand(), x.operand(), x.rows, linear)
    }

    fn linear_gated(
        &self,
        out: &mut CudaTensor,
        scratch: &mut CudaTensor,
        x: &CudaTensor,
        gate_up: &Linear<Self>,
        activation: Activation,
    ) -> Result<()> {
        assert_eq!((2 * out.cols, x.cols, x.dtype), (gate_up.n, gate_up.k, DType::BF16), "input and columns of gate and up");
        out.set_rows(x.rows);
        if activation == Activation::Silu && self.gated_product(out.operand(), x.operand(), x.rows, gate_up)? {
            return Ok(());
        }
        self.linear(scratch, x, gate_up)?;
        self.gated_activation(out, scratch, activation)
    }

    fn rope_kv_store(&self, qkv: &mut CudaTensor, kv: &mut CudaKv, step: &StepTensors<Self>, p: &RopeKvParams<'_, Self>) -> Result<()> {
        self.rotate_and_store(qkv, kv, step, p)
    }

    fn attention(&self, out: &mut CudaTensor, qkv: &CudaTensor, kv: &CudaKv, step: &StepTensors<Self>, p: &AttentionParams) -> Result<()> {
        self.attend(out, qkv, kv, step, p)
    }

    fn rope_attention(
        &self,
        out: &mut CudaTensor,
        qkv: &mut CudaTensor,
        kv: &mut CudaKv,
        step: &StepTensors<Self>,
        rope: &RopeKvParams<'_, Self>,
        p: &AttentionParams,
    ) -> Result<()> {
        self.rotate_and_attend(out, qkv, kv, step, rope, p)
    }

    fn shares_prefixes(&self) -> bool {
        !self.deterministic && has_prefix_kernel(self.gpu.info().compute_capability)
    }

    fn gated_activation(&self, out: &mut CudaTensor, gate_up: &CudaTensor, activation: Activation) -> Result<()> {
        assert_eq!(gate_up.cols, 2 * out.cols, "columns of gate and up");
        out.set_rows(gate_up.rows);
        let activation = kernel_activation(activation);
        self.launch(|stream| rows::gated_activation(out.bf16(), gate_up.bf16(), out.rows, out.cols, activation, stream))
    }

    fn moe(&self, out: &mut CudaTensor, x: &CudaTensor, weights: &MoeWeights<Self>) -> Result<()> {
        out.set_rows(x.rows);
        self.mixture(out, x, weights)
    }

    fn gather_rows(&self, out: &mut CudaTensor, x: &CudaTensor, step: &StepTensors<Self>) -> Result<()> {
        assert_eq!(out.cols, x.cols, "columns of gathered rows");
        out.set_rows(step.num_logit_rows);
        let index = step.logit_rows.bytes().from(4 * step.first_logit_row);
        self.gather(out, (x.bytes(), x.dtype, x.rows), index, 1.0)
    }

    fn soft_cap(&self, x: &mut CudaTensor, cap: f32) -> Result<()> {
        assert_eq!(x.dtype, DType::F32, "soft cap of logits");
        self.launch(|stream| rows::soft_cap(x.bytes(), x.rows * x.cols, cap, stream))
    }

    fn can_record(&self) -> bool {
        true
    }

    fn record(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        let capture = Capture::begin(&self.gpu).map_err(engine_error)?;
        run()?;
        capture.end().map_err(engine_error)
    }

    fn replay(&self, recording: &Graph) -> Result<()> {
        recording.launch().map_err(engine_error)
    }

    fn copy_blocks(&self, kv: &mut CudaKv, pairs: &[(u32, u32)]) -> Result<()> {
        let flat: Vec<u32> = pairs.iter().flat_map(|&(src, dst)| [src, dst]).collect();
        assert!(flat.iter().all(|&block| (block as usize) < kv.shape.num_blocks), "blocks {pairs:?} of {}", kv.shape.num_blocks);
        let on_device = self.sample_scratch.lock().pairs(flat.len())?;
        self.staging.lock().upload(on_device, bytemuck::cast_slice(&flat))?;
        let block_bytes = kv.shape.block_bytes();
        self.launch(|stream| rows::copy_blocks(kv.memory.bytes(), on_device, pairs.len(), block_bytes, stream))
    }

    fn prepare_sampling(&self, max_slots: usize, vocab: usize) -> Result<()> {
        self.prepare_slots(max_slots, vocab)
    }

    fn admit(&self, rows: &[SampleRow<'_>]) -> Result<()> {
        self.admit_rows(rows)
    }

    fn sample(&self, logits: &mut CudaTensor, rows: &[SampleRow<'_>], last_tokens: &mut CudaInts) -> Result<CudaPending> {
        self.sample_rows(logits, rows, last_tokens)
    }

    fn sampled(&self, pending: CudaPending) -> Result<Vec<SampleOutput>> {
        self.read_sampled(pending)
    }

    fn is_sampled(&self, pending: &CudaPending) -> bool {
        pending.is_done()
    }

    fn needs_history(&self, params: &SamplingParams) -> bool {
        is_on_host(params)
    }

    fn row_logprobs(&self, logits: &CudaTensor, rows: &[(usize, u32)], top: usize) -> Result<Vec<TokenLogprobs>> {
        self.logprobs_of_rows(logits, rows, top)
    }
}
