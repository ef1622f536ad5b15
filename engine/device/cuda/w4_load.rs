//! 4-bit matrices on their way to tiles: codes go up as they are, dense rows are quantised here, and nothing dense stays.
//!
//! Parts of a layer that are of one form become one matrix. Codes, scales and zero points of all rows lie in the load room for a while,
//! row-major, until they are packed; dense rows pass through it piece by piece.

use pagoda_kernels::DeviceMemory;
use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::w4::{TILE_COLS, W4Codes, W4Layout, W4Matrix, w4_pack};
use rayon::prelude::*;

use super::memory::read_parallel;
use super::staging::HALF_BYTES;
use super::w4::{W4Weight, scratch_bytes};
use super::w4_quantize::{QuantisedRows, of_format};
use super::{CudaDevice, CudaWeight, Stored, engine_error};
use crate::device::{CodeForm, HostMatrix, MatrixForm, MatrixLoad, MatrixUse, StoredForm, ZeroForm};
use crate::error::Result;
use crate::weights::format::WeightFormat;
use crate::weights::quant::books::Book;
use crate::weights::quant::coded::Nibble;
use crate::weights::quant::quantize::at_load::not_finite;
use crate::weights::quant::{Code, CodedMatrix, LoadFormat, Zeros, blocks};
use crate::weights::size::WeightSize;

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

fn layout(n: usize, k: usize, group: usize, zeros: bool) -> W4Layout {
    W4Layout { n, k, group, zeros, interleaved: false }
}

/// The layout of neighbouring parts in one matrix; all of the layer's parts are `whole`.
fn stacked_layout(rows: &[usize], whole: bool, one: W4Layout, usage: MatrixUse) -> W4Layout {
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
    /// Takes the parts of a linear layer; neighbours of one 4-bit form become one matrix.
    pub(super) fn upload_parts(&self, parts: Vec<HostMatrix>, load: MatrixLoad) -> Result<Vec<CudaWeight>> {
        if !is_packed(load.usage) {
            return parts.into_iter().map(|part| self.upload_matrix(part, load)).collect();
        }
        let parts: Vec<HostMatrix> = parts.into_iter().map(apart).collect();
        let format = load.quantize;
        let mut weights = Vec::with_capacity(1);
        for run in parts.chunk_by(|a, b| kin(a, format).is_some_and(|a| Some(a) == kin(b, format))) {
            match kin(&run[0], format) {
                Some(kin) => weights.push(self.upload_tiles(run, &kin, run.len() == parts.len(), load)?),
                None => weights.push(self.upload_matrix(run[0].clone(), load)?),
            }
        }
        Ok(weights)
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
        self.need_scratch(scratch_bytes(&layout, weight.order.is_some(), weight.dense.is_some()));
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

/// Whether 4-bit matrices for this use are packed.
fn is_packed(usage: MatrixUse) -> bool {
    usage.is_projection() || usage == MatrixUse::Table
}

/// A part of a layer as it will lie on the GPU.
pub(super) enum Planned {
    /// Neighbouring parts in tiles.
    Tiles {
        /// Of all of them.
        layout: W4Layout,
        /// Whether their columns are in an order of their own.
        ordered: bool,
    },
    /// A part that is no 4-bit matrix.
    Other(MatrixForm),
}

/// The tiles that a part will be in, known before it is read.
fn planned_layout(form: &MatrixForm) -> Option<(W4Layout, bool)> {
    let (group, zeros, ordered) = match form.stored {
        StoredForm::Coded(coded) if coded.code == CodeForm::Four => (coded.cols, coded.zeros == ZeroForm::Groups, coded.is_ordered),
        StoredForm::Rows(WeightFormat::Q4_0) => (blocks::BLOCK, false, false),
        _ => return None,
    };
    let layout = layout(form.n, form.k, group, zeros);
    layout.is_supported().then_some((layout, ordered))
}

/// What layers become on a GPU, by the rules of `upload_parts`.
pub(super) fn planned_parts(weights: &WeightSize) -> impl Iterator<Item = (Planned, MatrixUse)> {
    weights.layers.iter().flat_map(|(forms, usage)| planned_layer(forms, *usage).into_iter().map(|part| (part, *usage)))
}

fn planned_layer(forms: &[MatrixForm], usage: MatrixUse) -> Vec<Planned> {
    let tiles = |form: &MatrixForm| planned_layout(form).filter(|_| is_packed(usage));
    let same = |a: &MatrixForm, b: &MatrixForm| {
        let (a, b) = (tiles(a), tiles(b));
        a.is_some_and(|(a, order)| b.is_some_and(|(b, other)| (W4Layout { n: b.n, ..a }, order) == (b, other)))
    };
    let of_run = |run: &[MatrixForm]| {
        let Some((one, ordered)) = tiles(&run[0]) else { return Planned::Other(run[0]) };
        let rows: Vec<usize> = run.iter().map(|form| form.n).collect();
        Planned::Tiles { layout: stacked_layout(&rows, run.len() == forms.len(), one, usage), ordered }
    };
    forms.chunk_by(same).map(of_run).collect()
}

/// Bytes of the scratch that products with packed matrices take.
pub(super) fn planned_room(weights: &WeightSize) -> usize {
    let room = |(part, _)| match part {
        Planned::Tiles { layout, ordered } => scratch_bytes(&layout, ordered, false),
        Planned::Other(_) => 0,
    };
    planned_parts(weights).map(room).max().unwrap_or(0)
}

/// Bytes of dense copies of all packed projections.
pub(super) fn planned_copies(weights: &WeightSize) -> usize {
    let copy = |(part, usage)| match part {
        Planned::Tiles { layout, .. } if usage != MatrixUse::Table => 2 * layout.n * layout.k,
        _ => 0,
    };
    planned_parts(weights).map(copy).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::CodedForm;

    /// Hidden, intermediate, layers, rows of q and of k, vocabulary, whether the head is the embedding.
    type Shape = (usize, usize, usize, usize, usize, usize, bool);

    /// NF4 but for the head.
    fn weights((hidden, inter, num_layers, q, kv, vocab, tied): Shape, head: LoadFormat) -> WeightSize {
        let layer = |rows: &[usize], k: usize, usage| (rows.iter().map(|n| MatrixForm::loaded_in(LoadFormat::Nf4, *n, k)).collect(), usage);
        let mut layers = vec![(vec![MatrixForm::loaded_in(head, vocab, hidden)], MatrixUse::Table)];
        if !tied {
            layers.push(layer(&[vocab], hidden, MatrixUse::Table));
        }
        for _ in 0..num_layers {
            layers.push(layer(&[q, kv, kv], hidden, MatrixUse::Projection));
            layers.push(layer(&[hidden], q, MatrixUse::Projection));
            layers.push(layer(&[inter; 2], hidden, MatrixUse::GateUp));
            layers.push(layer(&[hidden], inter, MatrixUse::Projection));
        }
        WeightSize { layers, ..WeightSize::default() }
    }

    fn tile_bytes(weights: &WeightSize) -> usize {
        let bytes = |(part, _)| match part {
            Planned::Tiles { layout, ordered } => layout.bytes() + if ordered { 4 * layout.k } else { 0 },
            Planned::Other(MatrixForm { n, k, stored: StoredForm::Coded(coded) }) if coded.code == CodeForm::U8 => n * k + 4 * n,
            Planned::Other(form) => 2 * form.values(),
        };
        planned_parts(weights).map(bytes).sum()
    }

    /// Qwen2.5-Coder with head and embedding: in four bits throughout, and with a head of eight.
    #[test]
    fn four_bits_hold_in_what_was_promised() {
        let shape = (3584, 18944, 28, 3584, 512, 152_064, false);
        let bytes = tile_bytes(&weights(shape, LoadFormat::Int8)) as f64;
        assert!((4.29e9..4.31e9).contains(&bytes), "{shape:?}, a head of 8 bits: {bytes} bytes");
        for (shape, most) in [
            ((3584, 18944, 28, 3584, 512, 152_064, false), 4.5e9),
            ((2048, 11008, 36, 2048, 256, 151_936, true), 2.0e9),
            ((1536, 8960, 28, 1536, 256, 151_936, true), 1.2e9),
        ] {
            let weights = weights(shape, LoadFormat::Nf4);
            let (bytes, values) = (tile_bytes(&weights) as f64, weights.matrices().map(|(form, _)| form.values()).sum::<usize>());
            assert!(bytes < most && (bytes / (values as f64 * 0.53125) - 1.0).abs() < 1e-3, "{shape:?}: {bytes} bytes");
            let tables = shape.0 * shape.5 * if shape.6 { 1 } else { 2 };
            assert_eq!(planned_copies(&weights), 2 * (values - tables), "{shape:?}: copies of projections");
            assert!(planned_room(&weights) >= 2 * shape.0 * shape.1, "{shape:?}: room for the largest projection");
        }
    }

    #[test]
    fn layouts_follow_the_parts() {
        let coded = |n, k, cols, zeros, is_ordered| {
            let zeros = if zeros { ZeroForm::Groups } else { ZeroForm::None };
            MatrixForm { n, k, stored: StoredForm::Coded(CodedForm { zeros, is_ordered, ..CodedForm::plain(CodeForm::Four, 1, cols) }) }
        };
        let bytes = |forms: Vec<MatrixForm>, usage| tile_bytes(&WeightSize { layers: vec![(forms, usage)], ..WeightSize::default() });
        let plain = MatrixUse::Projection;
        assert_eq!(bytes(vec![coded(8, 64, 64, false, false); 2], plain), 544, "two halves of a tile");
        assert_eq!(bytes(vec![coded(8, 64, 64, false, false), coded(8, 64, 64, true, false)], plain), 544 + 576, "two forms");
        assert_eq!(bytes(vec![coded(16, 64, 64, true, true)], plain), 576 + 4 * 64, "an order");
        assert_eq!(bytes(vec![coded(16, 96, 32, false, false)], plain), 2 * 16 * 96, "no whole tiles");
        assert_eq!(bytes(vec![coded(16, 64, 64, false, false)], MatrixUse::Expert), 2 * 16 * 64, "an expert");
        assert_eq!(bytes(vec![coded(16, 64, 16, false, false)], MatrixUse::Table), 640, "groups of 16");
        let rows = |format| MatrixForm { n: 16, k: 64, stored: StoredForm::Rows(format) };
        assert_eq!(bytes(vec![rows(WeightFormat::Q4_0)], plain), 576, "Q4_0");
        assert_eq!(bytes(vec![rows(WeightFormat::Q8_0)], plain), 2048, "Q8_0");
    }
}
