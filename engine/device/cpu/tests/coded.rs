//! Products with codes: every kind of code, group and order against f64, and the decode and prefill paths against each other.

use std::sync::Arc;

use super::*;
use crate::weights::quant::books::{self, e4m3};
use crate::weights::quant::coded::Nibble;
use crate::weights::quant::{Code, CodedMatrix, ScaleValues, Scales, Zeros};

fn apply(device: &CpuDevice, x: &[f32], layer: &Linear<CpuDevice>) -> Vec<f32> {
    let mut out = empty(device, x.len() / layer.k, layer.n);
    device.linear(&mut out, &tensor(device, layer.k, x), layer).unwrap();
    out.values().to_vec()
}

fn bytes(random: &mut Random, len: usize) -> MappedBytes {
    let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
    MappedBytes::from_slice(&bytes)
}

/// Random codes; `rows` and `cols` share a scale.
fn coded(random: &mut Random, code: Code, [n, k]: [usize; 2], [rows, cols]: [usize; 2], zeros: bool, order: bool) -> CodedMatrix {
    let len = n.div_ceil(rows) * k.div_ceil(cols);
    let scales: Vec<u8> = (0..len).flat_map(|_| half::f16::from_f32(random.unit() * 0.02).to_le_bytes()).collect();
    // No codes of NaN, as in checkpoints.
    let mut codes: Vec<u8> = (0..n * code.row_bytes(k)).map(|_| random.next() as u8).collect();
    if code == Code::E4M3 {
        codes.iter_mut().filter(|code| e4m3(**code).is_nan()).for_each(|code| *code = 0);
    }
    let zeros = match (code, zeros) {
        (Code::U8, false) => Zeros::Same(128.0),
        (_, false) => Zeros::None,
        _ => Zeros::Groups { codes: bytes(random, len), plus: 1 },
    };
    let mut columns: Vec<u32> = (0..k as u32).collect();
    (1..k).for_each(|i| columns.swap(i, random.below(i + 1)));
    CodedMatrix {
        name: "test".into(),
        n,
        k,
        code,
        codes: MappedBytes::from_slice(&codes),
        scales: Scales::new(rows, cols, k, ScaleValues::F16(MappedBytes::from_slice(&scales))),
        zeros,
        order: order.then(|| Arc::from(columns)),
    }
}

/// Every path through the kernels: (code, rows and columns of a scale, zero points).
fn kinds(n: usize, k: usize) -> Vec<(Code, [usize; 2], bool)> {
    let four = |book, first| Code::Four { book, first };
    vec![
        (four(books::NF4, Nibble::High), [1, 64], false),
        (four(books::FP4, Nibble::High), [1, 128], false),
        (four(books::INT4, Nibble::Low), [1, k], false),
        (four(books::UINT4, Nibble::Low), [1, 32], true),
        (four(books::UINT4, Nibble::High), [1, 32], true),
        (four(books::E2M1, Nibble::Low), [1, 16], false),
        (Code::U8, [1, 64], true),
        (Code::U8, [1, k], false),
        (Code::E4M3, [n, k], false),
        (Code::E4M3, [1, k], false),
        (Code::E4M3, [128, 128], false),
    ]
}

fn dense_of(matrix: &CodedMatrix) -> Vec<f32> {
    let mut out = vec![0.0; matrix.n * matrix.k];
    out.chunks_exact_mut(matrix.k).enumerate().for_each(|(row, out)| matrix.dequantize_row(row, out));
    out
}

#[test]
fn every_code_and_shape_equals_the_f64_product() {
    let mut random = Random(21);
    for device in devices() {
        for (n, k) in [(1, 16), (6, 48), (23, 320), (150, 512)] {
            for (kind, (code, group, zeros)) in kinds(n, k).into_iter().enumerate() {
                for order in [false, true] {
                    let matrix = coded(&mut random, code, [n, k], group, zeros, order);
                    let (weights, bias) = (dense_of(&matrix), random.vec(n));
                    let layer = layer_of(&device, &[HostMatrix::from(matrix)], Some(&bias));
                    for rows in [0, 1, 2, 7] {
                        let x = random.vec(rows * k);
                        let out = apply(&device, &x, &layer);
                        for (i, out) in out.iter().enumerate() {
                            let (sum, size) = dot(&x[i / n * k..][..k], &weights[i % n * k..][..k]);
                            let error = (f64::from(*out) - sum - f64::from(bias[i % n])).abs();
                            assert!(error <= 1e-6 * size + 1e-6, "{} kind {kind} [{n}, {k}] row {i}: {out}", device.name());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_alone_and_in_any_batch() {
    let mut random = Random(22);
    let (n, k) = (150, 512);
    for device in devices() {
        for (code, group, zeros) in kinds(n, k) {
            let layer = layer_of(&device, &[HostMatrix::from(coded(&mut random, code, [n, k], group, zeros, false))], None);
            let x = random.vec(50 * k);
            let alone: Vec<f32> = x.chunks_exact(k).flat_map(|x| apply(&device, x, &layer)).collect();
            for rows in [2, 3, 7, 50] {
                for (x, alone) in x.chunks(rows * k).zip(alone.chunks(rows * n)) {
                    assert!(bits(&apply(&device, x, &layer)) == bits(alone), "{} {code:?} {rows} rows", device.name());
                }
            }
        }
    }
}

#[test]
fn kernels_decode_to_the_bits_of_the_definition() {
    let mut random = Random(23);
    let (n, k) = (40, 512);
    for device in devices() {
        for (code, group, zeros) in kinds(n, k) {
            let matrix = coded(&mut random, code, [n, k], group, zeros, false);
            let weights = dense_of(&matrix);
            let layer = layer_of(&device, &[HostMatrix::from(matrix)], None);
            // One input of 1: an output is a weight, plus zeros.
            let columns = [0, 15, 16, 63, 64, 129, 511];
            let mut x = vec![0.0; columns.len() * k];
            columns.iter().enumerate().for_each(|(row, column)| x[row * k + column] = 1.0);
            let out = apply(&device, &x, &layer);
            for (row, column) in columns.iter().enumerate() {
                for i in 0..n {
                    assert_eq!(out[row * n + i] + 0.0, weights[i * k + column] + 0.0, "{} {code:?} [{i}, {column}]", device.name());
                }
            }
        }
    }
}

#[test]
fn parts_of_both_forms_and_several_orders_are_stacked() {
    let mut random = Random(24);
    let k = 256;
    let four = Code::Four { book: books::UINT4, first: Nibble::Low };
    for device in devices() {
        let (a, b) = (coded(&mut random, four, [40, k], [1, 32], true, true), coded(&mut random, Code::U8, [7, k], [1, 64], true, true));
        let mut c = coded(&mut random, four, [30, k], [1, 64], true, false);
        c.order = a.order.clone();
        let dense_part = host_weight(&mut random, WeightFormat::BF16, 9, k);
        let weights = [dense_of(&a), dense_of(&c), dense(&dense_part), dense_of(&b)].concat();
        let parts = [HostMatrix::from(a), HostMatrix::from(c), HostMatrix::Rows(dense_part), HostMatrix::from(b)];
        let layer = layer_of(&device, &parts, None);
        for rows in [1, 5] {
            let x = random.vec(rows * k);
            for (i, out) in apply(&device, &x, &layer).iter().enumerate() {
                let (sum, size) = dot(&x[i / layer.n * k..][..k], &weights[i % layer.n * k..][..k]);
                assert!((f64::from(*out) - sum).abs() <= 1e-6 * size + 1e-6, "{} {i}", device.name());
            }
        }
    }
}

#[test]
fn odd_shapes_are_exact_too() {
    let mut random = Random(25);
    let device = CpuDevice::new(Some(1)).unwrap();
    let four = Code::Four { book: books::NF4, first: Nibble::High };
    for (k, cols) in [(50, 50), (48, 24), (96, 12)] {
        let matrix = coded(&mut random, four, [5, k], [1, cols], false, false);
        let weights = dense_of(&matrix);
        let layer = layer_of(&device, &[HostMatrix::from(matrix)], None);
        let x = random.vec(k);
        for (i, out) in apply(&device, &x, &layer).iter().enumerate() {
            let (sum, size) = dot(&x, &weights[i * k..][..k]);
            assert!((f64::from(*out) - sum).abs() <= 1e-6 * size + 1e-6, "{k} {cols} {i}");
        }
    }
}
