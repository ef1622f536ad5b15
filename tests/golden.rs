//! Tiny checkpoints of every family and tiny GGUF files, made here from a seed, against what transformers computed from the same weights:
//! strictly on the CPU, and on a GPU where there is one.

mod harness;

use harness::compare::Precision;
use harness::gpu::{available, check_suite_on_gpu};
use harness::{check_suite, small_options};
use pagoda_engine::loader::EngineOptions;
use pagoda_engine::testing::{ARCHS, GGUFS, QUANTISED, write_quantised, write_tiny, write_tiny_gguf};
use pagoda_engine::weights::quant::Quantization;
use pagoda_engine::weights::quant::quantize::export::{ExportFormat, export};

/// The seed of tests/data/golden.
const SEED: u64 = 1;

fn check_family(arch: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write_tiny(folder.path(), arch, SEED);
    check_suite(&format!("tiny_{arch}"), &path, &small_options(), Precision::F32);
}

fn check_gguf(name: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write_tiny_gguf(folder.path(), name, SEED);
    check_suite(&format!("tinygguf_{name}"), &path, &small_options(), Precision::F32);
}

fn check_family_on_gpu(arch: &str) {
    if available() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = write_tiny(folder.path(), arch, SEED);
        check_suite_on_gpu(&format!("tiny_{arch}"), &path, &small_options(), ["mixtral", "qwen3-moe"].contains(&arch));
    }
}

fn check_gguf_on_gpu(name: &str) {
    if available() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = write_tiny_gguf(folder.path(), name, SEED);
        check_suite_on_gpu(&format!("tinygguf_{name}"), &path, &small_options(), false);
    }
}

fn check_quantised(format: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write_quantised(folder.path(), format, SEED);
    check_suite(&format!("tinyq_{format}"), &path, &small_options(), Precision::F32);
}

fn check_quantised_on_gpu(format: &str) {
    if available() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = write_quantised(folder.path(), format, SEED);
        check_suite_on_gpu(&format!("tinyq_{format}"), &path, &small_options(), false);
    }
}

macro_rules! tests {
    ($check:ident, $check_on_gpu:ident: $($test:ident = $name:literal),* $(,)?) => {
        $(
            mod $test {
                #[test]
                fn on_the_cpu() {
                    super::$check($name);
                }

                #[test]
                fn on_a_gpu() {
                    super::$check_on_gpu($name);
                }
            }
        )*
    };
}

tests!(check_family, check_family_on_gpu:
    qwen2 = "qwen2",
    qwen2_yarn = "qwen2-yarn",
    qwen3 = "qwen3",
    llama = "llama",
    mistral = "mistral",
    phi3 = "phi3",
    gemma2 = "gemma2",
    gemma3 = "gemma3",
    mixtral = "mixtral",
    qwen3_moe = "qwen3-moe",
);

tests!(check_gguf, check_gguf_on_gpu:
    gguf_llama_q4_k_m = "llama-q4_k_m",
    gguf_llama_q5_k = "llama-q5_k",
    gguf_llama_q8_0 = "llama-q8_0",
    gguf_qwen2_q5_1 = "qwen2-q5_1",
    gguf_qwen2_q4_0 = "qwen2-q4_0",
);

tests!(check_quantised, check_quantised_on_gpu:
    quantised_awq = "awq",
    quantised_gptq_sym = "gptq-sym",
    quantised_gptq_asym = "gptq-asym",
    quantised_gptq_desc = "gptq-desc",
    quantised_gptq_channel = "gptq-channel",
    quantised_gptq_int8 = "gptq-int8",
    quantised_gptq_v2 = "gptq-v2",
    quantised_bnb_nf4 = "bnb-nf4",
    quantised_bnb_nf4_dq = "bnb-nf4-dq",
    quantised_bnb_fp4 = "bnb-fp4",
    quantised_fp8_channel = "fp8-channel",
    quantised_fp8_tensor = "fp8-tensor",
    quantised_fp8_ct_block = "fp8-ct-block",
    quantised_fp8_block = "fp8-block",
    quantised_nvfp4 = "nvfp4",
    quantised_nvfp4a16 = "nvfp4a16",
    quantised_mxfp4a16 = "mxfp4a16",
    quantised_ct_int4 = "ct-int4",
    quantised_ct_int4_asym = "ct-int4-asym",
);

#[test]
fn loading_in_four_bits_gives_the_golden_of_bitsandbytes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write_tiny(folder.path(), "qwen2", SEED);
    let options = EngineOptions { quantization: Some(Quantization::Bitsandbytes), ..small_options() };
    check_suite("tinyq_bnb-nf4", &path, &options, Precision::F32);
}

#[test]
fn written_checkpoints_give_the_goldens_of_their_formats() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write_tiny(folder.path(), "qwen2", SEED);
    for (suite, format) in [
        ("tinyq_bnb-nf4", ExportFormat::Nf4 { double: false }),
        ("tinyq_bnb-nf4-dq", ExportFormat::Nf4 { double: true }),
        ("tinyq_awq", ExportFormat::Awq { group: 32 }),
        ("tinyq_gptq-sym", ExportFormat::Gptq { group: 32 }),
    ] {
        let target = folder.path().join(suite);
        let exported = export(&path, &target, format, &mut |_, _| {}).expect("written");
        assert_eq!(exported.num_quantised, 21, "seven projections of three layers");
        assert!(export(&path, &target, format, &mut |_, _| {}).is_err(), "a folder that holds something is left alone");
        assert!(export(&target, &folder.path().join("again"), format, &mut |_, _| {}).is_err(), "quantised already");
        check_suite(suite, &target, &small_options(), Precision::F32);
    }
}

#[test]
fn every_family_and_format_has_its_goldens() {
    let folder = harness::case::data_folder().join("golden");
    let expected: Vec<String> = ARCHS
        .iter()
        .map(|a| format!("tiny_{a}"))
        .chain(GGUFS.iter().map(|g| format!("tinygguf_{g}")))
        .chain(QUANTISED.iter().map(|q| format!("tinyq_{q}")))
        .collect();
    for name in expected {
        assert!(folder.join(format!("{name}.json")).is_file(), "{name}.json is missing");
    }
}
