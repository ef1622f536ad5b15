//! Choice among the algorithms that the library proposes, by timing them on the operands of the first product of a shape.
//!
//! Outside of a capture only, and for many tokens only: there the best of eight takes up to 12 % less time than the library's first
//! proposal (H100, 3584 x 3584 with 4096 tokens: 149 against 170 us), while for fewer the first is as good as any. A timed product writes
//! what it would write anyway. Costs 7 to 45 ms once a matrix shape and power of two of tokens: some 0.2 s a model in all.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::sys;
use cudarc::driver;

use super::descriptors::{Descriptors, Preference};
use super::{CublasLt, Matmul, PlanKey, WORKSPACE_BYTES, library_error};
use crate::context::driver_error;
use crate::gpu::Event;
use crate::status::{KernelError, Result};

/// Products of fewer tokens take the library's first proposal.
const MIN_TOKENS: usize = 1000;
/// Algorithms that are tried.
const MAX_CANDIDATES: usize = 8;
/// Products of an algorithm that are timed after the first, which also loads its code; one where the first took longer than `LONG_MS`.
const MAX_RUNS: usize = 3;
const LONG_MS: f32 = 1.0;
/// What the library thinks best is kept unless another takes less than this share of its time.
const CLEARLY_FASTER: f32 = 0.98;

/// Products that may share an algorithm: one shape with up to this power of two of tokens.
type Bucket = PlanKey;

/// Algorithms found fastest.
#[derive(Default)]
pub(super) struct Tuned {
    algos: Mutex<HashMap<Bucket, sys::cublasLtMatmulAlgo_t>>,
}

fn bucket(key: &PlanKey) -> Bucket {
    PlanKey { num_tokens: key.num_tokens.next_power_of_two(), ..*key }
}

impl CublasLt {
    /// The algorithm for these descriptors: the tuned one where it was found or can be now, else the library's first.
    pub(super) fn choose(&self, descriptors: &Descriptors, key: &PlanKey, p: &Matmul) -> Result<sys::cublasLtMatmulAlgo_t> {
        let known = self.tuned.algos.lock().unwrap_or_else(PoisonError::into_inner).get(&bucket(key)).copied();
        if let Some(algo) = known.filter(|algo| self.accepts(descriptors, algo)) {
            return Ok(algo);
        }
        let candidates = self.candidates(descriptors, key)?;
        let first = *candidates.first().ok_or_else(|| KernelError::Unsupported { op: super::OP, reason: format!("{p:?}") })?;
        if candidates.len() == 1 || key.num_tokens < MIN_TOKENS || self.is_capturing()? {
            return Ok(first);
        }
        let algo = self.fastest(descriptors, p, &candidates)?;
        self.tuned.algos.lock().unwrap_or_else(PoisonError::into_inner).insert(bucket(key), algo);
        Ok(algo)
    }

    fn candidates(&self, descriptors: &Descriptors, key: &PlanKey) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let Descriptors { operation, w, x, out } = descriptors;
        let preference = Preference::new(key.alignment as u32)?;
        let mut found = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed() }; MAX_CANDIDATES];
        let mut count = 0;
        // SAFETY: all descriptors are alive; the array has room for as many results as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation.0,
                w.0,
                x.0,
                out.0,
                out.0,
                preference.0,
                MAX_CANDIDATES as i32,
                found.as_mut_ptr().cast(),
                &mut count,
            )
        };
        status.result().map_err(library_error)?;
        // SAFETY: zeroed, and the first `count` filled in; every field may be zero.
        let results = found.iter().take(count.max(0) as usize).map(|r| unsafe { r.assume_init() });
        Ok(results.filter(|r| r.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS).map(|r| r.algo).collect())
    }

    /// Whether the library takes this algorithm for that shape.
    fn accepts(&self, descriptors: &Descriptors, algo: &sys::cublasLtMatmulAlgo_t) -> bool {
        let Descriptors { operation, w, x, out } = descriptors;
        let mut result = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: all descriptors are alive; the result is written before it is read below.
        let status = unsafe { sys::cublasLtMatmulAlgoCheck(self.handle, operation.0, w.0, x.0, out.0, out.0, algo, result.as_mut_ptr()) };
        // SAFETY: zeroed, or filled in; every field may be zero.
        let result = unsafe { result.assume_init() };
        status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= WORKSPACE_BYTES
    }

    fn is_capturing(&self) -> Result<bool> {
        // SAFETY: the stream lives as long as the GPU.
        let status =
            unsafe { driver::result::stream::is_capturing(self.gpu.raw_stream()) }.map_err(|e| driver_error("cuStreamIsCapturing", e))?;
        Ok(status != driver::sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    fn fastest(
        &self,
        descriptors: &Descriptors,
        p: &Matmul,
        candidates: &[sys::cublasLtMatmulAlgo_t],
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let marks = (Event::new(&self.gpu)?, Event::new(&self.gpu)?);
        let mut best = (f32::INFINITY, candidates[0]);
        for (i, algo) in candidates.iter().enumerate() {
            // An algorithm that fails is none.
            let Ok(ms) = self.time(descriptors, p, algo, &marks) else { continue };
            if ms < best.0 * if i == 0 { 1.0 } else { CLEARLY_FASTER } {
                best = (ms, *algo);
            }
        }
        Ok(best.1)
    }

    fn time(&self, descriptors: &Descriptors, p: &Matmul, algo: &sys::cublasLtMatmulAlgo_t, (begin, end): &(Event, Event)) -> Result<f32> {
        let run = || -> Result<f32> {
            // Writing the workspace puts the weights of small matrices out of L2, where a step will not find them either.
            self.gpu.zero(self.workspace.bytes())?;
            begin.record()?;
            self.run(descriptors, p, algo)?;
            end.record()?;
            end.wait()?;
            end.ms_since(begin)
        };
        let runs = if run()? > LONG_MS { 1 } else { MAX_RUNS };
        let mut best = f32::INFINITY;
        for _ in 0..runs {
            best = best.min(run()?);
        }
        Ok(best)
    }
}
