//! Mixture of experts without the host: route, sort pairs by expert, two grouped products, weighted sum.
//!
//! Steps of more tokens than `CHUNK` are done in pieces, so that the scratch has a bound.

use pagoda_kernels::DeviceMemory;
use pagoda_kernels::ops::grouped::{GroupedGemm, RowGroups, RowMap, grouped_gemm};
use pagoda_kernels::ops::moe::{MoeRoute, Routing, moe_combine, moe_route};
use pagoda_kernels::ops::step::gated_activation;
use pagoda_kernels::ops::{DType, DeviceBytes};

use super::ops::kernel_activation;
use super::product::{Rows, joined};
use super::{CudaDevice, engine_error};
use crate::device::{Linear, MoeWeights, Tensor};
use crate::error::{EngineError, Result};
use crate::models::config::MoeConfig;

/// Tokens of a piece.
const CHUNK: usize = 1024;

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
    /// Experts, weights, sorted and position of every pair, then the offsets.
    routing: DeviceMemory,
    /// `[pairs, 2 * intermediate]` bf16.
    gate_up: DeviceMemory,
    /// `[pairs, intermediate]` bf16.
    activated: DeviceMemory,
    /// `[pairs, hidden]` bf16.
    y: DeviceMemory,
}

impl MoeScratch {
    /// Bytes that a model takes.
    pub fn bytes(hidden: usize, moe: MoeConfig, max_tokens: usize) -> usize {
        let tokens = CHUNK.min(max_tokens);
        let pairs = tokens * moe.top_k;
        let ints = tokens * moe.num_experts + 4 * pairs + moe.num_experts + 1;
        ints * 4 + pairs * (3 * moe.intermediate_size + hidden) * 2
    }

    fn new(device: &CudaDevice, shape: Shape) -> Result<MoeScratch> {
        let pairs = shape.tokens * shape.top_k;
        Ok(MoeScratch {
            shape,
            logits: device.zeroed(shape.tokens * shape.num_experts * 4)?,
            routing: device.zeroed((4 * pairs + shape.num_experts + 1) * 4)?,
            gate_up: device.zeroed(pairs * 2 * shape.intermediate * 2)?,
            activated: device.zeroed(pairs * shape.intermediate * 2)?,
            y: device.zeroed(pairs * shape.hidden * 2)?,
        })
    }

    fn routing(&self) -> Routing {
        let pairs = self.shape.tokens * self.shape.top_k;
        let vector = |index: usize| self.routing.bytes().from(index * pairs * 4);
        Routing { experts: vector(0), weights: vector(1), sorted: vector(2), position: vector(3), offsets: vector(4) }
    }
}

/// The matrices of all experts in one piece: `[num_experts][n, k]`.
fn stacked(experts: &[Linear<CudaDevice>]) -> Result<DeviceBytes> {
    let matrices = joined(experts.iter().flat_map(|expert| &expert.parts));
    let same = experts.iter().all(|expert| (expert.n, expert.k) == (experts[0].n, experts[0].k) && expert.bias.is_none());
    match matrices[..] {
        [matrix] if same => Ok(matrix.bytes),
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
            *slot = Some(MoeScratch::new(self, shape)?);
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
        let grouped = |out, x, rows, experts: &[Linear<CudaDevice>]| -> Result<()> {
            let (n, k) = (experts[0].n, experts[0].k);
            let groups = Some(RowGroups { offsets: routing.offsets, num_groups: num_experts, w_stride: n * k });
            let params = GroupedGemm { out, x, w: stacked(experts)?, groups, rows, num_rows, n, k, ld_out: n, out_dtype: DType::BF16 };
            grouped_gemm(&params, stream).map_err(engine_error)
        };
        let (gate_up, activated, y) = (scratch.gate_up.bytes(), scratch.activated.bytes(), scratch.y.bytes());
        grouped(gate_up, x.bytes, Some(RowMap { map: routing.sorted, div: top_k }), &weights.gate_up)?;
        let activation = kernel_activation(weights.activation);
        gated_activation(activated, gate_up, num_rows, intermediate, activation, stream).map_err(engine_error)?;
        grouped(y, activated, None, &weights.down)?;
        moe_combine(out, y, &routing, (num_tokens, top_k), hidden, stream).map_err(engine_error)
    }
}
