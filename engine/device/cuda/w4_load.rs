//! 4-bit matrices on their way to tiles: codes go up as they are, dense rows are quantised here, and nothing dense stays.
//!
//! Parts of a layer that are of one form become one matrix. Codes, scales and zero points of all rows lie in the load room for a while,
//! row-major, until they are packed; dense rows pass through it piece by piece.

use pagoda_kernels::DeviceMemory;
use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::w4::{TILE_COLS, W4Codes, W4Layout, W4Matrix, w4_pack};
use rayon::prelude::*;

use super::blocks::block_format;
use super::memory::read_parallel;
use super::staging::HALF_BYTES;
use super::w4::{W4Weight, scratch_bytes};
use super::w4_quantize::{QuantisedRows, of_format};
use super::{CudaDevice, CudaWeight, Stored, engine_error};
use crate::device::{HostMatrix, MatrixLoad, MatrixUse};
use crate::error::Result;
use crate::weights::format::WeightFormat;
use crate::weights::quant::books::Book;
use crate::weights::quant::coded::Nibble;
use crate::weights::quant::quantize::at_load::not_finite;
use crate::weights::quant::{Code, CodedMatrix, LoadFormat, Zeros, blocks};

/// Every array of the load room begins at a multiple of this.
const ALIGN: usize = 256;
/// Bytes a value of host scales is.
const SCALE_BYTES: usize = 4;

/// What parts have in common that become one matrix in tiles.
#[derive(Clone, PartialEq)]
struct Kin<'a> {
    k: usize,
    book: Book,
    first: Nibble,
    group: usize,
    /// What is added to every zero point, where there are any.
    plus: Option<u8>,
    order: Option<&'a [u32]>,
}

/// What is needed to be packed; None: it becomes dense.
fn kin(part: &HostMatrix, quantize: Option<LoadFormat>) -> Option<Kin<'_>> {
    let kin = match part {
        HostMatrix::Coded(matrix) => coded_kin(matrix)?,
        HostMatrix::Rows(rows) => {
            let (book, first, group) = quantize.filter(|format| format.takes(part)).and_then(of_format)?;
            Kin { k: rows.k, book, first, group, plus: None, order: None }
        }
    };
    layout(part.n(), kin.k, kin.group, kin.plus.is_some()).is_supported().then_some(kin)
}

fn coded_kin(matrix: &CodedMatrix) -> Option<Kin<'_>> {
    let Code::Four { book, first } = matrix.code else { return None };
    let (zero, plus) = match &matrix.zeros {
        Zeros::None => (0.0, None),
        Zeros::Same(zero) => (*zero, None),
        Zeros::Groups { plus, .. } => (0.0, Some(*plus)),
    };
    let book = book.map(|value| value - zero);
    Some(Kin { k: matrix.k, book, first, group: matrix.scales.cols, plus, order: matrix.order.as_deref() })
}

pub(super) fn layout(n: usize, k: usize, group: usize, zeros: bool) -> W4Layout {
    W4Layout { n, k, group, zeros, interleaved: false }
}

/// The layout of neighbouring parts in one matrix; all of the layer's parts are `whole`.
pub(super) fn stacked_layout(rows: &[usize], whole: bool, one: W4Layout, usage: MatrixUse) -> W4Layout {
    let n: usize = rows.iter().sum();
    let halves = rows.len() == 1 || (rows.len() == 2 && rows[0] == rows[1]);
    W4Layout { n, interleaved: usage == MatrixUse::GateUp && whole && halves && n.is_multiple_of(16), ..one }
}

/// `Scales::unit` of all parts; None: unknown, or not one for all.
fn common_unit(parts: &[HostMatrix], quantize: Option<LoadFormat>) -> Option<f32> {
    let unit = |part: &HostMatrix| match part {
        HostMatrix::Coded(matrix) => matrix.scales.unit(),
        // Over a power of two.
        HostMatrix::Rows(_) => (quantize == Some(LoadFormat::Fp4)).then_some(1.0),
    };
    let first = unit(&parts[0])?;
    parts.iter().all(|part| unit(part) == Some(first)).then_some(first)
}

/// Arrays of the load room.
struct LoadRoom {
    codes: DeviceBytes,
    scales: DeviceBytes,
    zeros: DeviceBytes,
    /// One f32: the largest scale of what is quantised here.
    largest: DeviceBytes,
    /// One f32: the largest value of a part.
    absmax: DeviceBytes,
    /// Dense rows: a piece, or a whole part that has one scale above all.
    dense: DeviceBytes,
}

impl LoadRoom {
    fn lens(layout: &W4Layout, dense: usize) -> [usize; 6] {
        let scales = layout.n * layout.groups();
        let lens = [layout.n * layout.k / 2, scales * SCALE_BYTES, if layout.zeros { scales } else { 0 }, SCALE_BYTES, SCALE_BYTES, dense];
        lens.map(|len| len.next_multiple_of(ALIGN))
    }

    fn new(memory: DeviceBytes, layout: &W4Layout, dense: usize) -> LoadRoom {
        let mut start = 0;
        let arrays = LoadRoom::lens(layout, dense).map(|len| {
            start += len;
            memory.from(start - len).first(len)
        });
        let [codes, scales, zeros, largest, absmax, dense] = arrays;
        LoadRoom { codes, scales, zeros, largest, absmax, dense }
    }
}

/// Bytes of dense rows that are in the load room at once.
fn dense_bytes(parts: &[HostMatrix], quantize: Option<LoadFormat>) -> usize {
    let whole = |part: &HostMatrix| match part {
        HostMatrix::Rows(weight) if quantize == Some(LoadFormat::Fp4) => weight.bytes.len(),
        _ => 0,
    };
    parts.iter().map(whole).fold(HALF_BYTES, usize::max)
}

impl CudaDevice {
    /// Takes the parts of a linear layer; neighbours of one 4-bit form, or of blocks of one format, become one matrix.
    pub(super) fn upload_parts(&self, parts: Vec<HostMatrix>, load: MatrixLoad) -> Result<Vec<CudaWeight>> {
        if !is_packed(load.usage) {
            return parts.into_iter().map(|part| self.upload_matrix(part, load)).collect();
        }
        let parts: Vec<HostMatrix> = parts.into_iter().map(apart).collect();
        let blocks = |part: &HostMatrix| block_format(&part.form(), load.usage);
        let same = |a: &HostMatrix, b: &HostMatrix| match (kin(a, load.quantize), blocks(a)) {
            (Some(a), _) => Some(a) == kin(b, load.quantize),
            (None, Some(format)) => (Some(format), a.k()) == (blocks(b), b.k()) && kin(b, load.quantize).is_none(),
            (None, None) => false,
        };
        let upload = |run: &[HostMatrix]| match (kin(&run[0], load.quantize), blocks(&run[0])) {
            (Some(kin), _) => self.upload_tiles(run, &kin, run.len() == parts.len(), load),
            (None, Some(format)) => self.upload_blocks(run, format, load),
            (None, None) => self.upload_matrix(run[0].clone(), load),
        };
        parts.chunk_by(same).map(upload).collect()
    }

    fn upload_tiles(&self, parts: &[HostMatrix], kin: &Kin<'_>, whole: bool, load: MatrixLoad) -> Result<CudaWeight> {
        let rows: Vec<usize> = parts.iter().map(HostMatrix::n).collect();
        let layout = stacked_layout(&rows, whole, layout(0, kin.k, kin.group, kin.plus.is_some()), load.usage);
        let mut memory = self.load_room.lock();
        let dense = dense_bytes(parts, load.quantize);
        let needed = LoadRoom::lens(&layout, dense).iter().sum();
        let bytes = match memory.as_ref().map(DeviceMemory::bytes).filter(|bytes| bytes.len() >= needed) {
            Some(bytes) => bytes,
            None => {
                *memory = None;
                memory.insert(self.zeroed(needed)?).bytes()
            }
        };
        let room = LoadRoom::new(bytes, &layout, dense);
        let largest = self.fill_room(&room, parts, &layout, load.quantize)?;
        let (scale_factor, short_scales) = W4Matrix::scales_in(largest, common_unit(parts, load.quantize));
        let tiles = self.weights.alloc(layout.bytes()).map_err(engine_error)?;
        let matrix = W4Matrix { tiles, layout, book: kin.book, scale_factor, short_scales };
        let zeros = kin.plus.map(|plus| (room.zeros, plus));
        let codes = W4Codes { codes: room.codes, first_high: kin.first == Nibble::High, scales: room.scales, zeros };
        self.launch(|stream| w4_pack(&matrix, &codes, stream))?;
        let order = kin.order.map(|order| {
            let bytes = self.weights.alloc(order.len() * 4).map_err(engine_error)?;
            self.staging.lock().upload(bytes, bytemuck::cast_slice(order)).map(|()| bytes)
        });
        let mut weight = W4Weight { matrix, order: order.transpose()?, dense: None };
        if self.keeps_dense_copies() && load.usage != MatrixUse::Table {
            let dense = self.weights.alloc(layout.n * layout.k * 2).map_err(engine_error)?;
            self.dequantize_all(&weight, dense)?;
            weight.dense = Some(dense);
        }
        let takes_fp4 = self.takes_fp4(&weight);
        if takes_fp4 {
            self.fp4_room.lock().expect(layout.k);
        }
        self.need_scratch(scratch_bytes(&layout, weight.order.is_some(), weight.dense.is_some() || takes_fp4));
        Ok(CudaWeight { stored: Stored::Tiles(weight), n: layout.n, k: layout.k })
    }

    /// Brings codes, scales and zero points of all rows to the room; the largest scale.
    fn fill_room(&self, room: &LoadRoom, parts: &[HostMatrix], layout: &W4Layout, quantize: Option<LoadFormat>) -> Result<f32> {
        let (row_bytes, groups) = (layout.k / 2, layout.groups());
        let quantised_here = parts.iter().any(|part| matches!(part, HostMatrix::Rows(_)));
        if quantised_here {
            self.gpu.zero(room.largest).map_err(engine_error)?;
        }
        let (mut first, mut largest) = (0, 0.0f32);
        for part in parts {
            let (codes, scales) = (room.codes.from(first * row_bytes), room.scales.from(first * groups * SCALE_BYTES));
            match part {
                HostMatrix::Coded(matrix) => {
                    let of_part =
                        self.upload_coded_rows(matrix, codes, scales, room.zeros.from(if layout.zeros { first * groups } else { 0 }))?;
                    largest = largest.max(of_part);
                }
                HostMatrix::Rows(weight) => {
                    let out = QuantisedRows { codes, scales, largest: room.largest, absmax: room.absmax, dense: room.dense };
                    self.quantize_dense(weight, &out, quantize)?
                }
            }
            first += part.n();
        }
        if quantised_here {
            let mut bytes = [0; 4];
            self.gpu.copy_to_host(&mut bytes, room.largest).map_err(engine_error)?;
            let of_rows = f32::from_le_bytes(bytes);
            if quantize == Some(LoadFormat::Fp4) && !of_rows.is_finite() {
                return Err(not_finite(&parts.iter().map(name).collect::<Vec<_>>().join(", ")));
            }
            largest = largest.max(of_rows);
        }
        Ok(largest)
    }

    fn upload_coded_rows(&self, matrix: &CodedMatrix, codes: DeviceBytes, scales: DeviceBytes, zeros: DeviceBytes) -> Result<f32> {
        let mut staging = self.staging.lock();
        staging.upload_with(codes, matrix.codes.len(), 1, |start, piece| read_parallel(piece, &matrix.codes, start))?;
        let per_row = matrix.scales.per_row;
        let mut values = vec![0.0f32; matrix.n * per_row];
        values.par_chunks_exact_mut(per_row).enumerate().for_each(|(row, out)| matrix.scales.read_row(row, out));
        staging.upload(scales, bytemuck::cast_slice(&values))?;
        if let Zeros::Groups { codes, .. } = &matrix.zeros {
            // On the grid of the scales, of which a row may share one with others.
            let rows = matrix.scales.rows;
            let row = |row: usize| &codes.as_slice()[row / rows * per_row..][..per_row];
            let plane: Vec<u8> = if rows == 1 { codes.as_slice().to_vec() } else { (0..matrix.n).flat_map(row).copied().collect() };
            staging.upload(zeros, &plane)?;
        }
        let finite = |max: f32, scale: &f32| if scale.is_finite() { max.max(scale.abs()) } else { max };
        Ok(values.par_iter().fold(|| 0.0, finite).reduce(|| 0.0, f32::max))
    }

    /// Gives the load room back and takes the scratch.
    pub(super) fn end_of_weights(&self) -> Result<()> {
        *self.load_room.lock() = None;
        self.dense_scratch(self.needed_scratch()).map(|_| ())
    }
}

/// Blocks that are codes and scales, apart; the rest as it is.
fn apart(part: HostMatrix) -> HostMatrix {
    match part {
        HostMatrix::Rows(weight) if weight.format == WeightFormat::Q4_0 && weight.k.is_multiple_of(TILE_COLS) => {
            HostMatrix::from(blocks::q4_0(&weight))
        }
        other => other,
    }
}

fn name(part: &HostMatrix) -> &str {
    match part {
        HostMatrix::Rows(weight) => &weight.name,
        HostMatrix::Coded(matrix) => &matrix.name,
    }
}

/// Whether matrices for this use stay packed, in tiles or blocks.
pub(super) fn is_packed(usage: MatrixUse) -> bool {
    usage.is_projection() || usage == MatrixUse::Table
}
