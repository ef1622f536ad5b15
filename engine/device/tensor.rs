//! Tensors: a device buffer with a two-dimensional shape. Owned by the workspace, lent to ops.

use std::sync::Arc;

pub use pagoda_kernels::ops::DType;

use super::Device;
use crate::weights::dequant::dequantize_row;
use crate::weights::format::WeightFormat;
use crate::weights::mapped::MappedBytes;
use crate::weights::quant::CodedMatrix;

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

    /// The bytes of rows `start .. start + len`.
    pub fn rows(&self, start: usize, len: usize) -> &[u8] {
        let row = self.row_bytes();
        &self.bytes.as_slice()[start * row..][..len * row]
    }

    /// The rows `start .. start + len` as a weight of their own, sharing the bytes.
    pub fn slice_rows(&self, start: usize, len: usize) -> HostWeight {
        let row = self.row_bytes();
        HostWeight { name: self.name.clone(), format: self.format, n: len, k: self.k, bytes: self.bytes.slice(start * row, len * row) }
    }
}

/// A weight matrix on the host, in either of its two forms.
#[derive(Clone)]
pub enum HostMatrix {
    /// Rows of elements or blocks: dense checkpoints and GGUF.
    Rows(HostWeight),
    /// Codes with scales: quantised safetensors checkpoints.
    Coded(Box<CodedMatrix>),
}

impl From<CodedMatrix> for HostMatrix {
    fn from(matrix: CodedMatrix) -> HostMatrix {
        HostMatrix::Coded(Box::new(matrix))
    }
}

impl HostMatrix {
    /// Output rows.
    pub fn n(&self) -> usize {
        match self {
            HostMatrix::Rows(weight) => weight.n,
            HostMatrix::Coded(matrix) => matrix.n,
        }
    }

    /// Input columns.
    pub fn k(&self) -> usize {
        match self {
            HostMatrix::Rows(weight) => weight.k,
            HostMatrix::Coded(matrix) => matrix.k,
        }
    }

    /// Bytes of one row, without scales that lie elsewhere.
    pub fn row_bytes(&self) -> usize {
        match self {
            HostMatrix::Rows(weight) => weight.row_bytes(),
            HostMatrix::Coded(matrix) => matrix.row_bytes(),
        }
    }

    /// out = row `row` in f32, exactly; `[k]`.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        match self {
            HostMatrix::Rows(weight) => dequantize_row(weight.format, weight.rows(row, 1), out),
            HostMatrix::Coded(matrix) => matrix.dequantize_row(row, out),
        }
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        match self {
            HostMatrix::Rows(weight) => weight.bytes.len(),
            HostMatrix::Coded(matrix) => matrix.bytes(),
        }
    }

    /// The matrix as rows: its own, or bf16 made of the codes.
    pub fn into_rows(self) -> HostWeight {
        match self {
            HostMatrix::Rows(weight) => weight,
            HostMatrix::Coded(matrix) => matrix.to_bf16(),
        }
    }
}
