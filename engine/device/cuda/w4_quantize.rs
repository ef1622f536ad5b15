//! Dense rows become 4-bit codes on the GPU: NF4 piece by piece, NVFP4 part by part, since a part's largest value is in all its scales.

use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::w4_quantize::{NF4_BLOCK, NVFP4_GROUP, Nf4Blocks, Nvfp4Groups, absmax, nf4_quantize, nvfp4_quantize};

use super::memory::read_parallel;
use super::{CudaDevice, engine_error};
use crate::device::{DType, HostWeight};
use crate::error::Result;
use crate::weights::format::WeightFormat;
use crate::weights::quant::LoadFormat;
use crate::weights::quant::books::{Book, E2M1, NF4};
use crate::weights::quant::coded::Nibble;

/// Book, order of the halves of a byte, and columns of a scale of a format of four bits; None: another number of bits.
pub(super) fn of_format(format: LoadFormat) -> Option<(Book, Nibble, usize)> {
    match format {
        LoadFormat::Nf4 => Some((NF4, Nibble::High, NF4_BLOCK)),
        LoadFormat::Fp4 => Some((E2M1, Nibble::Low, NVFP4_GROUP)),
        LoadFormat::Fp8 | LoadFormat::Int8 => None,
    }
}

/// Where the codes of some rows go, and the room they need on the way.
pub(super) struct QuantisedRows {
    /// Two codes a byte.
    pub codes: DeviceBytes,
    /// f32.
    pub scales: DeviceBytes,
    /// One f32, raised to the largest scale; not finite where NVFP4 cannot be made of the values.
    pub largest: DeviceBytes,
    /// One f32, for NVFP4.
    pub absmax: DeviceBytes,
    /// Dense rows: a piece of the staging, for NVFP4 all of them.
    pub dense: DeviceBytes,
}

impl CudaDevice {
    /// Brings dense rows to the GPU and quantises them there.
    pub(super) fn quantize_dense(&self, weight: &HostWeight, out: &QuantisedRows, format: Option<LoadFormat>) -> Result<()> {
        let dtype = match weight.format {
            WeightFormat::F16 => DType::F16,
            WeightFormat::F32 => DType::F32,
            _ => DType::BF16,
        };
        if format == Some(LoadFormat::Fp4) { self.quantize_whole(weight, out, dtype) } else { self.quantize_pieces(weight, out, dtype) }
    }

    /// NF4; a piece is quantised while the host reads the next.
    fn quantize_pieces(&self, weight: &HostWeight, out: &QuantisedRows, dtype: DType) -> Result<()> {
        let fill = |start: usize, piece: &mut [u8]| read_parallel(piece, &weight.bytes, start);
        self.staging.lock().pass_through(out.dense, weight.bytes.len(), NF4_BLOCK * dtype.size(), fill, |start, len| {
            let first = start / dtype.size();
            let (codes, absmax) = (out.codes.from(first / 2), out.scales.from(first / NF4_BLOCK * 4));
            let blocks = Nf4Blocks { codes, absmax, largest: out.largest };
            self.launch(|stream| nf4_quantize(&blocks, out.dense, dtype, len / dtype.size(), stream))
        })
    }

    /// NVFP4, when the largest value is known.
    fn quantize_whole(&self, weight: &HostWeight, out: &QuantisedRows, dtype: DType) -> Result<()> {
        let count = weight.n * weight.k;
        let fill = |start: usize, piece: &mut [u8]| read_parallel(piece, &weight.bytes, start);
        self.staging.lock().upload_with(out.dense, weight.bytes.len(), dtype.size(), fill)?;
        self.gpu.zero(out.absmax).map_err(engine_error)?;
        self.launch(|stream| absmax(out.absmax, out.dense, dtype, count, stream))?;
        let groups = Nvfp4Groups { codes: out.codes, scales: out.scales, largest: out.largest };
        self.launch(|stream| nvfp4_quantize(&groups, out.absmax, out.dense, dtype, count, stream))
    }
}
