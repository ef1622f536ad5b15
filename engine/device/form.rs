//! What is known of a weight matrix before it is read, and what it is for: a device plans its memory by it, and decides how to keep it.

use super::tensor::HostMatrix;
use crate::error::Result;
use crate::weights::format::WeightFormat;
use crate::weights::quant::{Code, CodedMatrix, LoadFormat, Zeros};

/// What a matrix does in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixUse {
    /// A projection of attention or of a dense MLP.
    Projection,
    /// Gate and up of a dense MLP, which SiLU joins.
    GateUp,
    /// Embedding or head: its rows are read one by one, or all for logits.
    Table,
    /// A projection of an expert: many of them lie side by side.
    Expert,
    /// Chooses experts.
    Router,
}

impl MatrixUse {
    /// Whether it is a projection of a layer without experts.
    pub fn is_projection(self) -> bool {
        matches!(self, MatrixUse::Projection | MatrixUse::GateUp)
    }
}

/// How a device is to take a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixLoad {
    /// What it does.
    pub usage: MatrixUse,
    /// What it becomes where it is dense and of a shape that the format takes (`LoadFormat::convert`); a device may do that itself.
    pub quantize: Option<LoadFormat>,
}

/// Shape and storage of a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatrixForm {
    /// Output rows.
    pub n: usize,
    /// Input columns.
    pub k: usize,
    /// How its weights are stored.
    pub stored: StoredForm,
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StoredForm {
    /// Rows of elements or blocks.
    Rows(WeightFormat),
    /// Codes with scales.
    Coded(CodedForm),
}

/// Codes with scales, as `CodedMatrix` holds them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodedForm {
    /// What codes stand for.
    pub code: CodeForm,
    /// Rows that share a scale.
    pub rows: usize,
    /// Columns that share a scale.
    pub cols: usize,
    /// Zero points.
    pub zeros: ZeroForm,
    /// Whether columns are stored in an order of their own.
    pub is_ordered: bool,
}

/// What codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeForm {
    /// 4 bits.
    Four,
    /// A byte.
    U8,
    /// An e4m3fn byte.
    E4M3,
}

/// Zero points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ZeroForm {
    /// None.
    None,
    /// One for the matrix.
    Same(f32),
    /// One a scale.
    Groups,
}

impl CodedForm {
    /// Symmetric codes in their own order.
    pub fn plain(code: CodeForm, rows: usize, cols: usize) -> CodedForm {
        CodedForm { code, rows, cols, zeros: ZeroForm::None, is_ordered: false }
    }
}

impl MatrixForm {
    /// Numbers in the matrix.
    pub fn values(&self) -> usize {
        self.n * self.k
    }

    /// What a dense matrix `[n, k]` is after quantising at load.
    pub fn loaded_in(format: LoadFormat, n: usize, k: usize) -> MatrixForm {
        let coded = match format {
            LoadFormat::Nf4 => CodedForm::plain(CodeForm::Four, 1, 64),
            LoadFormat::Fp4 => CodedForm::plain(CodeForm::Four, 1, 16),
            LoadFormat::Fp8 => CodedForm::plain(CodeForm::E4M3, 1, k),
            LoadFormat::Int8 => CodedForm { zeros: ZeroForm::Same(128.0), ..CodedForm::plain(CodeForm::U8, 1, k) },
        };
        MatrixForm { n, k, stored: StoredForm::Coded(coded) }
    }
}

impl HostMatrix {
    /// The matrix as `load` wants it, converted on the host.
    ///
    /// # Errors
    /// As `LoadFormat::convert`.
    pub fn converted(self, load: MatrixLoad) -> Result<HostMatrix> {
        match load.quantize {
            Some(format) => format.convert(self),
            None => Ok(self),
        }
    }

    /// Its form.
    pub fn form(&self) -> MatrixForm {
        match self {
            HostMatrix::Rows(weight) => MatrixForm { n: weight.n, k: weight.k, stored: StoredForm::Rows(weight.format) },
            HostMatrix::Coded(matrix) => matrix.form(),
        }
    }
}

impl CodedMatrix {
    /// Its form.
    pub fn form(&self) -> MatrixForm {
        let code = match self.code {
            Code::Four { .. } => CodeForm::Four,
            Code::U8 => CodeForm::U8,
            Code::E4M3 => CodeForm::E4M3,
        };
        let zeros = match self.zeros {
            Zeros::None => ZeroForm::None,
            Zeros::Same(zero) => ZeroForm::Same(zero),
            Zeros::Groups { .. } => ZeroForm::Groups,
        };
        let coded = CodedForm { code, rows: self.scales.rows, cols: self.scales.cols, zeros, is_ordered: self.order.is_some() };
        MatrixForm { n: self.n, k: self.k, stored: StoredForm::Coded(coded) }
    }
}
