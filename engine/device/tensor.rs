//! Tensors: a device buffer with a two-dimensional shape. Owned by the workspace, lent to ops.

use std::sync::Arc;

pub use pagoda_kernels::ops::DType;

use super::Device;
use crate::weights::format::WeightFormat;
use crate::weights::mapped::MappedBytes;

/// Integers of a step on the host or the device: see `Device::Ints`.
pub type Ints<D> = <D as Device>::Ints;

/// A row-major matrix of activations: the first `rows` of `max_rows` are valid.
pub struct Tensor<D: Device> {
    /// Memory for `max_rows * cols` elements.
    pub buffer: D::Buffer,
    /// Rows in use; ops set it on their outputs.
    pub rows: usize,
    /// Rows allocated.
    pub max_rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Element type.
    pub dtype: DType,
}

impl<D: Device> Tensor<D> {
    /// Sets the rows in use.
    pub fn set_rows(&mut self, rows: usize) {
        assert!(rows <= self.max_rows, "{rows} rows in a tensor of {}", self.max_rows);
        self.rows = rows;
    }
}

/// A weight matrix `[n, k]` as a checkpoint stores it: a format and a range of mapped (or owned) bytes.
///
/// Rows are contiguous: row `i` is `bytes[i * row_bytes .. (i + 1) * row_bytes]` with `row_bytes = format.row_bytes(k)`.
#[derive(Clone)]
pub struct HostWeight {
    /// Name in the checkpoint, for errors.
    pub name: Arc<str>,
    /// Element or block format.
    pub format: WeightFormat,
    /// Output rows.
    pub n: usize,
    /// Input columns.
    pub k: usize,
    /// The bytes; a view into the file's mapping where possible.
    pub bytes: MappedBytes,
}

impl HostWeight {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.k)
    }

    /// The rows `start .. start + len` as a weight of their own, sharing the bytes.
    pub fn slice_rows(&self, start: usize, len: usize) -> HostWeight {
        let row = self.row_bytes();
        HostWeight { name: self.name.clone(), format: self.format, n: len, k: self.k, bytes: self.bytes.slice(start * row, len * row) }
    }
}
