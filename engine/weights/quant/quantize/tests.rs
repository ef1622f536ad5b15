//! Quantisers against recorded tensors and against the readers.

use std::path::Path;

use half::bf16;
use safetensors::SafeTensors;

use super::at_load::LoadFormat;
use super::floats::{fp4_row, fp8_rows, nvfp4, nvfp4_binary_global, nvfp4_global, to_e2m1, to_e4m3};
use super::four_bit::{dynamic_map, nearest_of, nested, nf4};
use super::integers::{Integers, through_f16};
use super::packing::{pack_awq, pack_gptq, transposed};
use crate::device::{HostMatrix, HostWeight};
use crate::weights::checkpoint::{Checkpoint, LinearRole};
use crate::weights::format::WeightFormat;
use crate::weights::mapped::MappedBytes;
use crate::weights::quant::Quantization;
use crate::weights::quant::books::{E2M1, FP4, e4m3};

/// A golden file: its tensors, and its source in f32.
struct Golden {
    name: &'static str,
    file: Vec<u8>,
}

impl Golden {
    fn open(name: &'static str) -> Golden {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/data/quant/{name}.safetensors"));
        Golden { name, file: std::fs::read(path).unwrap() }
    }

    fn bytes(&self, tensor: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.file).unwrap().tensor(tensor).unwrap().data().to_vec()
    }

    fn floats(&self, tensor: &str) -> Vec<f32> {
        self.bytes(tensor).as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }

    fn source(&self) -> Vec<f32> {
        self.bytes("w").as_chunks::<2>().0.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect()
    }

    fn check<T: PartialEq + std::fmt::Debug>(&self, tensor: &str, got: &[T], want: &[T]) {
        let differ = got.iter().zip(want).filter(|(got, want)| got != want).count();
        assert!(got.len() == want.len() && differ == 0, "{} {tensor}: {differ} of {} differ", self.name, want.len());
    }
}

/// Codes and scales that the values are made of come back; what is far below the largest is zeros.
#[test]
fn activations_that_are_nvfp4_stay_what_they_are() {
    for factor in [1.0f32, 0.0625, 4096.0] {
        let scales = [0x7e_u8, 0x38, 0x41, 0x08];
        let codes: Vec<u8> = (0..64).map(|i| (i * 5 + i / 16) as u8 % 16).collect();
        let value = |i: usize| E2M1[usize::from(codes[i])] * e4m3(scales[i / 16]) * factor;
        let row = fp4_row(&(0..64).map(value).collect::<Vec<f32>>());
        assert_eq!((row.scales.as_slice(), row.factor), (&scales[..], factor));
        let differ = (0..64).find(|&i| E2M1[usize::from(row.codes[i])] != E2M1[usize::from(codes[i])]);
        assert_eq!(differ, None, "codes {:?}, expected {codes:?}", row.codes);
    }
    let row = fp4_row(&[[2688.0f32; 16], [1e-3; 16], [0.0; 16]].concat());
    assert_eq!((row.factor, row.scales, &row.codes[16..]), (1.0, vec![0x7e, 0, 0], &[0; 32][..]));
    assert!(fp4_row(&[0.0; 16]).factor > 0.0);
}

#[test]
fn four_bit_codes_and_absmax_are_those_of_bitsandbytes() {
    for name in ["bnb_nf4", "bnb_fp4", "bnb_nf4_dq", "bnb_nf4_odd_dq"] {
        let golden = Golden::open(name);
        let blocks = if name == "bnb_fp4" { nearest_of(&FP4, &golden.source(), 64) } else { nf4(&golden.source(), 64) };
        golden.check("weight", &blocks.codes, &golden.bytes("weight"));
        if !name.ends_with("dq") {
            golden.check("weight.absmax", &blocks.absmax, &golden.floats("weight.absmax"));
            continue;
        }
        let map = dynamic_map();
        golden.check("weight.nested_quant_map", &map, &golden.floats("weight.nested_quant_map"));
        let nested = nested(&blocks.absmax, &map, 256);
        golden.check("weight.nested_absmax", &nested.absmax, &golden.floats("weight.nested_absmax"));
        golden.check("weight.absmax", &nested.codes, &golden.bytes("weight.absmax"));
        let state: serde_json::Value = serde_json::from_slice(&golden.bytes("weight.quant_state.bitsandbytes__nf4")).unwrap();
        assert_eq!(Some(f64::from(nested.offset)), state["nested_offset"].as_f64(), "{name}");
    }
}

#[test]
fn every_small_float_is_its_own_nearest_and_ties_go_to_even() {
    for byte in (0..=255u8).filter(|byte| byte & 0x7f != 0x7f) {
        assert_eq!(to_e4m3(e4m3(byte)), byte);
        let next = e4m3(byte.wrapping_add(1));
        if !next.is_nan() && byte != 0x7f {
            let even = if byte.is_multiple_of(2) { byte } else { byte + 1 };
            assert_eq!(to_e4m3((e4m3(byte) + next) / 2.0), even, "between {byte} and the next");
        }
    }
    assert_eq!((to_e4m3(1e9), to_e4m3(-460.0), to_e4m3(f32::NAN) & 0x7f), (0x7e, 0xfe, 0x7f));
    for (code, value) in E2M1.iter().enumerate() {
        assert_eq!(usize::from(to_e2m1(*value)), code);
    }
    let ties = [(0.25, 0), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6), (1e9, 7), (-5.1, 15)];
    assert!(ties.iter().all(|(x, code)| to_e2m1(*x) == *code));
}

#[test]
fn small_float_matrices_are_the_recorded_ones() {
    let golden = Golden::open("fp8_channel");
    let (codes, scales) = fp8_rows(&golden.source(), 256, |scale| scale);
    golden.check("weight", &codes, &golden.bytes("weight"));
    golden.check("weight_scale", &scales, &golden.floats("weight_scale"));

    let golden = Golden::open("nvfp4");
    let source = golden.source();
    let global = nvfp4_global(source.iter().fold(0.0, |max, x| max.max(x.abs())));
    let matrix = nvfp4(&source, global);
    golden.check("weight_packed", &matrix.codes, &golden.bytes("weight_packed"));
    golden.check("weight_scale", &matrix.scales, &golden.bytes("weight_scale"));
    golden.check("weight_global_scale", &[global], &golden.floats("weight_global_scale"));
}

#[test]
fn scales_of_nvfp4_at_load_are_e4m3_over_a_power_of_two() {
    for absmax in [0.0f32, 1.0, 0.013, 3.3e4, f32::MIN_POSITIVE, f32::MAX] {
        let (global, most) = (nvfp4_binary_global(absmax), nvfp4_global(absmax));
        assert!(global.to_bits() & 0x007f_ffff == 0 && global <= most && most < 2.0 * global, "{absmax}: {global} of {most}");
    }
    let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.77).sin() * 0.3).collect();
    let bytes = MappedBytes::from_slice(bytemuck::cast_slice(&values));
    let weight = HostWeight { name: "dense".into(), format: WeightFormat::F32, n: 1, k: 64, bytes };
    let HostMatrix::Coded(matrix) = LoadFormat::Fp4.convert(HostMatrix::Rows(weight)).unwrap() else { panic!("quantised") };
    assert_eq!(matrix.scales.unit(), Some(1.0));
    let mut scales = [0.0f32; 4];
    matrix.scales.read_row(0, &mut scales);
    assert!(scales.iter().all(|scale| scale.to_bits() & 0x000f_ffff == 0), "{scales:?}");
}

#[test]
fn integer_groups_are_the_recorded_ones() {
    let cases = [
        ("awq_g32", 4, 32, false, 0),
        ("awq_g128", 4, 128, false, 0),
        ("gptq_sym_g32", 4, 32, true, 1),
        ("gptq_asym_g64", 4, 64, false, 1),
        ("gptq_channel", 4, 256, true, 1),
        ("gptq_int8_g64", 8, 64, true, 1),
        ("gptq_v2_asym_g64", 4, 64, false, 0),
    ];
    for (name, bits, group, symmetric, min_zero) in cases {
        let (golden, k) = (Golden::open(name), 256);
        let grouped = Integers { bits, group, symmetric, min_zero }.quantize(&golden.source(), k, through_f16);
        let codes = match name.starts_with("awq") {
            true => pack_awq(&transposed(&grouped.q, k)),
            false => pack_gptq(&grouped.q, k, bits),
        };
        golden.check("qweight", &codes, &golden.bytes("qweight"));
        let scales: Vec<u8> =
            transposed(&grouped.scales, k / group).iter().flat_map(|scale| half::f16::from_f32(*scale).to_le_bytes()).collect();
        golden.check("scales", &scales, &golden.bytes("scales"));
    }
}

#[test]
fn loading_in_a_format_gives_its_recorded_values() {
    let int8 = Golden::open("bnb_nf4");
    let bytes = MappedBytes::from_slice(&int8.bytes("w"));
    let dense = HostWeight { name: "int8".into(), format: WeightFormat::BF16, n: 64, k: 256, bytes };
    let HostMatrix::Coded(matrix) = LoadFormat::Int8.convert(HostMatrix::Rows(dense)).unwrap() else { panic!("int8: not quantised") };
    assert_eq!(Some(matrix.bytes()), LoadFormat::Int8.bytes(64, 256));
    let got: Vec<f32> = matrix.to_f32().bytes.as_slice().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    for (got, want) in got.chunks_exact(256).zip(int8.source().chunks_exact(256)) {
        let step = want.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() <= step * 0.501), "within half a step");
    }
    let floats = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect::<Vec<f32>>();
    for (name, format) in [("bnb_nf4", LoadFormat::Nf4), ("fp8_channel", LoadFormat::Fp8), ("nvfp4", LoadFormat::Fp4)] {
        let golden = Golden::open(name);
        let dense = |n, k| {
            let bytes = MappedBytes::from_slice(&golden.bytes("w")[..2 * n * k]);
            HostMatrix::Rows(HostWeight { name: name.into(), format: WeightFormat::BF16, n, k, bytes })
        };
        let HostMatrix::Coded(matrix) = format.convert(dense(64, 256)).unwrap() else { panic!("{name}: not quantised") };
        let got = matrix.to_f32().bytes;
        if format == LoadFormat::Fp4 {
            // Over a power of two, where the recorded scales are over what makes the largest 448: other steps, as fine.
            let error =
                |values: Vec<f32>| values.iter().zip(golden.source()).map(|(value, source)| f64::from(value - source).powi(2)).sum();
            let (ours, recorded): (f64, f64) = (error(floats(got.as_slice())), error(floats(&golden.bytes("dequant"))));
            assert!(ours < 1.02 * recorded && ours > 0.5 * recorded, "squared error {ours}, recorded {recorded}");
        } else {
            golden.check("dequant", got.as_slice(), &golden.bytes("dequant"));
        }
        assert_eq!(Some(matrix.bytes()), format.bytes(64, 256), "{name}");
        assert!(matches!(format.convert(dense(8, 40)), Ok(HostMatrix::Rows(_))), "{name}: 40 columns stay as they are");
    }
}

#[test]
fn projections_and_heads_are_quantised_at_load_each_on_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = crate::testing::write_tiny(folder.path(), "llama", 1);
    let is_coded = |checkpoint: &Checkpoint, role| {
        let linear = checkpoint.linear(role, 0).unwrap();
        matches!(linear.parts[0].clone().converted(linear.load), Ok(HostMatrix::Coded(_)))
    };
    let (int8, nf4) = (Some(LoadFormat::Int8), Some(LoadFormat::Nf4));
    let cases = [
        (None, int8, None, [false, false, false, true]),
        (None, None, nf4, [false, false, true, false]),
        (Some(Quantization::Bitsandbytes), None, None, [true, true, false, false]),
        (Some(Quantization::Fp8), int8, nf4, [true, true, true, true]),
    ];
    let dense = Checkpoint::open(&path).unwrap().weight_bytes();
    for (wanted, head, embedding, expected) in cases {
        let mut checkpoint = Checkpoint::open(&path).unwrap();
        checkpoint.quantize_at_load(wanted, head, embedding).unwrap();
        let roles = [LinearRole::Qkv, LinearRole::Down, LinearRole::Embedding, LinearRole::LmHead];
        let what = format!("{wanted:?}, head {head:?}, embedding {embedding:?}");
        assert_eq!(roles.map(|role| is_coded(&checkpoint, role)), expected, "{what}");
        assert!(checkpoint.weight_bytes() < dense, "{what}: the plan counts codes");
    }
    // One matrix: the head's bits are both.
    let folder = tempfile::tempdir().unwrap();
    let mut tied = Checkpoint::open(&crate::testing::write_tiny(folder.path(), "qwen2", 1)).unwrap();
    assert!(tied.config.tie_word_embeddings);
    tied.quantize_at_load(None, int8, nf4).unwrap();
    let formats = [LinearRole::Embedding, LinearRole::LmHead].map(|role| tied.linear(role, 0).unwrap().load.quantize);
    assert_eq!(formats, [int8; 2]);
    let refused = Checkpoint::open(&path).unwrap().quantize_at_load(Some(Quantization::Awq), None, None);
    assert!(refused.is_err_and(|error| error.to_string().contains("option quantization: awq")));
}
