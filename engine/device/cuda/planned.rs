//! What layers become on a GPU, told by headers alone: the rules of `upload_parts` before anything is read. For the memory plan.

use pagoda_kernels::ops::blocks::{BlockFormat, BlockMatrix};
use pagoda_kernels::ops::w4::W4Layout;
use pagoda_kernels::ops::w4_quantize::NVFP4_GROUP;

use super::blocks::block_format;
use super::pieces::piece_bytes;
use super::w4::scratch_bytes;
use super::w4_load::{is_packed, layout, stacked_layout};
use crate::device::{CodeForm, MatrixForm, MatrixUse, StoredForm, ZeroForm};
use crate::weights::format::WeightFormat;
use crate::weights::quant::blocks;
use crate::weights::size::WeightSize;

/// A part of a layer as it will lie on the GPU.
pub(super) enum Planned {
    /// Neighbouring parts in tiles.
    Tiles {
        /// Of all of them.
        layout: W4Layout,
        /// Whether their columns are in an order of their own.
        ordered: bool,
    },
    /// Neighbouring parts as rows of GGUF's blocks.
    Blocks {
        /// Which blocks.
        format: BlockFormat,
        /// Rows of all of them.
        n: usize,
        /// Columns.
        k: usize,
    },
    /// A part that becomes neither.
    Other(MatrixForm),
}

impl Planned {
    /// Bytes of a part in tiles or blocks.
    pub fn packed_bytes(&self) -> Option<usize> {
        match self {
            Planned::Tiles { layout, ordered } => Some(layout.bytes() + if *ordered { 4 * layout.k } else { 0 }),
            Planned::Blocks { format, n, k } => Some(BlockMatrix::bytes(*format, *n, *k)),
            Planned::Other(_) => None,
        }
    }

    /// Bytes of scratch that products with it take.
    fn room(&self) -> usize {
        match self {
            Planned::Tiles { layout, ordered } => scratch_bytes(layout, *ordered, false),
            Planned::Blocks { n, k, .. } => piece_bytes(*n, *k),
            Planned::Other(_) => 0,
        }
    }

    /// Bytes of its copy as bf16.
    fn copy(&self) -> usize {
        match self {
            Planned::Tiles { layout, .. } => 2 * layout.n * layout.k,
            Planned::Blocks { n, k, .. } => 2 * n * k,
            Planned::Other(_) => 0,
        }
    }
}

/// What makes parts one matrix.
#[derive(PartialEq)]
enum Kin {
    /// The layout but for its rows, and whether columns are in an order of their own.
    Tiles(W4Layout, bool),
    /// Blocks of rows of `k` values.
    Blocks(BlockFormat, usize),
}

fn kin(form: &MatrixForm, usage: MatrixUse) -> Option<Kin> {
    let tiles = planned_layout(form).filter(|_| is_packed(usage)).map(|(layout, ordered)| Kin::Tiles(W4Layout { n: 0, ..layout }, ordered));
    tiles.or_else(|| block_format(form, usage).map(|format| Kin::Blocks(format, form.k)))
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
    let same = |a: &MatrixForm, b: &MatrixForm| kin(a, usage).is_some_and(|a| Some(a) == kin(b, usage));
    let of_run = |run: &[MatrixForm]| {
        let rows: Vec<usize> = run.iter().map(|form| form.n).collect();
        match kin(&run[0], usage) {
            None => Planned::Other(run[0]),
            Some(Kin::Tiles(one, ordered)) => {
                Planned::Tiles { layout: stacked_layout(&rows, run.len() == forms.len(), one, usage), ordered }
            }
            Some(Kin::Blocks(format, k)) => Planned::Blocks { format, n: rows.iter().sum(), k },
        }
    };
    forms.chunk_by(same).map(of_run).collect()
}

/// Bytes of the scratch that products with packed matrices take.
pub(super) fn planned_room(weights: &WeightSize) -> usize {
    planned_parts(weights).map(|(part, _)| part.room()).max().unwrap_or(0)
}

/// The longest row of a matrix that may be NVFP4, as its groups say.
pub(super) fn planned_fp4_cols(weights: &WeightSize) -> Option<usize> {
    let cols = |(part, _)| match part {
        Planned::Tiles { layout, ordered: false } if layout.group == NVFP4_GROUP && !layout.zeros => Some(layout.k),
        _ => None,
    };
    planned_parts(weights).filter_map(cols).max()
}

/// Bytes of dense copies of all packed projections.
pub(super) fn planned_copies(weights: &WeightSize) -> usize {
    planned_parts(weights).filter(|(_, usage)| *usage != MatrixUse::Table).map(|(part, _)| part.copy()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::CodedForm;
    use crate::weights::quant::LoadFormat;

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

    fn planned_bytes(weights: &WeightSize) -> usize {
        let bytes = |(part, _): (Planned, MatrixUse)| match part {
            Planned::Other(MatrixForm { n, k, stored: StoredForm::Coded(coded) }) if coded.code == CodeForm::U8 => n * k + 4 * n,
            Planned::Other(form) => 2 * form.values(),
            packed => packed.packed_bytes().expect("tiles or blocks"),
        };
        planned_parts(weights).map(bytes).sum()
    }

    /// Qwen2.5-Coder with head and embedding: in four bits throughout, and with a head of eight.
    #[test]
    fn four_bits_hold_in_what_was_promised() {
        let shape = (3584, 18944, 28, 3584, 512, 152_064, false);
        let bytes = planned_bytes(&weights(shape, LoadFormat::Int8)) as f64;
        assert!((4.29e9..4.31e9).contains(&bytes), "{shape:?}, a head of 8 bits: {bytes} bytes");
        for (shape, most) in [
            ((3584, 18944, 28, 3584, 512, 152_064, false), 4.5e9),
            ((2048, 11008, 36, 2048, 256, 151_936, true), 2.0e9),
            ((1536, 8960, 28, 1536, 256, 151_936, true), 1.2e9),
        ] {
            let weights = weights(shape, LoadFormat::Nf4);
            let (bytes, values) = (planned_bytes(&weights) as f64, weights.matrices().map(|(form, _)| form.values()).sum::<usize>());
            assert!(bytes < most && (bytes / (values as f64 * 0.53125) - 1.0).abs() < 1e-3, "{shape:?}: {bytes} bytes");
            let tables = shape.0 * shape.5 * if shape.6 { 1 } else { 2 };
            assert_eq!(planned_copies(&weights), 2 * (values - tables), "{shape:?}: copies of projections");
            assert!(planned_room(&weights) >= 2 * shape.0 * shape.1, "{shape:?}: room for the largest projection");
        }
    }

    #[test]
    fn rounded_activations_are_as_long_as_the_longest_row_in_groups_of_16() {
        let part = |k, cols| MatrixForm { n: 16, k, stored: StoredForm::Coded(CodedForm::plain(CodeForm::Four, 1, cols)) };
        let cols = |forms: Vec<MatrixForm>| {
            planned_fp4_cols(&WeightSize { layers: vec![(forms, MatrixUse::Projection)], ..WeightSize::default() })
        };
        assert_eq!(cols(vec![part(64, 16), part(192, 16), part(256, 32)]), Some(192));
        assert_eq!(cols(vec![part(256, 64)]), None);
    }

    #[test]
    fn layouts_follow_the_parts() {
        let coded = |n, k, cols, zeros, is_ordered| {
            let zeros = if zeros { ZeroForm::Groups } else { ZeroForm::None };
            MatrixForm { n, k, stored: StoredForm::Coded(CodedForm { zeros, is_ordered, ..CodedForm::plain(CodeForm::Four, 1, cols) }) }
        };
        let bytes = |forms: Vec<MatrixForm>, usage| planned_bytes(&WeightSize { layers: vec![(forms, usage)], ..WeightSize::default() });
        let plain = MatrixUse::Projection;
        assert_eq!(bytes(vec![coded(8, 64, 64, false, false); 2], plain), 544, "two halves of a tile");
        assert_eq!(bytes(vec![coded(8, 64, 64, false, false), coded(8, 64, 64, true, false)], plain), 544 + 576, "two forms");
        assert_eq!(bytes(vec![coded(16, 64, 64, true, true)], plain), 576 + 4 * 64, "an order");
        assert_eq!(bytes(vec![coded(16, 96, 32, false, false)], plain), 2 * 16 * 96, "no whole tiles");
        assert_eq!(bytes(vec![coded(16, 64, 64, false, false)], MatrixUse::Expert), 2 * 16 * 64, "an expert");
        assert_eq!(bytes(vec![coded(16, 64, 16, false, false)], MatrixUse::Table), 640, "groups of 16");
        let rows = |format| MatrixForm { n: 16, k: 64, stored: StoredForm::Rows(format) };
        assert_eq!(bytes(vec![rows(WeightFormat::Q4_0)], plain), 576, "Q4_0");
        assert_eq!(bytes(vec![rows(WeightFormat::BF16)], plain), 2048, "bf16");
    }

    /// Qwen2.5-7B as llama.cpp's Q4_K_M mixes it: Q6_K for the head and, in half of the layers, for v and down; Q4_K for the rest.
    #[test]
    fn blocks_stay_as_large_as_in_the_file() {
        let (hidden, inter, kv, vocab) = (3584, 18944, 512, 152_064);
        let blocks = |n, k, format| MatrixForm { n, k, stored: StoredForm::Rows(format) };
        let four = |n, k| blocks(n, k, WeightFormat::Q4K);
        let mut layers =
            vec![(vec![four(vocab, hidden)], MatrixUse::Table), (vec![blocks(vocab, hidden, WeightFormat::Q6K)], MatrixUse::Table)];
        for layer in 0..28 {
            let more = if layer % 2 == 0 { WeightFormat::Q6K } else { WeightFormat::Q4K };
            layers.push((vec![four(hidden, hidden), four(kv, hidden), blocks(kv, hidden, more)], MatrixUse::Projection));
            layers.push((vec![four(hidden, hidden)], MatrixUse::Projection));
            layers.push((vec![four(inter, hidden); 2], MatrixUse::GateUp));
            layers.push((vec![blocks(hidden, inter, more)], MatrixUse::Projection));
        }
        let weights = WeightSize { layers, ..WeightSize::default() };
        let in_file = |(form, _): (&MatrixForm, MatrixUse)| match form.stored {
            StoredForm::Rows(format) => form.n * format.row_bytes(form.k),
            StoredForm::Coded(_) => unreachable!("blocks"),
        };
        let rows: usize = weights.matrices().map(|(form, _)| form.n).sum();
        let (planned, file) = (planned_bytes(&weights), weights.matrices().map(in_file).sum::<usize>());
        assert!(planned >= file && planned - file < 16 * rows, "{planned} bytes, {file} in the file");
        assert!((4.6e9..4.8e9).contains(&(planned as f64)), "{planned} bytes");
        let parts = |usage, expected: usize| {
            let of = |(_, of): &(Planned, MatrixUse)| *of == usage;
            assert_eq!(planned_parts(&weights).filter(of).count(), expected, "{usage:?}");
        };
        // q, k and v are two matrices where v has other blocks.
        parts(MatrixUse::Projection, 14 * (2 + 1) + 28 * 2);
        parts(MatrixUse::GateUp, 28);
        assert_eq!(planned_copies(&weights), 2 * 28 * (2 * hidden * hidden + 2 * kv * hidden + 3 * inter * hidden));
        assert_eq!(planned_room(&weights), piece_bytes(vocab, hidden).max(2 * 2 * inter * hidden));
    }

    #[test]
    fn blocks_that_are_not_packed_become_dense() {
        let bytes = |format, k, usage| {
            let form = MatrixForm { n: 3, k, stored: StoredForm::Rows(format) };
            planned_bytes(&WeightSize { layers: vec![(vec![form], usage)], ..WeightSize::default() })
        };
        let plain = MatrixUse::Projection;
        assert_eq!(bytes(WeightFormat::Q8_0, 64, plain), 3 * 144, "a step of 128 bytes and 4 of scales a row, padded");
        assert_eq!(bytes(WeightFormat::Q6K, 512, MatrixUse::Table), 3 * 432, "four steps of 96 bytes and 36 of scales a row, padded");
        assert_eq!(bytes(WeightFormat::Q4_0, 96, plain), 3 * 80, "no whole tiles: a step of 64 bytes and 6 of scales a row, padded");
        assert_eq!(bytes(WeightFormat::Q8_0, 64, MatrixUse::Expert), 2 * 3 * 64, "an expert");
        assert_eq!(bytes(WeightFormat::Q8_0, 64, MatrixUse::Router), 2 * 3 * 64, "a router");
    }
}
