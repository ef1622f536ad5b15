//! The CUDA device: `trait Device` over `pagoda-kernels` on one GPU. Activations and KV cache are bf16, logits f32, sums f32.
//!
//! Weights of 4 bits stay packed, in tiles (`w4.rs`), GGUF's blocks as they are (`blocks.rs`), those of 8 bits stay so where there are kernels
//! for them (`bytes.rs`); every other format becomes bf16 when it is loaded. One stream orders all work; ops only queue it, and the host waits in `sampled` and
//! `row_logprobs` alone (and in `sample` for the few rows that are sampled on the host).

mod attention;
mod blocks;
mod bytes;
mod encoder;
mod fp4;
mod memory;
mod moe;
mod ops;
mod pieces;
mod plan;
mod planned;
mod product;
mod product_w8;
mod sample;
mod staging;
mod w4;
mod w4_load;
mod w4_quantize;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pagoda_kernels::heuristics::has_prefix_kernel;
use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::w8::ByteMatrix;
use pagoda_kernels::{Arena, CublasLt, DeviceMemory, Gpu, GpuInfo, KernelError};
use parking_lot::Mutex;
use tracing::{info, warn};

use self::blocks::BlockWeight;
use self::fp4::Fp4Room;
use self::moe::MoeScratch;
use self::product_w8::RoundedInputs;
use self::sample::SampleScratch;
use self::staging::{Staging, StepRing};
pub use self::w4::MAX_TILED_TOKENS;
use self::w4::W4Weight;
use super::{DType, KvShape, Tensor};
use crate::error::{EngineError, Result};

/// Bytes of partial results of split decode attention. Enough for as many tokens as fit into 80 GB beside their weights; with more, which
/// takes shared prefixes, contexts are cut more coarsely.
const PARTIALS_BYTES: usize = 64 << 20;
/// Memory that scales take at a time.
const SCALES_STEP: usize = 2 << 20;
/// Counters of split decode attention: two, and one for each pair of sequence and query head.
const MAX_COUNTERS: usize = 1 << 19;

/// A matrix of weights `[n, k]` on the GPU.
pub struct CudaWeight {
    stored: Stored,
    n: usize,
    k: usize,
}

/// How a matrix lies in the GPU's memory.
#[derive(Clone, Copy)]
enum Stored {
    /// bf16.
    Dense(DeviceBytes),
    /// A byte a weight, with scales.
    Bytes(ByteMatrix),
    /// 4-bit codes in tiles.
    Tiles(W4Weight),
    /// Blocks of GGUF.
    Blocks(BlockWeight),
}

/// A vector of f32 on the GPU.
pub struct CudaVector {
    bytes: DeviceBytes,
    /// The same as bf16, where that is exact.
    half: Option<DeviceBytes>,
    len: usize,
}

/// Integers on the GPU: a part of an allocation that it may share with others.
pub struct CudaInts {
    memory: Arc<DeviceMemory>,
    /// First byte.
    start: usize,
    /// Bytes.
    len: usize,
}

/// One layer's keys and values on the GPU: `[num_blocks][k, v][num_kv_heads][block_size][head_dim]` bf16 or e4m3.
pub struct CudaKv {
    memory: DeviceMemory,
    /// `[k, v][num_kv_heads]` f32 of a cache of e4m3.
    scales: Option<DeviceBytes>,
    shape: KvShape,
}

/// A GPU as a device. Its ops are called by one thread at a time; the locks only make its scratch shareable.
pub struct CudaDevice {
    gpu: Arc<Gpu>,
    weights: Arena,
    /// Scales of codes: apart, so that codes loaded one after another lie one after another.
    scales: Arena,
    blas: Option<CublasLt>,
    staging: Mutex<Staging>,
    step_ring: Mutex<StepRing>,
    partials: DeviceMemory,
    prefix_partials: DeviceMemory,
    counters: DeviceMemory,
    sample_scratch: Mutex<SampleScratch>,
    moe_scratch: Mutex<Option<MoeScratch>>,
    rounded_inputs: Mutex<RoundedInputs>,
    fp4_room: Mutex<Fp4Room>,
    /// Packed matrices on their way to tiles; none once all weights are loaded.
    load_room: Mutex<Option<DeviceMemory>>,
    /// Rows of packed matrices as bf16.
    dense_scratch: Mutex<Option<DeviceMemory>>,
    /// Bytes that it has to have.
    needed_scratch: AtomicUsize,
    /// Whether packed projections are kept as bf16 too.
    dense_copies: AtomicBool,
    /// Kernels, tiles and splits follow from the model alone, never from what else is in the step.
    deterministic: bool,
    /// NVFP4 matrices times many tokens round these to NVFP4 too.
    fp4_activations: bool,
}

impl CudaDevice {
    /// Opens a GPU by the driver's number.
    ///
    /// # Errors
    /// `Device` when the binary holds no kernels, when there is no such GPU, or when the driver refuses.
    pub fn new(ordinal: usize) -> Result<CudaDevice> {
        let gpu = Gpu::open(ordinal).map_err(engine_error)?;
        let blas = CublasLt::open(&gpu).map_err(engine_error)?;
        if blas.is_none() {
            warn!("cublasLt is not installed: products of many tokens use a slower kernel");
        }
        let GpuInfo { name, compute_capability, num_sms, memory_bytes, .. } = gpu.info();
        info!(name, ?compute_capability, num_sms, memory_bytes, "gpu");
        let zeroed = |len| DeviceMemory::zeroed(&gpu, len).map_err(engine_error);
        Ok(CudaDevice {
            weights: Arena::new(&gpu).map_err(engine_error)?,
            scales: Arena::with_step(&gpu, SCALES_STEP).map_err(engine_error)?,
            blas,
            staging: Mutex::new(Staging::new(&gpu)?),
            step_ring: Mutex::new(StepRing::new(&gpu)),
            partials: zeroed(PARTIALS_BYTES)?,
            prefix_partials: zeroed(if has_prefix_kernel(*compute_capability) { PARTIALS_BYTES } else { 0 })?,
            counters: zeroed(MAX_COUNTERS * 4)?,
            sample_scratch: Mutex::new(SampleScratch::new(&gpu)?),
            moe_scratch: Mutex::new(None),
            rounded_inputs: Mutex::default(),
            fp4_room: Mutex::default(),
            load_room: Mutex::new(None),
            dense_scratch: Mutex::new(None),
            needed_scratch: AtomicUsize::new(0),
            dense_copies: AtomicBool::new(false),
            deterministic: false,
            fp4_activations: false,
            gpu,
        })
    }

    /// The same device, with results that are bitwise those of the request alone, in whatever batch and chunks it runs.
    pub fn deterministic(self) -> CudaDevice {
        CudaDevice { deterministic: true, ..self }
    }

    /// Whether results may depend on nothing but the request.
    pub fn is_deterministic(&self) -> bool {
        self.deterministic
    }

    fn keeps_dense_copies(&self) -> bool {
        self.dense_copies.load(Ordering::Relaxed)
    }

    fn set_dense_copies(&self, kept: bool) {
        self.dense_copies.store(kept, Ordering::Relaxed);
    }

    fn need_scratch(&self, bytes: usize) {
        self.needed_scratch.fetch_max(bytes, Ordering::Relaxed);
    }

    fn needed_scratch(&self) -> usize {
        self.needed_scratch.load(Ordering::Relaxed)
    }

    /// Bytes a second of plain reads of the GPU's memory, measured now.
    ///
    /// # Errors
    /// The driver refuses, or there is no memory.
    pub fn read_rate(&self) -> Result<f64> {
        pagoda_kernels::read_rate(&self.gpu).map_err(engine_error)
    }

    /// GPUs that this binary could use: none when it was built without kernels or there is no driver.
    pub fn available() -> Vec<GpuInfo> {
        if !pagoda_kernels::available() {
            return Vec::new();
        }
        pagoda_kernels::probe().unwrap_or_else(|error| {
            warn!(%error, "the CUDA driver does not work");
            Vec::new()
        })
    }

    /// The rows in use, on the host: waits for everything queued. For tests and tools; a step never reads a tensor back.
    ///
    /// # Errors
    /// What went wrong in the work queued before.
    pub fn read(&self, tensor: &Tensor<CudaDevice>) -> Result<Vec<f32>> {
        let len = tensor.rows * tensor.cols;
        let mut bytes = vec![0u8; len * tensor.dtype.size()];
        self.gpu.copy_to_host(&mut bytes, tensor.buffer.bytes()).map_err(engine_error)?;
        let wide = |pair: &[u8]| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
        Ok(match tensor.dtype {
            DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            _ => bytes.chunks_exact(2).map(wide).collect(),
        })
    }

    /// Sets rows of f32 from the host: as many as `values` fill. For tests and tools.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn write(&self, tensor: &mut Tensor<CudaDevice>, values: &[f32]) -> Result<()> {
        assert_eq!((tensor.dtype, values.len() % tensor.cols), (DType::F32, 0), "whole rows of f32");
        tensor.set_rows(values.len() / tensor.cols);
        self.staging.lock().upload(tensor.buffer.bytes(), bytemuck::cast_slice(values))
    }

    /// Waits until everything queued is done.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn synchronize(&self) -> Result<()> {
        self.gpu.synchronize().map_err(engine_error)
    }
}

/// A refusal below as the engine's error.
fn engine_error(error: KernelError) -> EngineError {
    match error {
        KernelError::OutOfMemory { needed, free } => EngineError::OutOfMemory {
            what: "gpu memory".into(),
            needed_bytes: needed,
            available_bytes: free,
            hint: "lower memory_utilization, or stop what else uses the GPU".into(),
        },
        lost @ KernelError::Lost { .. } => EngineError::DeviceLost(lost.to_string()),
        other => EngineError::Device(other.to_string()),
    }
}
