//! Products of many tokens through cuBLASLt, loaded at run time: out[t, n] = sum_k x[t, k] * w[n, k], bf16 in, bf16 or f32 out, f32 sums.
//!
//! cuBLASLt thinks in columns: a row-major matrix is its own transpose to it, so outᵀ = w · xᵀ is asked for, with w transposed. The
//! algorithm for a shape is chosen once (`tune`) and kept; the caller rounds token counts up (`heuristics::padded_tokens`) so that the
//! shapes are few.

mod descriptors;
mod tune;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};

use self::descriptors::Descriptors;
use self::tune::Tuned;
use crate::gpu::{Gpu, waits_for_streams};
use crate::memory::DeviceMemory;
use crate::ops::{DType, DeviceBytes};
use crate::status::{KernelError, Result};

const OP: &str = "cublaslt matmul";
/// Memory that algorithms may use.
const WORKSPACE_BYTES: usize = 64 << 20;
/// Alignment that the library assumes when nothing is said.
const MAX_ALIGNMENT: u64 = 256;

/// Operands and shape of one product.
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    /// `[num_tokens, n]` of row stride `ld_out`, `out_dtype`.
    pub out: DeviceBytes,
    /// `[num_tokens, k]` bf16.
    pub x: DeviceBytes,
    /// `[n, k]` bf16.
    pub w: DeviceBytes,
    /// `[n]` bf16, aligned to 16 bytes; only with `out` in bf16.
    pub bias: Option<DeviceBytes>,
    /// Rows of `x` and `out`.
    pub num_tokens: usize,
    /// Rows of `w`.
    pub n: usize,
    /// Columns of `x` and `w`.
    pub k: usize,
    /// Elements between two rows of `out`.
    pub ld_out: usize,
    /// F32 or BF16.
    pub out_dtype: DType,
}

/// What a plan depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct PlanKey {
    num_tokens: usize,
    n: usize,
    k: usize,
    ld_out: usize,
    out_dtype: sys::cudaDataType,
    alignment: u64,
    bias: bool,
}

/// One shape.
struct Plan {
    descriptors: Descriptors,
    algo: sys::cublasLtMatmulAlgo_t,
}

/// The library's handle with its workspace and plans, for one stream.
pub struct CublasLt {
    gpu: Arc<Gpu>,
    handle: sys::cublasLtHandle_t,
    workspace: DeviceMemory,
    plans: Mutex<HashMap<PlanKey, Plan>>,
    tuned: Tuned,
}

// SAFETY: the handle may be used from any thread (cuBLASLt documentation, thread safety); plans are behind a lock.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// Loads the library; None where it is not installed.
    ///
    /// # Errors
    /// `Driver` when the library refuses, `OutOfMemory`.
    pub fn open(gpu: &Arc<Gpu>) -> Result<Option<CublasLt>> {
        // SAFETY: only opens and closes the library; its initialisers are NVIDIA's.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        gpu.bind()?;
        let handle = result::create_handle().map_err(library_error)?;
        let workspace = DeviceMemory::zeroed(gpu, WORKSPACE_BYTES)?;
        Ok(Some(CublasLt { gpu: gpu.clone(), handle, workspace, plans: Mutex::default(), tuned: Tuned::default() }))
    }

    /// Queues one product on the GPU's stream. The first one of a shape takes longer on the host.
    ///
    /// # Errors
    /// `InvalidArgument` for a range too short, `Unsupported` when the library has no algorithm, `Driver`.
    pub fn matmul(&self, p: &Matmul) -> Result<()> {
        check(p)?;
        if p.num_tokens == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        let out_dtype = if p.out_dtype == DType::F32 { sys::cudaDataType::CUDA_R_32F } else { sys::cudaDataType::CUDA_R_16BF };
        let addresses = p.out.address() | p.x.address() | p.w.address() | MAX_ALIGNMENT;
        let alignment = 1 << addresses.trailing_zeros();
        let key = PlanKey { num_tokens: p.num_tokens, n: p.n, k: p.k, ld_out: p.ld_out, out_dtype, alignment, bias: p.bias.is_some() };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.plan(&key, p)?),
        };
        self.run(&plan.descriptors, p, &plan.algo)
    }

    fn run(&self, descriptors: &Descriptors, p: &Matmul, algo: &sys::cublasLtMatmulAlgo_t) -> Result<()> {
        let Descriptors { operation, w, x, out } = descriptors;
        if let Some(bias) = p.bias {
            operation.set_bias(bias.address())?;
        }
        let (alpha, beta) = (1.0f32, 0.0f32);
        let pointer = |range: DeviceBytes| range.as_ptr::<c_void>();
        // SAFETY: descriptors are borrowed; the ranges were checked against the shape; the stream belongs to the current context.
        let answer = unsafe {
            result::matmul(
                self.handle,
                operation.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointer(p.w),
                w.0,
                pointer(p.x),
                x.0,
                pointer(p.out),
                out.0,
                pointer(p.out),
                out.0,
                algo,
                pointer(self.workspace.bytes()),
                WORKSPACE_BYTES,
                self.gpu.raw_stream().cast(),
            )
        };
        answer.map_err(library_error)
    }

    fn plan(&self, key: &PlanKey, p: &Matmul) -> Result<Plan> {
        let descriptors = Descriptors::new(key, p)?;
        let algo = self.choose(&descriptors, key, p)?;
        Ok(Plan { descriptors, algo })
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_err() {
            return;
        }
        let _waits = waits_for_streams();
        // SAFETY: made by `open`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn check(p: &Matmul) -> Result<()> {
    let invalid = |reason: String| Err(KernelError::InvalidArgument { op: OP, reason });
    if p.bias.is_some_and(|bias| bias.len() < p.n * 2 || !bias.address().is_multiple_of(16) || p.out_dtype != DType::BF16) {
        return invalid(format!("bias {:?} of {} values for {:?}", p.bias, p.n, p.out_dtype));
    }
    if p.n == 0 || p.k == 0 || p.ld_out < p.n || p.out_dtype == DType::F16 {
        return invalid(format!("{p:?}"));
    }
    let out_elements = p.num_tokens.saturating_sub(1) * p.ld_out + p.n;
    for (name, range, needed) in
        [("out", p.out, out_elements * p.out_dtype.size()), ("x", p.x, p.num_tokens * p.k * 2), ("w", p.w, p.n * p.k * 2)]
    {
        if p.num_tokens > 0 && range.len() < needed {
            return invalid(format!("{name} holds {} bytes, needs {needed}", range.len()));
        }
    }
    Ok(())
}

fn library_error(error: result::CublasError) -> KernelError {
    KernelError::Driver(format!("cublasLt: {error:?}"))
}
