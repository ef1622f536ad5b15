//! Results of sampling on their way: pinned memory that the last kernels write, an event behind them, and a few such entries in turn.

use std::sync::Arc;

use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::sampling::{LOGPROBS_BYTES, TokenRecord};
use pagoda_kernels::{Event, Gpu, PinnedMemory};

use super::{CudaDevice, engine_error};
use crate::error::Result;
use crate::sampling::{SampleOutput, TokenLogprobs};

/// Calls that may be on their way at once without new memory: two steps that are launched, in two groups of rows each.
const NUM_ENTRIES: usize = 4;

/// Results of one call: `[max_rows]` i32 tokens, then `[max_rows]` logprobs.
pub struct Entry {
    memory: PinnedMemory,
    max_rows: usize,
    done: Event,
}

impl Entry {
    /// Where kernels write tokens.
    pub fn tokens(&self) -> DeviceBytes {
        self.memory.device_bytes()
    }

    /// Where they write logprobs.
    pub fn logprobs(&self) -> DeviceBytes {
        self.memory.device_bytes().from(4 * self.max_rows)
    }

    /// The call's kernels are queued.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn mark(&self) -> Result<()> {
        self.done.record().map_err(engine_error)
    }

    /// Waits for them.
    ///
    /// # Errors
    /// What went wrong in them.
    pub fn wait(&self) -> Result<()> {
        self.done.wait().map_err(engine_error)
    }

    fn token(&self, out: usize) -> u32 {
        let bytes = &self.memory.as_slice()[4 * out..][..4];
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// What was said of `token`, which is result `out`.
    pub fn token_logprobs(&self, out: usize, token: u32) -> TokenLogprobs {
        let TokenRecord { logprob, rank, top } = TokenRecord::read(&self.memory.as_slice()[4 * self.max_rows..], out);
        TokenLogprobs { token, logprob, rank, top }
    }
}

/// Entries that nobody uses now.
pub struct Results {
    gpu: Arc<Gpu>,
    max_rows: usize,
    free: Vec<Entry>,
}

impl Results {
    /// None yet.
    pub fn new(gpu: &Arc<Gpu>) -> Results {
        Results { gpu: gpu.clone(), max_rows: 0, free: Vec::new() }
    }

    /// Takes entries for calls of at most `max_rows` rows.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn prepare(&mut self, max_rows: usize) -> Result<()> {
        self.max_rows = max_rows;
        self.free = (0..NUM_ENTRIES).map(|_| self.entry()).collect::<Result<_>>()?;
        Ok(())
    }

    fn entry(&self) -> Result<Entry> {
        let memory = PinnedMemory::zeroed(&self.gpu, self.max_rows * (4 + LOGPROBS_BYTES)).map_err(engine_error)?;
        Ok(Entry { memory, max_rows: self.max_rows, done: Event::untimed(&self.gpu).map_err(engine_error)? })
    }

    /// An entry; a new one when all are on their way.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn take(&mut self) -> Result<Entry> {
        self.free.pop().map_or_else(|| self.entry(), Ok)
    }

    /// `entry` has been read.
    pub fn give_back(&mut self, entry: Entry) {
        if entry.max_rows == self.max_rows {
            self.free.push(entry);
        }
    }
}

/// Where a row's output is.
#[derive(Clone, Debug)]
pub enum RowResult {
    /// In the entry.
    Device {
        /// Its index.
        out: usize,
        /// Whether logprobs were asked for.
        logprobs: bool,
    },
    /// Here.
    Host(SampleOutput),
}

/// Results of a `sample` that may still be on their way.
pub struct CudaPending {
    /// Results of the rows on the device.
    pub(super) entry: Option<Entry>,
    /// In the order of the rows.
    pub(super) rows: Vec<RowResult>,
}

impl CudaPending {
    /// Whether nothing is on its way.
    pub fn is_done(&self) -> bool {
        self.entry.as_ref().is_none_or(|entry| entry.done.has_passed())
    }
}

impl CudaDevice {
    /// Waits for a call and reads its results.
    pub(in crate::device::cuda) fn read_sampled(&self, pending: CudaPending) -> Result<Vec<SampleOutput>> {
        let CudaPending { entry, rows } = pending;
        if let Some(entry) = &entry {
            entry.wait()?;
        }
        let output = |row: RowResult| match (row, &entry) {
            (RowResult::Device { out, logprobs }, Some(entry)) => {
                let token = entry.token(out);
                SampleOutput { token, logprobs: logprobs.then(|| entry.token_logprobs(out, token)) }
            }
            (RowResult::Host(output), _) => output,
            (RowResult::Device { .. }, None) => unreachable!("rows on the device have an entry"),
        };
        let outputs = rows.into_iter().map(output).collect();
        if let Some(entry) = entry {
            self.sample_scratch.lock().results.give_back(entry);
        }
        Ok(outputs)
    }
}
