//! GGUF's blocks on a GPU: every weight against the CPU's definition, bit for bit, and layers of every format against the CPU device. Needs a
//! GPU and a build with nvcc; says so and passes where one is missing.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

#[allow(dead_code)]
mod cuda_codes;
mod cuda_layer;
#[allow(dead_code)]
mod cuda_pair;

use cuda_codes::{Kind, download, upload};
use cuda_layer::Layer;
use cuda_pair::{Case, Inputs, Pair};
use half::bf16;
use pagoda_engine::device::{Device, HostMatrix, MatrixUse, Tensor};
use pagoda_engine::models::config::Activation;
use pagoda_engine::weights::dequant::dequantize_row;
use pagoda_engine::weights::format::WeightFormat;
use pagoda_kernels::Gpu;
use pagoda_kernels::ops::DType;
use pagoda_kernels::ops::blocks::{BlockFormat, BlockMatrix, BlockRows, BlocksDequantize, blocks_dequantize};

const FORMATS: [(WeightFormat, BlockFormat); 8] = [
    (WeightFormat::Q4_0, BlockFormat::Q4_0),
    (WeightFormat::Q4_1, BlockFormat::Q4_1),
    (WeightFormat::Q5_0, BlockFormat::Q5_0),
    (WeightFormat::Q5_1, BlockFormat::Q5_1),
    (WeightFormat::Q8_0, BlockFormat::Q8_0),
    (WeightFormat::Q4K, BlockFormat::Q4K),
    (WeightFormat::Q5K, BlockFormat::Q5K),
    (WeightFormat::Q6K, BlockFormat::Q6K),
];

/// Tokens of one pass of each kernel, of several passes, and of dense products.
const TOKENS: [usize; 9] = [1, 2, 4, 5, 8, 9, 32, 33, 300];

/// An odd number of blocks of either size: with Q4_0 of 96 columns, which are no whole tiles.
fn columns(format: WeightFormat, blocks: usize) -> usize {
    format.block().0 * blocks
}

#[test]
fn blocks_dequantise_to_the_definition() {
    if pagoda_kernels::probe().unwrap().is_empty() || !pagoda_kernels::available() {
        eprintln!("skipped: no GPU, or built without CUDA kernels");
        return;
    }
    let gpu = Gpu::open(0).unwrap();
    for (stored, format) in FORMATS {
        for (n, blocks) in [(1, 1), (3, 2), (17, 5), (40, 33)] {
            let k = columns(stored, blocks);
            let HostMatrix::Rows(host) = Kind::Blocks(stored).part(n as u64, n, k) else { unreachable!("rows") };
            let mut arranged = vec![0xa5; n * format.row_bytes(k)];
            arranged.chunks_exact_mut(format.row_bytes(k)).enumerate().for_each(|(i, out)| format.arrange_row(host.rows(i, 1), out));
            let memory = upload(&gpu, &arranged);
            let matrix = BlockMatrix { rows: memory.bytes(), format, n, k };
            let index: Vec<i32> = vec![n as i32 - 1, -1, 0, n as i32, n as i32 / 2];
            let on_gpu = upload(&gpu, bytemuck::cast_slice(&index));
            let all = (BlockRows::From(0), (0..n as i32).collect());
            let late = (BlockRows::From(n / 2), (n as i32 / 2..n as i32).collect());
            for (rows, expected) in [all, late, (BlockRows::Index(on_gpu.bytes()), index.clone())] {
                for (out_dtype, factor) in [(DType::F32, 1.0), (DType::BF16, 1.0), (DType::F32, 1.5)] {
                    let out = upload(&gpu, &vec![0xa5; expected.len() * k * out_dtype.size()]);
                    let params = BlocksDequantize { out: out.bytes(), out_dtype, matrix, rows, num_rows: expected.len(), factor };
                    blocks_dequantize(&params, gpu.stream().unwrap()).unwrap();
                    let bytes = download(&gpu, out.bytes());
                    for (got, row) in bytes.chunks_exact(k * out_dtype.size()).zip(&expected) {
                        let mut values = vec![0.0f32; k];
                        if (0..n as i32).contains(row) {
                            dequantize_row(stored, host.rows(*row as usize, 1), &mut values);
                        }
                        let bits = |v: &f32| match out_dtype {
                            DType::F32 => (v * factor).to_le_bytes().to_vec(),
                            _ => bf16::from_f32(v * factor).to_le_bytes().to_vec(),
                        };
                        let want: Vec<u8> = values.iter().flat_map(bits).collect();
                        assert!(got == want, "{format:?} [{n}, {k}] row {row} as {out_dtype:?} times {factor}");
                    }
                }
            }
        }
    }
}

/// A layer whose matrices are kept as bf16 too.
struct Copied(Layer);

impl Case for Copied {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        device.keep_dense_copies(true);
        let outputs = self.0.run(device, inputs);
        device.keep_dense_copies(false);
        outputs
    }
}

fn layer(kinds: Vec<Kind>, rows: Vec<usize>, k: usize, tokens: usize) -> Layer {
    Layer { kinds, rows, k, tokens, usage: MatrixUse::Projection, activation: None, bias: false }
}

/// Each kernel of each format once, for compute-sanitizer (scripts/gpu-table.sh).
#[test]
fn smallest_layers_of_blocks_agree() {
    let Some(pair) = Pair::new() else { return };
    for (stored, _) in FORMATS {
        for tokens in [1, 3, 9, 33] {
            let plain = layer(vec![Kind::Blocks(stored)], vec![5], columns(stored, 3), tokens);
            pair.check(&format!("{stored:?}, {tokens} tokens"), &plain);
        }
        let table = Layer { usage: MatrixUse::Table, ..layer(vec![Kind::Blocks(stored)], vec![7], columns(stored, 1), 2) };
        pair.check(&format!("{stored:?}, table"), &table);
    }
}

#[test]
fn layers_of_blocks_agree() {
    let Some(pair) = Pair::new() else { return };
    for (stored, _) in FORMATS {
        let kinds = |count| vec![Kind::Blocks(stored); count];
        for tokens in TOKENS {
            let what = format!("{stored:?}, {tokens} tokens");
            let qkv = Layer { bias: true, ..layer(kinds(3), vec![112, 24, 24], columns(stored, 9), tokens) };
            pair.check(&format!("q, k, v: {what}"), &qkv);
            pair.check(&format!("an odd row: {what}"), &layer(kinds(1), vec![33], columns(stored, 7), tokens));
            // Longer than the columns that lie in shared memory at once.
            pair.check(&format!("long rows: {what}"), &layer(kinds(1), vec![19], columns(stored, 17408 / stored.block().0), tokens));
            for (usage, activation, bias) in [
                (MatrixUse::GateUp, Activation::Silu, false),
                (MatrixUse::GateUp, Activation::Silu, true),
                (MatrixUse::Projection, Activation::GeluTanh, false),
            ] {
                let gated = layer(kinds(2), vec![136; 2], columns(stored, 5), tokens);
                let gated = Layer { usage, activation: Some(activation), bias, ..gated };
                pair.check(&format!("gate, up: {activation:?} {bias} {what}"), &gated);
            }
            let table = Layer { usage: MatrixUse::Table, ..layer(kinds(1), vec![777], columns(stored, 3), tokens) };
            pair.check(&format!("table: {what}"), &table);
            let expert = Layer { usage: MatrixUse::Expert, ..layer(kinds(2), vec![64; 2], columns(stored, 3), tokens) };
            pair.check(&format!("an expert: {what}"), &expert);
            pair.check(&format!("copied: {what}"), &Copied(layer(kinds(1), vec![48], columns(stored, 5), tokens)));
        }
    }
}

/// Rows enough for every number of warps that may share a tile (heuristics/blocks.rs), on any GPU: CTAs that walk over groups of tiles with x
/// in shared memory, and such as read x again.
#[test]
fn tall_layers_of_blocks_agree() {
    let Some(pair) = Pair::new() else { return };
    for stored in [WeightFormat::Q4_1, WeightFormat::Q8_0, WeightFormat::Q4K, WeightFormat::Q6K] {
        for (rows, k, tokens) in [(9_001, 512, 1), (9_001, 512, 8), (17_500, 2048, 17), (67_580, 1280, 32)] {
            let tall = layer(vec![Kind::Blocks(stored)], vec![rows], k, tokens);
            pair.check(&format!("{stored:?}, {rows} rows, {tokens} tokens"), &tall);
        }
        let gated = Layer {
            usage: MatrixUse::GateUp,
            activation: Some(Activation::Silu),
            ..layer(vec![Kind::Blocks(stored); 2], vec![9_008; 2], 512, 3)
        };
        pair.check(&format!("{stored:?}, gate and up"), &gated);
    }
}

#[test]
fn layers_of_several_formats_agree() {
    let Some(pair) = Pair::new() else { return };
    let mixes = [
        [WeightFormat::Q4K, WeightFormat::Q4K, WeightFormat::Q6K],
        [WeightFormat::Q5K, WeightFormat::Q8_0, WeightFormat::Q5K],
        [WeightFormat::Q4_0, WeightFormat::Q4_1, WeightFormat::Q5_1],
    ];
    for tokens in TOKENS {
        for formats in mixes {
            let what = format!("{formats:?}, {tokens} tokens");
            let qkv = Layer { bias: true, ..layer(formats.map(Kind::Blocks).to_vec(), vec![112, 24, 24], 768, tokens) };
            pair.check(&format!("q, k, v: {what}"), &qkv);
            let gated = layer(formats[1..].iter().copied().map(Kind::Blocks).collect(), vec![40; 2], 768, tokens);
            pair.check(&format!("gate, up: {what}"), &Layer { usage: MatrixUse::GateUp, activation: Some(Activation::Silu), ..gated });
        }
        let kinds = vec![Kind::Blocks(WeightFormat::Q6K), Kind::Dense, Kind::Blocks(WeightFormat::Q6K)];
        pair.check(&format!("blocks and bf16, {tokens} tokens"), &layer(kinds, vec![40, 24, 16], 512, tokens));
    }
}

#[test]
fn a_token_alone_equals_the_same_token_among_others() {
    let Some(pair) = Pair::deterministic() else { return };
    for (stored, _) in FORMATS {
        let case = |tokens| {
            let gated = layer(vec![Kind::Blocks(stored); 2], vec![136; 2], columns(stored, 9), tokens);
            Layer { usage: MatrixUse::GateUp, activation: Some(Activation::Silu), bias: true, ..gated }
        };
        let alone = pair.first_rows(&case(1));
        for tokens in [2, 5, 9, 33, 130, 300] {
            assert!(pair.first_rows(&case(tokens)) == alone, "{tokens} tokens, {stored:?}");
        }
    }
}
