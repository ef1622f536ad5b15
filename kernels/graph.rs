//! CUDA graphs: what a stream was given between two calls, to be queued again by one call. Used by `engine/device/cuda`.
//!
//! Kernel parameters are kept as they were: a graph reads and writes the same addresses every time. Kernels that were launched to start
//! early (cuda/common/launch.cuh) do so in a graph too.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::context::driver_error;
use crate::gpu::{Gpu, changes_streams};
use crate::status::Result;

/// A stream that keeps what it is given instead of running it. Dropped before `end`, it forgets it.
pub struct Capture {
    gpu: Arc<Gpu>,
    open: bool,
}

impl Capture {
    /// Begins. Until `end` this thread only launches; it neither allocates nor waits.
    ///
    /// # Errors
    /// `Driver`.
    pub fn begin(gpu: &Arc<Gpu>) -> Result<Capture> {
        gpu.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `gpu`.
        unsafe { result::stream::begin_capture(gpu.raw_stream(), mode) }.map_err(|e| driver_error("cuStreamBeginCapture", e))?;
        Ok(Capture { gpu: gpu.clone(), open: true })
    }

    /// Makes a graph of what was given.
    ///
    /// # Errors
    /// `Driver`: something in it cannot be kept.
    pub fn end(mut self) -> Result<Graph> {
        let graph = self.close()?;
        let flags = sys::CUgraphInstantiate_flags(0);
        let made = {
            let _changes = changes_streams();
            // SAFETY: the graph was just made and is destroyed once, below.
            unsafe { result::graph::instantiate(graph, flags) }.map_err(|e| driver_error("cuGraphInstantiate", e))
        };
        // SAFETY: as above; an instance does not need it any more.
        let destroyed = unsafe { result::graph::destroy(graph) }.map_err(|e| driver_error("cuGraphDestroy", e));
        let graph = Graph { gpu: self.gpu.clone(), instance: made? };
        destroyed?;
        let _changes = changes_streams();
        // SAFETY: instance and stream are alive.
        unsafe { result::graph::upload(graph.instance, graph.gpu.raw_stream()) }.map_err(|e| driver_error("cuGraphUpload", e))?;
        Ok(graph)
    }

    fn close(&mut self) -> Result<sys::CUgraph> {
        self.open = false;
        self.gpu.bind()?;
        // SAFETY: `begin` put this stream into capture.
        unsafe { result::stream::end_capture(self.gpu.raw_stream()) }.map_err(|e| driver_error("cuStreamEndCapture", e))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if let Ok(graph) = self.close()
            && !graph.is_null()
        {
            // SAFETY: just made, used by nobody.
            let _ = unsafe { result::graph::destroy(graph) };
        }
    }
}

/// Kernels and copies in their order, ready to be queued.
pub struct Graph {
    gpu: Arc<Gpu>,
    instance: sys::CUgraphExec,
}

// SAFETY: an instance may be used from any thread, by one at a time; it has no shared reference that reaches another thread.
unsafe impl Send for Graph {}

impl Graph {
    /// Queues it all.
    ///
    /// # Errors
    /// `Driver`.
    pub fn launch(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: instance and stream are alive; whoever captured it keeps the memory that it uses.
        unsafe { result::graph::launch(self.instance, self.gpu.raw_stream()) }.map_err(|e| driver_error("cuGraphLaunch", e))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            let _changes = changes_streams();
            // SAFETY: ours, destroyed once, and it does not run any more.
            let _ = unsafe { result::graph::exec_destroy(self.instance) };
        }
    }
}
