//! Every format's recorded tensors, dequantised bit for bit, and what is said of broken ones.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::config::{GptqConfig, Method, parse};
use super::{Code, CodedMatrix, QuantConfig, Zeros, books, find};
use crate::device::HostMatrix;
use crate::weights::json::Fields;
use crate::weights::safetensors::open_file;
use crate::weights::store::{StoredTensor, TensorStore};

/// The place in the test stores.
const STEM: &str = "layer.proj";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/data/quant/{name}.safetensors"))
}

/// The tensors of a golden file as those of a matrix of a checkpoint.
fn store(name: &str) -> TensorStore {
    let mut store = TensorStore::default();
    for (name, tensor) in open_file(&mut store, &golden(name)).unwrap() {
        store.tensors.insert(format!("{STEM}.{name}").into(), tensor);
    }
    store
}

fn tensor<'a>(store: &'a TensorStore, name: &str) -> &'a StoredTensor {
    &store.tensors[format!("{STEM}.{name}").as_str()]
}

fn config(method: Method) -> Option<QuantConfig> {
    Some(QuantConfig { method, block: [128, 128] })
}

fn gptq(stores_zero: bool) -> Option<QuantConfig> {
    config(Method::Gptq(GptqConfig { stores_zero, group_size: None }))
}

fn read(store: &TensorStore, config: Option<&QuantConfig>) -> Result<HostMatrix, String> {
    let [n, k] = tensor(store, "dequant").shape[..] else { panic!("dequant is a matrix") };
    let source = find(store, config, STEM, n, k).map_err(|error| error.to_string())?;
    let (bytes, form) = (source.bytes, source.form);
    let matrix = source.read().map_err(|error| error.to_string())?;
    assert_eq!(form, matrix.form(), "the form that was announced");
    assert!(bytes.abs_diff(matrix.bytes()) <= 1024, "{bytes} bytes were announced, {} taken", matrix.bytes());
    Ok(matrix)
}

fn coded(matrix: HostMatrix) -> CodedMatrix {
    match matrix {
        HostMatrix::Coded(matrix) => *matrix,
        HostMatrix::Rows(_) => panic!("codes were expected"),
    }
}

/// f32 bytes of the whole matrix.
fn dequantised(matrix: HostMatrix) -> Vec<u8> {
    match matrix {
        HostMatrix::Rows(rows) => rows.bytes.as_slice().to_vec(),
        HostMatrix::Coded(matrix) => matrix.to_f32().bytes.as_slice().to_vec(),
    }
}

fn check(store: &TensorStore, config: Option<&QuantConfig>, name: &str) {
    let matrix = read(store, config).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (got, want) = (dequantised(matrix), tensor(store, "dequant").bytes.as_slice());
    let wrong = got.chunks_exact(4).zip(want.chunks_exact(4)).filter(|(got, want)| got != want).count();
    assert!(got.len() == want.len() && wrong == 0, "{name}: {wrong} of {} values differ", want.len() / 4);
}

#[test]
fn every_format_equals_its_golden_bit_for_bit() {
    let cases = [
        ("bnb_nf4", None),
        ("bnb_nf4_dq", None),
        ("bnb_nf4_odd_dq", None),
        ("bnb_fp4", None),
        ("awq_g32", config(Method::Awq)),
        ("awq_g128", config(Method::Awq)),
        ("gptq_sym_g32", gptq(false)),
        ("gptq_sym_g128", gptq(false)),
        ("gptq_channel", gptq(false)),
        ("gptq_asym_g64", gptq(false)),
        ("gptq_desc_act_g64", gptq(false)),
        ("gptq_v2_asym_g64", gptq(true)),
        ("gptq_int8_g64", gptq(false)),
        ("ct_int4_g32", None),
        ("ct_int4_asym_g128", None),
        ("ct_int8_channel", None),
        ("fp8_tensor", None),
        ("fp8_channel", None),
        ("fp8_block", None),
        ("fp8_block_aligned", None),
        ("nvfp4", None),
        ("mxfp4", None),
    ];
    for (name, config) in cases {
        let mut store = store(name);
        // What the shapes of a golden file would be taken for otherwise: its source in bf16.
        store.tensors.remove(format!("{STEM}.w").as_str());
        check(&store, config.as_ref(), name);
    }
}

/// Moves a tensor to another name.
fn rename(store: &mut TensorStore, from: &str, to: &str) {
    let tensor = store.tensors.remove(format!("{STEM}.{from}").as_str()).unwrap();
    store.tensors.insert(format!("{STEM}.{to}").into(), tensor);
}

#[test]
fn marlin_files_are_the_same_matrices() {
    for name in ["gptq_sym_g32", "gptq_sym_g128", "gptq_channel"] {
        let mut store = store(name);
        store.tensors.remove(format!("{STEM}.qweight").as_str());
        rename(&mut store, "marlin.qweight", "B");
        rename(&mut store, "marlin.scales", "s");
        check(&store, config(Method::Marlin).as_ref(), name);
    }
}

#[test]
fn modelopt_names_the_inverse_of_the_global_scale() {
    let mut store = store("nvfp4");
    rename(&mut store, "weight_packed", "weight");
    rename(&mut store, "weight_global_scale", "weight_scale_2");
    let global = f32::from_le_bytes(tensor(&store, "weight_scale_2").bytes.as_slice().try_into().unwrap());
    let inverse = (1.0 / global).to_le_bytes();
    store.tensors.get_mut(format!("{STEM}.weight_scale_2").as_str()).unwrap().bytes =
        crate::weights::mapped::MappedBytes::from_slice(&inverse);
    let got = dequantised(read(&store, config(Method::ModelOpt).as_ref()).unwrap());
    let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    for (got, want) in got.chunks_exact(4).zip(tensor(&store, "dequant").bytes.as_slice().chunks_exact(4)) {
        let (got, want) = (value(got), value(want));
        assert!((got - want).abs() <= want.abs() * 3e-7, "{got} for {want}");
    }
}

#[test]
fn codes_stay_in_the_file_where_their_layout_is_ours() {
    for (name, config) in [("bnb_nf4", None), ("ct_int4_g32", None), ("ct_int8_channel", None), ("fp8_block", None), ("mxfp4", None)] {
        let store = store(name);
        let matrix = coded(read(&store, config.as_ref()).unwrap());
        let inside = store.tensors.values().any(|tensor| tensor.bytes.as_slice().as_ptr() == matrix.codes.as_slice().as_ptr());
        assert!(inside, "{name}: the codes were copied");
    }
    let matrix = coded(read(&store("gptq_sym_g32"), gptq(false).as_ref()).unwrap());
    assert!(matches!((matrix.code, &matrix.zeros), (Code::Four { book: books::INT4, .. }, Zeros::None)), "symmetric: no zero points");
    assert!(matrix.order.is_none());
    assert!(coded(read(&store("gptq_desc_act_g64"), gptq(false).as_ref()).unwrap()).order.is_some());
}

#[test]
fn the_books_are_those_of_the_checkpoints() {
    for (name, book) in [("bnb_nf4", books::NF4), ("bnb_fp4", books::FP4)] {
        let bytes: Vec<u8> = book.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(tensor(&store(name), "weight.quant_map").bytes.as_slice() == bytes, "{name}");
    }
    assert_eq!((books::e4m3(0x7e), books::e4m3(0x01), books::e4m3(0x88)), (448.0, 1.0 / 512.0, -1.0 / 64.0));
    assert!(books::e4m3(0x7f).is_nan() && books::e4m3(0xff).is_nan() && books::e8m0(255).is_nan());
    assert_eq!((books::e8m0(127), books::e8m0(0), books::e8m0(254)), (1.0, 2.0f32.powi(-127), 2.0f32.powi(127)));
}

#[test]
fn broken_tensors_are_refused_by_name() {
    type Edit = fn(&mut StoredTensor);
    let cases: [(&str, &str, Edit, &str); 10] = [
        ("gptq_sym_g32", "qweight", |t| t.shape = vec![24, 64], "holds 256 codes in 24 words (3 bits), supported are 4 and 8 bits"),
        ("gptq_sym_g32", "qweight", |t| t.shape = vec![33, 64], "supported are 4 and 8 bits"),
        ("gptq_sym_g32", "scales", |t| t.shape = vec![7, 64], "has 7 groups, which do not divide 256 columns"),
        ("gptq_sym_g32", "qzeros", |t| t.shape = vec![8, 16], "has shape [8, 16], expected [8, 8]"),
        ("gptq_sym_g32", "scales", |t| t.type_name = "F32".into(), "is of type F32, expected F16 or BF16"),
        ("awq_g32", "qweight", |t| t.shape = vec![64, 32], "AWQ's gemv layout; supported is gemm"),
        ("bnb_nf4", "weight.absmax", |t| t.shape = vec![1], "has shape [1], expected [256]"),
        ("bnb_nf4", "weight.quant_state.bitsandbytes__nf4", |t| t.bytes = t.bytes.slice(0, 10), "is not valid JSON"),
        ("fp8_block", "weight_scale_inv", |t| t.shape = vec![2, 4], "expected [] or [1] or [192] or [192, 1] or [2, 3]"),
        ("nvfp4", "weight_scale", |t| t.type_name = "U8".into(), "is of type U8, expected F8_E4M3"),
    ];
    for (name, suffix, edit, expected) in cases {
        let mut store = store(name);
        edit(store.tensors.get_mut(format!("{STEM}.{suffix}").as_str()).unwrap());
        let config = if name.starts_with("awq") { config(Method::Awq) } else { gptq(false) };
        let said = read(&store, config.as_ref()).err().unwrap_or_else(|| panic!("{name} {suffix}: accepted"));
        assert!(
            said.contains(expected) && said.contains(&format!("`{STEM}.{suffix}`")),
            "{name}\n  said     {said}\n  expected {expected}"
        );
    }
    let mut store = store("gptq_sym_g32");
    store.tensors.remove(format!("{STEM}.scales").as_str());
    assert!(read(&store, gptq(false).as_ref()).is_err_and(|said| said.contains(".scales` is missing")));
    assert!(read(&self::store("awq_g32"), None).is_err_and(|said| said.contains("no quantization_config of method awq or gptq")));
}

fn parsed(config: Value) -> Result<QuantConfig, String> {
    let fields = Fields::new(Path::new("config.json"), config.as_object().unwrap().clone());
    parse(&fields, None).map_err(|error| error.to_string())
}

#[test]
fn configurations_of_every_method() {
    let cases = [
        (json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}), Method::Bitsandbytes),
        (json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "GEMM"}), Method::Awq),
        (json!({"quant_method": "gptq", "bits": 8, "group_size": -1}), Method::Gptq(GptqConfig { stores_zero: false, group_size: None })),
        (
            json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2"}),
            Method::Gptq(GptqConfig { stores_zero: true, group_size: Some(64) }),
        ),
        (json!({"quant_method": "gptq", "bits": 4, "is_marlin_format": true}), Method::Marlin),
        (json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}), Method::CompressedTensors),
        (json!({"quant_method": "fp8", "activation_scheme": "static"}), Method::Fp8),
        (json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), Method::ModelOpt),
    ];
    for (config, method) in cases {
        assert_eq!(parsed(config.clone()).map(|config| config.method), Ok(method), "{config}");
    }
    let block = |config: Value| parsed(config).map(|config| config.block);
    assert_eq!(block(json!({"quant_method": "fp8", "weight_block_size": [64, 256]})), Ok([64, 256]));
    let group = |weights: Value| json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}});
    assert_eq!(block(group(json!({"num_bits": 8, "strategy": "block", "block_structure": [128, 64]}))), Ok([128, 64]));
    let refused = [
        (json!({"quant_method": "hqq"}), "`quant_method` is `hqq`; supported are bitsandbytes, awq"),
        (json!({}), "`quant_method` is ``; supported are"),
        (json!({"quant_method": "gptq", "bits": 3}), "`bits` is 3; supported are 4 and 8 bits"),
        (json!({"quant_method": "awq", "version": "gemv"}), "`version` is `gemv`; supported are gemm"),
        (json!({"quant_method": "bitsandbytes", "bnb_4bit_quant_storage": "bfloat16"}), "supported are uint8"),
        (json!({"quant_method": "compressed-tensors", "format": "marlin-24"}), "`format` is `marlin-24`; supported are pack-quantized"),
        (group(json!({"num_bits": 2})), "`config_groups.group_0.weights.num_bits` is 2; supported are 4 and 8 bits"),
        (json!({"quant_method": "fp8", "weight_block_size": [0, 128]}), "`weight_block_size` is no pair"),
    ];
    for (config, expected) in refused {
        let said = parsed(config.clone()).expect_err("refused");
        assert!(said.contains(expected), "{config}\n  said     {said}\n  expected {expected}");
    }
}

/// A golden file with bytes of its header and data changed at random is read or refused, never a panic.
#[test]
fn changed_bytes_are_read_or_refused() {
    let mut state = 41u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let state = br#"{"quant_type": "nf4", "blocksize": 16, "shape": [8, 32], "nested_blocksize": 16, "nested_offset": 0.5}"#;
    let part = |name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>| crate::testing::RawTensor::new(name, dtype, shape, bytes);
    let seven = |len: usize| vec![7u8; len];
    let files = [
        vec![
            part("x.weight", "U8", &[128, 1], seven(128)),
            part("x.weight.absmax", "U8", &[16], seven(16)),
            part("x.weight.nested_absmax", "F32", &[1], seven(4)),
            part("x.weight.nested_quant_map", "F32", &[256], seven(1024)),
            part("x.weight.quant_map", "F32", &[16], seven(64)),
            part("x.weight.quant_state.bitsandbytes__nf4", "U8", &[state.len()], state.to_vec()),
        ],
        vec![
            part("x.qweight", "I32", &[4, 8], seven(128)),
            part("x.qzeros", "I32", &[2, 1], seven(8)),
            part("x.scales", "F16", &[2, 8], seven(32)),
            part("x.g_idx", "I32", &[32], (0..32i32).flat_map(|k| (k % 2).to_le_bytes()).collect()),
        ],
        vec![
            part("x.weight_packed", "U8", &[8, 16], seven(128)),
            part("x.weight_scale", "F8_E4M3", &[8, 2], seven(16)),
            part("x.weight_global_scale", "F32", &[1], seven(4)),
        ],
    ];
    let config = br#"{"quant_method": "gptq", "bits": 4, "group_size": 16}"#;
    let mut accepted = 0;
    for tensors in files {
        let file = crate::testing::raw_file(&tensors);
        super::probe::read_matrix(config, &file, 8, 32).expect("sound");
        for _ in 0..3000 {
            let mut broken = file.clone();
            for _ in 0..1 + next() % 3 {
                let at = next() % broken.len();
                broken[at] = next() as u8;
            }
            accepted += usize::from(super::probe::read_matrix(config, &broken, 8, 32).is_ok());
        }
    }
    assert!(accepted > 1000, "changed data is still data: {accepted}");
}
