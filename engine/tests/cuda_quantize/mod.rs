//! Quantising on a GPU against the CPU's, bit for bit.

use half::{bf16, f16};
use pagoda_engine::device::cpu::CpuDevice;
use pagoda_engine::device::{Device, HostMatrix, HostWeight, MatrixLoad, MatrixUse};
use pagoda_engine::weights::format::WeightFormat;
use pagoda_engine::weights::mapped::MappedBytes;
use pagoda_engine::weights::quant::LoadFormat;
use pagoda_engine::weights::quant::books::e4m3;
use pagoda_engine::weights::quant::quantize::floats::{nvfp4, nvfp4_binary_global};
use pagoda_engine::weights::quant::quantize::four_bit::nf4;
use pagoda_kernels::ops::DType;
use pagoda_kernels::ops::w4_quantize::{Nf4Blocks, Nvfp4Groups, absmax, nf4_quantize, nvfp4_quantize};

use crate::cuda_codes::{Random, download, upload};
use crate::cuda_pair::Pair;
use crate::gpu;

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn rounded(v: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => v,
        DType::F16 => f16::from_f32(v).to_f32(),
        DType::BF16 | DType::E4M3 => bf16::from_f32(v).to_f32(),
    }
}

fn to_bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        DType::BF16 | DType::E4M3 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

/// Values that are hard to quantise: ties, zeros of both signs, subnormals, blocks of nothing, infinities, NaN.
fn hard_values(random: &mut Random, dtype: DType) -> Vec<f32> {
    let mut values: Vec<f32> = (0..64 * 300).map(|i| random.unit() * 2f32.powi(-(i / 64 % 40))).collect();
    let edges = [-0.848_096_4, -0.610_632_96, -0.023_0, 0.039_790_15, 0.120_255_25, 0.5016634, 0.642_786_9, 0.861_478_4];
    for (block, values) in values.chunks_exact_mut(64).enumerate() {
        match block % 10 {
            0 => values.fill(if block % 20 == 0 { 0.0 } else { -0.0 }),
            1 => values.iter_mut().for_each(|v| *v *= 1e-38),
            2 => values.iter_mut().for_each(|v| *v *= 1e-44),
            3 => values.iter_mut().enumerate().for_each(|(i, v)| *v = if i == 63 { 1.0 } else { edges[i % 8] }),
            4 => (values[3], values[40]) = (f32::NAN, -0.0),
            5 => values[17] = f32::INFINITY,
            6 => values.iter_mut().for_each(|v| *v = v.signum() * 0.25),
            _ => {}
        }
    }
    values.into_iter().map(|v| rounded(v, dtype)).collect()
}

#[test]
fn codes_and_absmax_are_those_of_bitsandbytes() {
    let Some(gpu) = gpu() else { return };
    for dtype in DTYPES {
        let mut random = Random(35);
        let mut values = hard_values(&mut random, dtype);
        // Every bf16 and the neighbours of every midpoint, as quotients: the last block entry is 1.
        values.extend((0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()).filter(|v| v.abs() <= 1.0));
        let whole = values.len() / 64 * 64;
        values.truncate(whole);
        values.chunks_exact_mut(64).skip(300).for_each(|block| block[63] = 1.0);
        values.iter_mut().for_each(|v| *v = rounded(*v, dtype));
        let (from, count) = (upload(&gpu, &to_bytes(&values, dtype)), values.len());
        let (codes, absmax, largest) = (upload(&gpu, &vec![0xa5; count / 2]), upload(&gpu, &vec![0xa5; count / 16]), upload(&gpu, &[0; 4]));
        let out = Nf4Blocks { codes: codes.bytes(), absmax: absmax.bytes(), largest: largest.bytes() };
        nf4_quantize(&out, from.bytes(), dtype, count, gpu.stream().unwrap()).unwrap();
        let want = nf4(&values, 64);
        let got_absmax: Vec<f32> = bytemuck::pod_collect_to_vec(&download(&gpu, absmax.bytes()));
        assert!(got_absmax.iter().zip(&want.absmax).all(|(a, b)| a.to_bits() == b.to_bits()), "{dtype:?}: absmax");
        let got_codes = download(&gpu, codes.bytes());
        if let Some(i) = (0..count / 2).find(|i| got_codes[*i] != want.codes[*i]) {
            panic!("{dtype:?}: codes {:#04x} for {:?}, expected {:#04x}", got_codes[i], &values[2 * i..2 * i + 2], want.codes[i]);
        }
        let largest: Vec<f32> = bytemuck::pod_collect_to_vec(&download(&gpu, largest.bytes()));
        assert_eq!(largest[0], want.absmax.iter().fold(0.0f32, |max, v| max.max(*v)), "{dtype:?}");
    }
}

/// What the GPU makes of some values: codes, scales, the largest scale, the largest magnitude.
fn nvfp4_on_gpu(values: &[f32], dtype: DType) -> Option<(Vec<u8>, Vec<f32>, f32, f32)> {
    let gpu = gpu()?;
    let (from, count) = (upload(&gpu, &to_bytes(values, dtype)), values.len());
    let (codes, scales) = (upload(&gpu, &vec![0xa5; count / 2]), upload(&gpu, &vec![0xa5; count / 4]));
    let (largest, most) = (upload(&gpu, &[0; 4]), upload(&gpu, &[0; 4]));
    let out = Nvfp4Groups { codes: codes.bytes(), scales: scales.bytes(), largest: largest.bytes() };
    absmax(most.bytes(), from.bytes(), dtype, count, gpu.stream().unwrap()).unwrap();
    nvfp4_quantize(&out, most.bytes(), from.bytes(), dtype, count, gpu.stream().unwrap()).unwrap();
    let floats = |bytes| bytemuck::pod_collect_to_vec::<u8, f32>(&download(&gpu, bytes));
    Some((download(&gpu, codes.bytes()), floats(scales.bytes()), floats(largest.bytes())[0], floats(most.bytes())[0]))
}

fn check_nvfp4(what: &str, values: &[f32], dtype: DType) {
    let values: Vec<f32> = values.iter().map(|v| rounded(*v, dtype)).collect();
    let most = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    assert!(most.is_finite(), "{what}: {dtype:?} holds the values");
    let Some((codes, scales, largest, got_most)) = nvfp4_on_gpu(&values, dtype) else { return };
    assert_eq!(got_most, most, "{what}, {dtype:?}: absmax");
    let global = nvfp4_binary_global(most);
    let want = nvfp4(&values, global);
    let want_scales: Vec<f32> = want.scales.iter().map(|byte| e4m3(*byte) / global).collect();
    for (i, (got, want)) in scales.iter().zip(&want_scales).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{what}, {dtype:?}: scale {i} is {got}, expected {want}: {:?}", &values[16 * i..][..16]);
    }
    if let Some(i) = (0..codes.len()).find(|i| codes[*i] != want.codes[*i]) {
        let (pair, scale) = (&values[2 * i..2 * i + 2], want_scales[i / 8]);
        panic!("{what}, {dtype:?}: codes {:#04x} for {pair:?} over {scale}, expected {:#04x}", codes[i], want.codes[i]);
    }
    assert_eq!(largest, want_scales.iter().fold(0.0f32, |max, v| max.max(*v)), "{what}, {dtype:?}: largest scale");
}

/// Groups whose largest value is 6 steps, of every midpoint of e2m1 and its neighbours.
fn ties(step: f32) -> Vec<f32> {
    let edges = [0.25f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let near = |edge: f32| {
        [edge, edge * (1.0 - f32::EPSILON), edge * (1.0 + f32::EPSILON), edge * (1.0 - 1.0 / 128.0), edge * (1.0 + 1.0 / 128.0)]
    };
    let all: Vec<f32> = edges.into_iter().flat_map(near).flat_map(|v| [v, -v]).collect();
    all.chunks(15).flat_map(|part| [&[6.0], part, &vec![0.0; 15 - part.len()]].concat()).map(|v| v * step).collect()
}

#[test]
fn nvfp4_is_that_of_the_cpu() {
    for dtype in DTYPES {
        let mut random = Random(37);
        let hard: Vec<f32> = hard_values(&mut random, dtype).into_iter().map(|v| if v.is_finite() { v } else { -0.0 }).collect();
        check_nvfp4("hard values", &hard, dtype);
        // Scales of every power of two, down to those of e4m3's subnormals and none; their own ties where the largest value is 448 * 6.
        let mut values: Vec<f32> = (-14..=6).flat_map(|power| ties(2f32.powi(power))).collect();
        values.extend([[2688.0; 16], [0.0; 16], [-0.0; 16]].concat());
        let of_scale = |code: u16| [6.0 * (f32::from(code) + 0.5) / 512.0, 1.0 / 512.0].repeat(8);
        values.extend((0..64).flat_map(of_scale));
        check_nvfp4("ties", &values, dtype);
        check_nvfp4("zeros", &[[0.0f32; 32], [-0.0; 32]].concat(), dtype);
        let largest = match dtype {
            DType::F32 => f32::MAX,
            DType::F16 => f16::MAX.to_f32(),
            DType::BF16 | DType::E4M3 => bf16::MAX.to_f32(),
        };
        for size in [largest, 1e4, 0.02, 1e-30, 1e-35, 1e-36, 1e-39, 1e-44] {
            let values: Vec<f32> = (0..4096).map(|_| random.unit() * size).chain([size; 16]).collect();
            check_nvfp4(&format!("values up to {size}"), &values, dtype);
        }
    }
}

/// An infinity in the largest value would leave nothing of the others.
#[test]
fn nvfp4_of_what_is_not_finite_is_refused() {
    let load = MatrixLoad { usage: MatrixUse::Projection, quantize: Some(LoadFormat::Fp4) };
    let part = |name: &str, odd: Option<f32>| {
        let mut values = vec![0.5f32; 16 * 64];
        values[777] = odd.unwrap_or(0.25);
        let bytes = MappedBytes::from_slice(&to_bytes(&values, DType::BF16));
        HostMatrix::Rows(HostWeight { name: name.into(), format: WeightFormat::BF16, n: 16, k: 64, bytes })
    };
    let parts = |odd| vec![part("the.first", None), part("the.second", odd)];
    for odd in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
        let check = |answer: Option<String>| {
            assert!(answer.is_some_and(|text| text.contains("the.second") && text.contains("infinity or NaN")), "{odd}")
        };
        check(CpuDevice::new(None).unwrap().load_parts(parts(Some(odd)), load).err().map(|error| error.to_string()));
        let Some(pair) = Pair::new() else { continue };
        check(pair.gpu.load_parts(parts(Some(odd)), load).err().map(|error| error.to_string()));
        assert!(pair.gpu.load_parts(parts(None), load).is_ok(), "finite values behind {odd}");
    }
}
