//! 4-bit weights on a GPU: tiles against the definition of a coded matrix, bit for bit, quantising against the CPU's, and layers of every
//! format against the CPU device. Needs a GPU and a build with nvcc; says so and passes where one is missing.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

mod cuda_codes;
mod cuda_fp4;
mod cuda_layer;
#[allow(dead_code)]
mod cuda_pair;
mod cuda_quantize;

use std::sync::Arc;

use cuda_codes::{Kind, Random, coded, download, formats, pack, permutation, scales_of, upload};
use cuda_layer::Layer;
use cuda_pair::Pair;
use half::{bf16, f16};
use pagoda_engine::device::MatrixUse;
use pagoda_engine::models::config::Activation;
use pagoda_engine::weights::format::WeightFormat;
use pagoda_engine::weights::mapped::MappedBytes;
use pagoda_engine::weights::quant::LoadFormat;
use pagoda_engine::weights::quant::{CodedMatrix, ScaleValues};
use pagoda_kernels::ops::DType;
use pagoda_kernels::ops::w4::{W4Dequantize, W4Matrix, gather_columns, w4_dequantize, w4_gather_rows};
use pagoda_kernels::{DeviceMemory, Gpu};

fn gpu() -> Option<Arc<Gpu>> {
    let gpus = pagoda_kernels::probe().unwrap();
    if gpus.is_empty() || !pagoda_kernels::available() {
        eprintln!("skipped: no GPU, or built without CUDA kernels");
        return None;
    }
    Some(Gpu::open(0).unwrap())
}

/// Rows of tiles as bf16 bits.
fn dequantized(gpu: &Arc<Gpu>, matrix: &W4Matrix, rows: std::ops::Range<usize>, order: Option<&[u32]>) -> Vec<u16> {
    let out = upload(gpu, &vec![0xa5; rows.len() * matrix.layout.k * 2]);
    let order = order.map(|order| upload(gpu, bytemuck::cast_slice(order)));
    let order = order.as_ref().map(DeviceMemory::bytes);
    let params = W4Dequantize { matrix, out: out.bytes(), order, first_row: rows.start, num_rows: rows.len() };
    w4_dequantize(&params, gpu.stream().unwrap()).unwrap();
    bytemuck::pod_collect_to_vec(&download(gpu, out.bytes()))
}

fn expected(matrix: &CodedMatrix) -> Vec<u16> {
    bytemuck::pod_collect_to_vec(matrix.to_bf16().bytes.as_slice())
}

fn first_difference(got: &[u16], expected: &[u16], k: usize) -> Option<String> {
    assert_eq!(got.len(), expected.len());
    let i = (0..got.len()).find(|i| got[*i] != expected[*i])?;
    let value = |bits: u16| bf16::from_bits(bits).to_f32();
    Some(format!("[{}, {}] is {}, expected {}", i / k, i % k, value(got[i]), value(expected[i])))
}

#[test]
fn tiles_of_every_format_dequantise_to_the_definition() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(31);
    for format in formats() {
        for (n, k) in [(1, 64), (6, 128), (16, 320), (23, 64), (150, 512), (48, 1088)] {
            let mut matrix = coded(&mut random, &format, n, k);
            let packed = pack(&gpu, &matrix, false);
            let got = dequantized(&gpu, &packed.matrix, 0..n, None);
            assert_eq!(first_difference(&got, &expected(&matrix), k), None, "{format:?} [{n}, {k}]");
            if n > 16 {
                let got = dequantized(&gpu, &packed.matrix, 16..n, None);
                assert_eq!(first_difference(&got, &expected(&matrix)[16 * k..], k), None, "{format:?} [{n}, {k}] from row 16 on");
            }
            let order = permutation(&mut random, k);
            matrix.order = Some(order.clone());
            let got = dequantized(&gpu, &packed.matrix, 0..n, Some(&order));
            assert_eq!(first_difference(&got, &expected(&matrix), k), None, "{format:?} [{n}, {k}] in order");
        }
    }
}

#[test]
fn gate_and_up_are_taken_apart_again() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(32);
    for format in formats() {
        for (half, k) in [(8, 64), (24, 128), (104, 576)] {
            let matrix = coded(&mut random, &format, 2 * half, k);
            let (packed, expected) = (pack(&gpu, &matrix, true), expected(&matrix));
            let got = dequantized(&gpu, &packed.matrix, 0..2 * half, None);
            assert_eq!(first_difference(&got, &expected, k), None, "{format:?} [{half} + {half}, {k}]");
            if half > 8 {
                // The second tile alone: gates 8 to 16, then their ups.
                let got = dequantized(&gpu, &packed.matrix, 16..32, None);
                let expected = [&expected[8 * k..16 * k], &expected[(half + 8) * k..(half + 16) * k]].concat();
                assert_eq!(first_difference(&got, &expected, k), None, "{format:?} [{half} + {half}, {k}] second tile");
            }
        }
    }
}

/// Scales of any f32 are rounded to 11 bits and no further: the weight is that of the rounded scale, and close to the exact one.
#[test]
fn scales_are_rounded_once_to_half_precision() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(33);
    let (n, k) = (40, 512);
    for spread in [0, 10, 40] {
        for format in formats() {
            let mut exact = coded(&mut random, &format, n, k);
            // Magnitudes over 2^spread.
            let scales: Vec<f32> =
                scales_of(&exact).iter().map(|s| s * (-(random.next() as f32 / u64::MAX as f32) * spread as f32).exp2()).collect();
            exact.scales.values = ScaleValues::F32(MappedBytes::from_slice(bytemuck::cast_slice(&scales)));
            let packed = pack(&gpu, &exact, false);
            let factor = packed.matrix.scale_factor;
            let rounded: Vec<f32> = scales.iter().map(|scale| f16::from_f32(scale / factor).to_f32() * factor).collect();
            let mut matrix = exact.clone();
            matrix.scales.values = ScaleValues::F32(MappedBytes::from_slice(bytemuck::cast_slice(&rounded)));
            let got = dequantized(&gpu, &packed.matrix, 0..n, None);
            assert_eq!(first_difference(&got, &expected(&matrix), k), None, "{format:?} over 2^{spread}");
            let (mut row, largest) = (vec![0.0; k], scales.iter().fold(0.0f32, |max, s| max.max(s.abs())));
            for (i, got) in got.chunks_exact(k).enumerate() {
                exact.dequantize_row(i, &mut row);
                for (got, want) in got.iter().zip(&row) {
                    // 2^-11 by the scale's rounding, 2^-8 by the weight's; below 2^-24 of the largest, half of f16's smallest step and a code of at most 16.
                    let bound = want.abs() * (2f32.powi(-11) + 2f32.powi(-8)) * 1.001 + largest * 2f32.powi(-35) * 16.0;
                    assert!((bf16::from_bits(*got).to_f32() - want).abs() <= bound, "{format:?} over 2^{spread}: {got} for {want}");
                }
            }
        }
    }
}

#[test]
fn rows_are_gathered_exactly() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(34);
    let (n, k) = (53, 320);
    for format in formats() {
        let matrix = coded(&mut random, &format, n, k);
        let packed = pack(&gpu, &matrix, false);
        let index = [0i32, 52, 15, 16, 7, 8, -1, 53, 31];
        let on_gpu = upload(&gpu, bytemuck::cast_slice(&index));
        for dtype in [DType::F32, DType::BF16] {
            let out = upload(&gpu, &vec![0xa5; index.len() * k * dtype.size()]);
            w4_gather_rows(&packed.matrix, (out.bytes(), dtype), on_gpu.bytes(), index.len(), 1.5, gpu.stream().unwrap()).unwrap();
            let bytes = download(&gpu, out.bytes());
            let got: Vec<f32> = match dtype {
                DType::F32 => bytemuck::pod_collect_to_vec(&bytes),
                _ => bytemuck::pod_collect_to_vec::<u8, u16>(&bytes).iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect(),
            };
            for (got, index) in got.chunks_exact(k).zip(index) {
                let mut row = vec![0.0f32; k];
                if (0..n as i32).contains(&index) {
                    matrix.dequantize_row(index as usize, &mut row);
                }
                let round = |v: f32| if dtype == DType::F32 { v } else { bf16::from_f32(v).to_f32() };
                let same =
                    got.iter().zip(&row).all(|(got, want)| got.to_bits() == (round(want * 1.5)).to_bits() || (*got == 0.0 && *want == 0.0));
                assert!(same, "{format:?} row {index} as {dtype:?}");
            }
        }
    }
}

#[test]
fn columns_are_gathered_in_order() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(36);
    for (tokens, k) in [(1, 8), (5, 64), (64, 1088)] {
        let x: Vec<u16> = (0..tokens * k).map(|_| random.next() as u16).collect();
        let order = permutation(&mut random, k);
        let (from, order_gpu) = (upload(&gpu, bytemuck::cast_slice(&x)), upload(&gpu, bytemuck::cast_slice(&order)));
        let out = upload(&gpu, &vec![0; tokens * k * 2]);
        gather_columns(out.bytes(), from.bytes(), order_gpu.bytes(), tokens, k, gpu.stream().unwrap()).unwrap();
        let got: Vec<u16> = bytemuck::pod_collect_to_vec(&download(&gpu, out.bytes()));
        let want: Vec<u16> = x.chunks_exact(k).flat_map(|row| order.iter().map(|column| row[*column as usize])).collect();
        assert!(got == want, "{tokens} x {k}");
    }
}

const TOKENS: [usize; 7] = [1, 5, 17, 64, 65, 129, 300];

/// Every kind of part once, with few tokens and many, for compute-sanitizer (scripts/gpu-table.sh).
#[test]
fn smallest_layers_agree() {
    let Some(pair) = Pair::new() else { return };
    let (gate_up, plain) = ((MatrixUse::GateUp, Some(Activation::Silu)), (MatrixUse::Projection, None));
    let coded = formats().into_iter().map(|format| (Kind::Coded(format), gate_up));
    let at_load = [LoadFormat::Nf4, LoadFormat::Fp4].map(Kind::AtLoad);
    let others = at_load.into_iter().chain([Kind::Ordered(formats()[4]), Kind::Blocks(WeightFormat::Q4_0)]).map(|kind| (kind, plain));
    for (kind, (usage, activation)) in coded.chain(others) {
        for tokens in [1, 65] {
            let (kinds, rows, k) = (vec![kind; 2], vec![16; 2], 128);
            pair.check(&format!("{kind:?}"), &Layer { kinds, rows, k, tokens, usage, activation, bias: false });
        }
    }
}

#[test]
fn layers_of_every_format_agree() {
    let Some(pair) = Pair::new() else { return };
    let layer = || Layer { kinds: vec![], rows: vec![], k: 256, tokens: 1, usage: MatrixUse::Projection, activation: None, bias: true };
    for tokens in TOKENS {
        for format in formats() {
            let what = format!("{tokens} tokens, {:?} {}", format.first, format.group);
            let qkv = Layer { kinds: vec![Kind::Coded(format); 3], rows: vec![112, 24, 24], tokens, ..layer() };
            pair.check(&format!("q, k, v: {what}"), &qkv);
            pair.check(
                &format!("one row too many: {what}"),
                &Layer { kinds: vec![Kind::Coded(format)], rows: vec![33], k: 576, tokens, bias: false, ..layer() },
            );
            pair.check(
                &format!("in order: {what}"),
                &Layer { kinds: vec![Kind::Ordered(format); 2], rows: vec![48, 16], tokens, ..layer() },
            );
            for (usage, activation, bias) in [
                (MatrixUse::GateUp, Activation::Silu, false),
                (MatrixUse::GateUp, Activation::Silu, true),
                (MatrixUse::Projection, Activation::GeluTanh, false),
            ] {
                let gated = Layer {
                    kinds: vec![Kind::Coded(format); 2],
                    rows: vec![136; 2],
                    tokens,
                    usage,
                    activation: Some(activation),
                    bias,
                    ..layer()
                };
                pair.check(&format!("gate, up: {activation:?} {bias} {what}"), &gated);
            }
        }
    }
}

#[test]
fn a_token_alone_equals_the_same_token_among_others() {
    let Some(pair) = Pair::deterministic() else { return };
    for format in formats() {
        let layer = |tokens| Layer {
            kinds: vec![Kind::Coded(format); 2],
            rows: vec![136; 2],
            k: 1088,
            tokens,
            usage: MatrixUse::GateUp,
            activation: Some(Activation::Silu),
            bias: true,
        };
        let alone = pair.first_rows(&layer(1));
        for tokens in [2, 9, 33, 64, 65, 300] {
            assert!(pair.first_rows(&layer(tokens)) == alone, "{tokens} tokens, {format:?}");
        }
    }
}

#[test]
fn layers_that_are_quantised_at_load_or_of_several_kinds_agree() {
    let Some(pair) = Pair::new() else { return };
    let layer = || Layer { kinds: vec![], rows: vec![], k: 320, tokens: 1, usage: MatrixUse::Projection, activation: None, bias: true };
    let formats = formats();
    for tokens in TOKENS {
        for kind in [LoadFormat::Nf4, LoadFormat::Fp4].map(Kind::AtLoad) {
            let what = format!("{kind:?}, {tokens} tokens");
            pair.check(&format!("at load: {what}"), &Layer { kinds: vec![kind; 3], rows: vec![112, 24, 24], tokens, ..layer() });
            let gate_up = Layer {
                kinds: vec![kind; 2],
                rows: vec![200; 2],
                usage: MatrixUse::GateUp,
                activation: Some(Activation::Silu),
                tokens,
                ..layer()
            };
            pair.check(&format!("gate and up at load: {what}"), &gate_up);
            let table = Layer { kinds: vec![kind], rows: vec![777], tokens, usage: MatrixUse::Table, bias: false, ..layer() };
            pair.check(&format!("table: {what}"), &table);
            let experts = Layer { kinds: vec![kind; 2], rows: vec![64; 2], tokens, usage: MatrixUse::Expert, bias: false, ..layer() };
            pair.check(&format!("experts: {what}"), &experts);
        }
        pair.check(
            &format!("blocks: {tokens}"),
            &Layer { kinds: vec![Kind::Blocks(WeightFormat::Q4_0); 2], rows: vec![64, 32], tokens, ..layer() },
        );
        let mixed = vec![
            Kind::Coded(formats[0]),
            Kind::Coded(formats[3]),
            Kind::Dense,
            Kind::Blocks(WeightFormat::Q4_0),
            Kind::Ordered(formats[5]),
        ];
        pair.check(&format!("mixed: {tokens}"), &Layer { kinds: mixed, rows: vec![40, 24, 8, 16, 48], tokens, ..layer() });
        let stored = vec![Kind::Coded(formats[7]), Kind::AtLoad(LoadFormat::Fp4), Kind::AtLoad(LoadFormat::Fp4)];
        pair.check(&format!("stored and at load: {tokens}"), &Layer { kinds: stored, rows: vec![40, 24, 16], tokens, ..layer() });
    }
}
