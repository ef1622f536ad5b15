//! Mixture of experts without the host: route, sort pairs by expert, gather their tokens, two products in groups, weighted sum.
//!
//! How many tokens an expert gets is known on the device alone; nothing here waits for it. Steps of more tokens than `CHUNK` are done in
//! pieces, so that the scratch has a bound.

use pagoda_kernels::DeviceMemory;
use pagoda_kernels::heuristics::{GroupedPlan, GroupedShape, SkinnyShape, grouped_plan};
use pagoda_kernels::ops::gemm::{Epilogue, SkinnyGemmParams, SkinnyGroups, Start, skinny_gemm};
use pagoda_kernels::ops::grouped::{GroupedGemm, RowGroups, grouped_gemm};
use pagoda_kernels::ops::moe::{MoeRoute, Routing, moe_combine, moe_route};
use pagoda_kernels::ops::step::{GatherRows, gated_activation, gather_rows};
use pagoda_kernels::ops::wide::{WideGemm, wide_gemm};
use pagoda_kernels::ops::{DType, DeviceBytes};

use super::ops::kernel_activation;
use super::product::{Matrix, Rows, joined};
use super::{CudaDevice, Stored, engine_error};
use crate::device::{Linear, MoeWeights, Tensor};
use crate::error::{EngineError, Result};
use crate::models::config::{Activation, MoeConfig};

/// Tokens of a piece.
const CHUNK: usize = 4096;

/// What the scratch is sized for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    tokens: usize,
    num_experts: usize,
    top_k: usize,
    hidden: usize,
    intermediate: usize,
}

/// Taken by the first step and kept: every layer of a model has the same shape.
pub struct MoeScratch {
    shape: Shape,
    /// `[tokens, num_experts]` f32.
    logits: DeviceMemory,
    /// Experts, weights, sorted, tokens and position of every pair, then the offsets.
    routing: DeviceMemory,
    /// `[pairs, hidden]` bf16: the pairs' tokens, later what their experts make of them.
    rows: DeviceMemory,
    /// `[pairs, intermediate]` bf16.
    activated: DeviceMemory,
    /// `[pairs, 2 * intermediate]` bf16; none where gate and up are joined at once.
    gate_up: Option<DeviceMemory>,
}

impl MoeScratch {
    /// Bytes that a model takes.
    pub fn bytes(hidden: usize, moe: MoeConfig, max_tokens: usize) -> usize {
        let tokens = CHUNK.min(max_tokens);
        let pairs = tokens * moe.top_k;
        let ints = tokens * moe.num_experts + 5 * pairs + moe.num_experts + 1;
        ints * 4 + pairs * (3 * moe.intermediate_size + hidden) * 2
    }

    fn new(device: &CudaDevice, shape: Shape, fused: bool) -> Result<MoeScratch> {
        let pairs = shape.tokens * shape.top_k;
        Ok(MoeScratch {
            shape,
            logits: device.zeroed(shape.tokens * shape.num_experts * 4)?,
            routing: device.zeroed((5 * pairs + shape.num_experts + 1) * 4)?,
            rows: device.zeroed(pairs * shape.hidden * 2)?,
            activated: device.zeroed(pairs * shape.intermediate * 2)?,
            gate_up: if fused { None } else { Some(device.zeroed(pairs * 2 * shape.intermediate * 2)?) },
        })
    }

    fn routing(&self) -> Routing {
        let pairs = self.shape.tokens * self.shape.top_k;
        let vector = |index: usize| self.routing.bytes().from(index * pairs * 4);
        Routing { experts: vector(0), weights: vector(1), sorted: vector(2), tokens: vector(3), position: vector(4), offsets: vector(5) }
    }
}

/// One product of all experts: row r of `out` is `x[r]` times the matrix of the expert that pair r belongs to.
struct ExpertProduct<'a> {
    out: DeviceBytes,
    x: DeviceBytes,
    num_rows: usize,
    experts: &'a [Linear<CudaDevice>],
    offsets: DeviceBytes,
    epilogue: Epilogue,
}

/// The matrices of all experts in one piece: `[num_experts][n, k]`.
fn stacked(experts: &[Linear<CudaDevice>]) -> Result<DeviceBytes> {
    let matrices = joined(experts.iter().flat_map(|expert| &expert.parts));
    let same = experts.iter().all(|expert| (expert.n, expert.k) == (experts[0].n, experts[0].k) && expert.bias.is_none());
    match matrices[..] {
        [Matrix { stored: Stored::Dense(bytes), .. }] if same => Ok(bytes),
        _ => Err(EngineError::Unsupported("experts with a bias, of different shapes or loaded out of order on CUDA".into())),
    }
}

impl CudaDevice {
    pub(super) fn mixture(&self, out: &Tensor<CudaDevice>, x: &Tensor<CudaDevice>, weights: &MoeWeights<CudaDevice>) -> Result<()> {
        let (gate_up, down) = (&weights.gate_up[0], &weights.down[0]);
        assert_eq!((out.cols, x.cols, gate_up.n), (down.n, gate_up.k, 2 * down.k), "shapes of the experts");
        let shape = Shape {
            tokens: CHUNK.min(x.max_rows),
            num_experts: weights.router.n,
            top_k: weights.top_k,
            hidden: x.cols,
            intermediate: down.k,
        };
        let mut slot = self.moe_scratch.lock();
        if slot.as_ref().is_none_or(|scratch| scratch.shape != shape) {
            *slot = None;
            let fused = weights.activation == Activation::Silu && self.joins_gates_of_experts();
            *slot = Some(MoeScratch::new(self, shape, fused)?);
        }
        let scratch = slot.as_ref().expect("taken above");
        let row_bytes = x.cols * 2;
        for first in (0..x.rows).step_by(shape.tokens) {
            let num_tokens = shape.tokens.min(x.rows - first);
            let piece = |tensor: &Tensor<CudaDevice>| Rows {
                bytes: tensor.buffer.bytes().from(first * row_bytes),
                max_rows: tensor.max_rows - first,
                dtype: DType::BF16,
            };
            self.mixture_piece(piece(out).bytes, piece(x), num_tokens, weights, scratch)?;
        }
        Ok(())
    }

    fn mixture_piece(
        &self,
        out: DeviceBytes,
        x: Rows,
        num_tokens: usize,
        weights: &MoeWeights<CudaDevice>,
        scratch: &MoeScratch,
    ) -> Result<()> {
        let Shape { tokens, num_experts, top_k, hidden, intermediate } = scratch.shape;
        let stream = self.gpu.stream().map_err(engine_error)?;
        let routing = scratch.routing();
        let logits = scratch.logits.bytes();
        self.product(Rows { bytes: logits, max_rows: tokens, dtype: DType::F32 }, x, num_tokens, &weights.router)?;
        let renormalise = weights.renormalise;
        let route = MoeRoute { routing, logits, num_tokens, num_experts, top_k, renormalise };
        moe_route(&route, stream).map_err(engine_error)?;

        let num_rows = num_tokens * top_k;
        let (rows, activated) = (scratch.rows.bytes(), scratch.activated.bytes());
        let (table, num_table_rows) = (x.bytes, num_tokens);
        let gather = GatherRows {
            out: rows,
            table,
            index: routing.tokens,
            num_rows,
            num_table_rows,
            cols: hidden,
            scale: 1.0,
            out_dtype: DType::BF16,
            table_dtype: DType::BF16,
        };
        gather_rows(&gather, stream).map_err(engine_error)?;
        let product = |out, x, experts, epilogue| {
            self.expert_product(&ExpertProduct { out, x, num_rows, experts, offsets: routing.offsets, epilogue })
        };
        match &scratch.gate_up {
            None => product(activated, rows, &weights.gate_up, Epilogue::SiluMul)?,
            Some(gate_up) => {
                product(gate_up.bytes(), rows, &weights.gate_up, Epilogue::Plain)?;
                let activation = kernel_activation(weights.activation);
                gated_activation(activated, gate_up.bytes(), num_rows, intermediate, activation, stream).map_err(engine_error)?;
            }
        }
        product(rows, activated, &weights.down, Epilogue::Plain)?;
        moe_combine(out, rows, &routing, (num_tokens, top_k), hidden, stream).map_err(engine_error)
    }

    fn joins_gates_of_experts(&self) -> bool {
        grouped_plan(&GroupedShape { num_rows: 1, num_groups: 1, whole: true }, self.gpu_class()) != GroupedPlan::Portable
    }

    fn expert_product(&self, p: &ExpertProduct<'_>) -> Result<()> {
        let ExpertProduct { out, x, num_rows, experts, offsets, epilogue } = *p;
        let (w, num_groups, n, k) = (stacked(experts)?, experts.len(), experts[0].n, experts[0].k);
        let ld_out = if epilogue == Epilogue::SiluMul { n / 2 } else { n };
        let stream = self.gpu.stream().map_err(engine_error)?;
        let (bias, start, out_dtype) = (None, Start::Early, DType::BF16);
        let answer = match grouped_plan(&GroupedShape { num_rows, num_groups, whole: ld_out.is_multiple_of(8) }, self.gpu_class()) {
            GroupedPlan::Skinny(plan, block_tokens) => {
                let groups = Some(SkinnyGroups { offsets, num_groups, block_tokens });
                let (residual, shape) = (None, SkinnyShape { num_tokens: num_rows, n, k });
                skinny_gemm(
                    &SkinnyGemmParams { out, x, w, bias, residual, shape, ld_out, out_dtype, epilogue, plan, start, groups },
                    stream,
                )
            }
            GroupedPlan::Wide(plan) => {
                let groups = Some((offsets, num_groups));
                wide_gemm(&WideGemm { out, x, w, bias, groups, num_rows, n, k, ld_out, epilogue, plan, start }, stream)
            }
            GroupedPlan::Portable => {
                let groups = Some(RowGroups { offsets, num_groups, w_stride: n * k });
                grouped_gemm(&GroupedGemm { out, x, w, groups, rows: None, num_rows, n, k, ld_out, out_dtype }, stream)
            }
        };
        answer.map_err(engine_error)
    }
}
