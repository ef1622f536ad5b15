//! Which of the formats a matrix of a checkpoint is stored in, told by the tensors that are there, and its tensors with their types and
//! shapes checked. Nothing but headers and small metadata is read until `Source::read`.

use half::{bf16, f16};

use super::config::{Method, QuantConfig};
use super::quantize::at_load::LoadFormat;
use super::scales::ScaleValues;
use super::{awq, bitsandbytes, compressed, floats, gptq, marlin};
use crate::device::{CodedForm, HostMatrix, HostWeight, MatrixForm, StoredForm};
use crate::error::{EngineError, Result};
use crate::weights::mapped::MappedBytes;
use crate::weights::store::{StoredTensor, TensorStore, aligned};

/// A matrix that can be read.
pub(crate) struct Source {
    /// Bytes it will take.
    pub bytes: usize,
    /// What it will be.
    pub form: MatrixForm,
    read: Box<dyn FnOnce() -> Result<HostMatrix>>,
}

impl Source {
    /// A matrix of `bytes` bytes that `read` makes.
    pub(super) fn new(bytes: usize, form: MatrixForm, read: impl FnOnce() -> Result<HostMatrix> + 'static) -> Source {
        Source { bytes, form, read: Box::new(read) }
    }

    /// A matrix that needs no more reading.
    pub(super) fn of(matrix: HostMatrix) -> Source {
        Source::new(matrix.bytes(), matrix.form(), || Ok(matrix))
    }

    /// Rows as a file stores them.
    pub fn rows(weight: HostWeight) -> Source {
        let form = MatrixForm { n: weight.n, k: weight.k, stored: StoredForm::Rows(weight.format) };
        Source::new(weight.bytes.len(), form, || Ok(HostMatrix::Rows(aligned(weight))))
    }

    /// The same matrix with the size and form that it has when it was quantised, if it is dense and of a shape that the format takes. It is
    /// still read as it is: a device quantises.
    pub fn load_in(self, format: LoadFormat) -> Source {
        let MatrixForm { n, k, stored } = self.form;
        let is_dense = matches!(stored, StoredForm::Rows(stored) if stored.is_dense());
        match format.bytes(n, k).filter(|_| is_dense) {
            Some(bytes) => Source { bytes, form: MatrixForm::loaded_in(format, n, k), read: self.read },
            None => self,
        }
    }

    /// Reads and, where needed, repacks.
    ///
    /// # Errors
    /// The content contradicts itself; shapes were checked before.
    pub fn read(self) -> Result<HostMatrix> {
        (self.read)()
    }
}

/// The matrix `stem` of shape `[n, k]`, in whichever format it is there.
///
/// # Errors
/// It is missing, of a wrong shape or type, or in a layout that is not read: the error names the tensor and what is supported.
pub(crate) fn find(store: &TensorStore, config: Option<&QuantConfig>, stem: &str, n: usize, k: usize) -> Result<Source> {
    let site = Site { store, stem, n, k };
    let weight = site.get("weight").map(|tensor| tensor.type_name.as_str());
    if site.get("weight").is_some_and(|tensor| tensor.format.is_some()) {
        return store.matrix(&site.name("weight"), n, k).map(Source::rows);
    }
    if let Some(kind) = bitsandbytes::QUANT_TYPES.iter().find(|kind| site.get(kind.key).is_some()) {
        return bitsandbytes::find(&site, kind);
    }
    if site.get("qweight").is_some() {
        return match config.map(|config| &config.method) {
            Some(Method::Awq) => awq::find(&site),
            Some(Method::Gptq(gptq)) => gptq::find(&site, gptq),
            _ => Err(site.error("qweight", "is there, but no quantization_config of method awq or gptq says how it is packed")),
        };
    }
    if site.get("B").is_some() {
        return marlin::find(&site);
    }
    if let Some(packed) = site.get("weight_packed") {
        return match packed.type_name.as_str() {
            "I32" => compressed::find_packed(&site),
            _ if site.get("weight_global_scale").is_some() => floats::find_nvfp4(&site),
            _ => floats::find_mxfp4(&site),
        };
    }
    match weight {
        Some("F8_E4M3") => floats::find_fp8(&site, config.map_or([128, 128], |config| config.block)),
        Some("I8") if site.get("SCB").is_some() => bitsandbytes::find_int8(&site),
        Some("I8") => compressed::find_int8(&site),
        Some("U8") if site.get("weight_scale_2").is_some() => floats::find_modelopt(&site),
        _ => store.matrix(&site.name("weight"), n, k).map(Source::rows),
    }
}

/// A place in a checkpoint: the tensors `stem.*` of one matrix.
pub(super) struct Site<'a> {
    store: &'a TensorStore,
    stem: &'a str,
    /// Output rows.
    pub n: usize,
    /// Input columns.
    pub k: usize,
}

impl Site<'_> {
    /// The full name of a tensor.
    pub fn name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.stem)
    }

    /// The tensor, if it is there.
    pub fn get(&self, suffix: &str) -> Option<&StoredTensor> {
        self.store.tensors.get(self.name(suffix).as_str())
    }

    /// An error about the tensor.
    pub fn error(&self, suffix: &str, reason: impl std::fmt::Display) -> EngineError {
        self.store.error(&self.name(suffix), reason)
    }

    /// The tensor, whatever its shape.
    pub fn require(&self, suffix: &str) -> Result<&StoredTensor> {
        self.get(suffix).ok_or_else(|| self.error(suffix, "is missing"))
    }

    /// The tensor's bytes, its type being one of `types` and its shape one of `shapes`.
    pub fn bytes(&self, suffix: &str, types: &[&str], shapes: &[&[usize]]) -> Result<MappedBytes> {
        let tensor = self.require(suffix)?;
        if !types.contains(&tensor.type_name.as_str()) {
            return Err(self.error(suffix, format_args!("is of type {}, expected {}", tensor.type_name, types.join(" or "))));
        }
        if !shapes.contains(&tensor.shape.as_slice()) {
            let expected: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
            return Err(self.error(suffix, format_args!("has shape {:?}, expected {}", tensor.shape, expected.join(" or "))));
        }
        Ok(tensor.bytes.clone())
    }

    /// A tensor of one f32, f16 or bf16.
    pub fn scalar(&self, suffix: &str) -> Result<f32> {
        let bytes = self.bytes(suffix, &["F32", "F16", "BF16"], &[&[], &[1]])?;
        let value = match (bytes.as_slice(), self.require(suffix)?.type_name.as_str()) {
            (&[a, b, c, d], _) => f32::from_le_bytes([a, b, c, d]),
            (&[a, b], "F16") => f16::from_le_bytes([a, b]).to_f32(),
            (&[a, b], _) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => f32::NAN,
        };
        let finite = value.is_finite() && value != 0.0;
        if finite { Ok(value) } else { Err(self.error(suffix, format_args!("is {value}, expected a finite number that is not 0"))) }
    }

    /// Scales in f32, f16 or bf16 of one of the shapes.
    pub fn scales(&self, suffix: &str, shapes: &[&[usize]]) -> Result<ScaleValues> {
        let bytes = self.bytes(suffix, &["F32", "F16", "BF16"], shapes)?;
        Ok(match self.require(suffix)?.type_name.as_str() {
            "F32" => ScaleValues::F32(bytes),
            "F16" => ScaleValues::F16(bytes),
            _ => ScaleValues::BF16(bytes),
        })
    }

    /// Bits of a code, where `words` 32-bit words hold `values` of them.
    pub fn bits(&self, suffix: &str, words: usize, values: usize) -> Result<usize> {
        match words.saturating_mul(32) {
            bits if bits == 4 * values => Ok(4),
            bits if bits == 8 * values => Ok(8),
            bits => {
                let what =
                    if values > 0 && bits.is_multiple_of(values) { format!("{} bits", bits / values) } else { "an odd layout".into() };
                Err(self.error(suffix, format_args!("holds {values} codes in {words} words ({what}), supported are 4 and 8 bits")))
            }
        }
    }

    /// Columns of a group, where `groups` of them make a row.
    pub fn group(&self, suffix: &str, groups: usize, configured: Option<usize>) -> Result<usize> {
        if let Some(size) = configured.filter(|size| self.k.div_ceil((*size).max(1)) == groups) {
            return Ok(size.min(self.k));
        }
        if groups == 0 || !self.k.is_multiple_of(groups) {
            return Err(self.error(suffix, format_args!("has {groups} groups, which do not divide {} columns", self.k)));
        }
        Ok(self.k / groups)
    }

    /// The matrix as codes.
    pub fn form(&self, coded: CodedForm) -> MatrixForm {
        MatrixForm { n: self.n, k: self.k, stored: StoredForm::Coded(coded) }
    }

    /// Name of the matrix, for errors.
    pub fn label(&self) -> std::sync::Arc<str> {
        self.stem.into()
    }
}
