//! Activations in NVFP4 against the CPU's, bit for bit on any GPU, and products of them, which take compute capability 12.x.

use std::sync::Arc;

use half::bf16;
use pagoda_engine::weights::mapped::MappedBytes;
use pagoda_engine::weights::quant::books::{E2M1, e4m3};
use pagoda_engine::weights::quant::quantize::floats::{Fp4Row, fp4_row};
use pagoda_engine::weights::quant::{CodedMatrix, ScaleValues, Scales};
use pagoda_kernels::ops::DType;
use pagoda_kernels::ops::fp4::{Fp4Gemm, Fp4Inputs, SLOT_COLUMNS, fp4_gemm, fp4_quantize, has_fp4_gemm};
use pagoda_kernels::ops::gemm::Epilogue;
use pagoda_kernels::{DeviceMemory, Gpu};

use crate::cuda_codes::{Random, coded, download, formats, pack, upload};
use crate::gpu;

/// Tokens whose largest values are far apart, some of zeros, with groups of nothing.
fn tokens(random: &mut Random, num_tokens: usize, k: usize) -> Vec<f32> {
    let size = |token: usize| [1.0, 3e4, 1e-6, 0.0, 1e-33, 40.0][token % 6];
    let value = |i: usize, unit: f32| size(i / k) * unit * if i % k / 16 % 5 == 3 { 1e-4 } else { 1.0 };
    (0..num_tokens * k).map(|i| bf16::from_f32(value(i, random.unit())).to_f32()).collect()
}

/// The rounded tokens on the GPU, with their memory.
fn rounded(gpu: &Arc<Gpu>, x: &[f32], num_tokens: usize) -> (Fp4Inputs, DeviceMemory) {
    let k = x.len() / num_tokens;
    let halves: Vec<u8> = x.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let (from, room) = (upload(gpu, &halves), upload(gpu, &vec![0xa5; Fp4Inputs::bytes(num_tokens, k)]));
    let inputs = Fp4Inputs::new(room.bytes(), num_tokens, k);
    fp4_quantize(&inputs, from.bytes(), num_tokens, gpu.stream().unwrap()).unwrap();
    gpu.synchronize().unwrap();
    (inputs, room)
}

#[test]
fn activations_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for (num_tokens, k) in [(1, 64), (7, 128), (130, 3584), (6, 18944)] {
        let x = tokens(&mut Random(k as u64), num_tokens, k);
        let (inputs, _room) = rounded(&gpu, &x, num_tokens);
        let (codes, scales) = (download(&gpu, inputs.codes), download(&gpu, inputs.scales));
        let factors: Vec<f32> = bytemuck::pod_collect_to_vec(&download(&gpu, inputs.factors));
        for (token, values) in x.chunks_exact(k).enumerate() {
            let want = fp4_row(values);
            assert_eq!(factors[token].to_bits(), want.factor.to_bits(), "factor of token {token} of {num_tokens} x {k}");
            for group in 0..k / 16 {
                let scale = scales[(group / 4 * inputs.ld_scales + token) * 4 + group % 4];
                assert_eq!(scale, want.scales[group], "scale {group} of token {token} of {num_tokens} x {k}");
                let bytes = &codes[(token * k + group * 16) / 2..][..8];
                let got: Vec<u8> = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
                let slots = SLOT_COLUMNS.map(|col| want.codes[group * 16 + col]);
                assert_eq!(got, slots, "codes of group {group} of token {token} of {num_tokens} x {k}");
            }
        }
    }
}

/// A value that is not finite must not look like one that is.
#[test]
fn a_token_that_is_not_finite_has_no_finite_factor() {
    let Some(gpu) = gpu() else { return };
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![1.0; 2 * 64];
        x[70] = odd;
        let (inputs, _room) = rounded(&gpu, &x, 2);
        let factors: Vec<f32> = bytemuck::pod_collect_to_vec(&download(&gpu, inputs.factors));
        assert!(factors[0].is_finite() && !factors[1].is_finite(), "{odd}: {factors:?}");
    }
}

/// An NVFP4 matrix as checkpoints have it: e4m3 scales over one of the tensor.
fn nvfp4_matrix(random: &mut Random, n: usize, k: usize) -> CodedMatrix {
    let format = formats().into_iter().find(|format| format.book == E2M1 && format.group == 16).unwrap();
    let codes: Vec<u8> = (0..n * k / 16).map(|_| (0x48 + random.next() % 0x30) as u8).collect();
    let table = Box::new(std::array::from_fn(|byte| e4m3(byte as u8) * 0.003));
    let values = ScaleValues::Table { codes: MappedBytes::from_slice(&codes), table };
    CodedMatrix { scales: Scales::new(1, 16, k, values), ..coded(random, &format, n, k) }
}

fn row_values(row: &Fp4Row) -> Vec<f64> {
    let value = |i: usize, code: u8| f64::from(E2M1[usize::from(code)]) * f64::from(e4m3(row.scales[i / 16])) * f64::from(row.factor);
    row.codes.iter().enumerate().map(|(i, code)| value(i, *code)).collect()
}

/// Sums of products of the rounded operands, and of their sizes.
fn sums(x: &[f64], w: &[f64]) -> (f64, f64) {
    x.iter().zip(w).fold((0.0, 0.0), |(sum, size), (x, w)| (sum + x * w, size + (x * w).abs()))
}

fn check_product(gpu: &Arc<Gpu>, (num_tokens, n, k): (usize, usize, usize), epilogue: Epilogue, dtype: DType) {
    let mut random = Random((n + k) as u64);
    let gated = epilogue == Epilogue::SiluMul;
    let matrix = nvfp4_matrix(&mut random, n, k);
    let packed = pack(gpu, &matrix, gated);
    let x: Vec<f32> = (0..num_tokens * k).map(|_| bf16::from_f32(random.unit()).to_f32()).collect();
    let bias: Vec<f32> = (0..n).map(|_| random.unit()).collect();
    let (inputs, _room) = rounded(gpu, &x, num_tokens);
    let cols = if gated { n / 2 } else { n };
    let (out, bias_gpu) = (upload(gpu, &vec![0; num_tokens * cols * dtype.size()]), upload(gpu, bytemuck::cast_slice(&bias)));
    let (out_bytes, bias_bytes) = (out.bytes(), Some(bias_gpu.bytes()));
    let (w, ld_out) = (packed.matrix, cols);
    let params = Fp4Gemm { out: out_bytes, x: inputs, w, bias: bias_bytes, residual: None, num_tokens, ld_out, out_dtype: dtype, epilogue };
    fp4_gemm(&params, gpu.stream().unwrap()).unwrap();
    let bytes = download(gpu, out.bytes());
    let got: Vec<f32> = match dtype {
        DType::F32 => bytemuck::pod_collect_to_vec(&bytes),
        _ => bytes.as_chunks::<2>().0.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect(),
    };
    let weights: Vec<f32> = bytemuck::pod_collect_to_vec(matrix.to_f32().bytes.as_slice());
    let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
    let rows: Vec<Vec<f64>> = x.chunks_exact(k).map(|row| row_values(&fp4_row(row))).collect();
    for (i, got) in got.iter().enumerate() {
        let (token, col) = (i / cols, i % cols);
        let of_row = |row: usize| {
            let (sum, size) = sums(&rows[token], &weights[row * k..][..k]);
            (sum + f64::from(bias[row]), size)
        };
        let (sum, size) = of_row(col);
        let (want, size) = match gated {
            false => (sum, size),
            true => {
                let (up, up_size) = of_row(n / 2 + col);
                (sum / (1.0 + (-sum).exp()) * up, (1.0 + size) * (1.0 + up_size))
            }
        };
        let bound = 1e-4 * size + if dtype == DType::F32 { 1e-4 } else { 4e-3 } * want.abs();
        let error = (f64::from(*got) - want).abs();
        assert!(error <= bound, "{num_tokens} x {n} x {k}, {epilogue:?}, {dtype:?}: [{token}, {col}] is {got}, expected {want}");
    }
}

#[test]
fn products_are_those_of_the_rounded_operands() {
    let Some(gpu) = gpu() else { return };
    gpu.bind().unwrap();
    if gpu.info().compute_capability.0 != 12 || !has_fp4_gemm().unwrap() {
        eprintln!("skipped: compute capability {:?}, or no code for 12.x in this build", gpu.info().compute_capability);
        return;
    }
    for shape in [(1, 16, 64), (129, 144, 64), (200, 272, 448), (128, 128, 1024)] {
        for dtype in [DType::F32, DType::BF16] {
            check_product(&gpu, shape, Epilogue::Plain, dtype);
            check_product(&gpu, shape, Epilogue::SiluMul, dtype);
        }
    }
    check_product(&gpu, (131, 37, 192), Epilogue::Plain, DType::F32);
}
