//! GGUF files: the tiny ones, one of each other architecture, and damage.

use std::path::{Path, PathBuf};

use super::{check_says, refusal};
use crate::device::RopeStyle;
use crate::models::config::{Activation, MoeConfig, RopeScaling};
use crate::testing::{GGUFS, GgufWriter, tiny_tensors, write_tiny_gguf};
use crate::weights::checkpoint::{Checkpoint, LinearRole, TokenizerSource, VectorRole};
use crate::weights::format::WeightFormat;
use crate::weights::gguf::{GgufValue, parse};

#[test]
fn tiny_files_open() {
    let folder = tempfile::tempdir().unwrap();
    for name in GGUFS {
        let checkpoint = Checkpoint::open(&write_tiny_gguf(folder.path(), name, 1)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let c = &checkpoint.config;
        let llama = name.starts_with("llama");
        assert_eq!(c.rope.style, if llama { RopeStyle::Interleaved } else { RopeStyle::HalfSplit }, "{name}");
        assert_eq!((c.qkv_bias, c.tie_word_embeddings, c.vocab_size), (!llama, !llama, 768), "{name}");
        assert_eq!(matches!(&c.rope.scaling, RopeScaling::PerDim { short, .. } if short.len() == 32), llama, "{name}");
        assert_eq!((c.eos_token_ids.as_slice(), c.bos_token_id), ([766].as_slice(), Some(765)), "{name}");
        let TokenizerSource::Gguf(vocab) = &checkpoint.tokenizer else { panic!("{name}: no vocabulary") };
        assert_eq!((vocab.model.as_str(), vocab.pre.as_str(), vocab.tokens.len(), vocab.add_bos), ("gpt2", "gpt-2", 768, Some(false)));
        assert_eq!(checkpoint.text.eos_token.as_deref(), Some("<|im_end|>"), "{name}");
        assert!(checkpoint.text.chat_template.as_deref().is_some_and(|template| template.contains("<|im_start|>")), "{name}");
        let formats: Vec<WeightFormat> =
            checkpoint.linear(LinearRole::Qkv, 1).unwrap().parts.into_iter().map(|part| part.into_rows().format).collect();
        let expected = match name {
            "llama-q4_k_m" => [WeightFormat::Q4K, WeightFormat::Q4K, WeightFormat::Q6K],
            "llama-q8_0" => [WeightFormat::Q8_0; 3],
            "llama-q5_k" => [WeightFormat::Q5K; 3],
            "qwen2-q5_1" => [WeightFormat::Q5_1; 3],
            _ => [WeightFormat::Q4_0; 3],
        };
        assert_eq!(formats, expected, "{name}");
        let tensors = tiny_tensors(if llama { "llama" } else { "qwen2" }, 1);
        let norm = tensors.iter().find(|tensor| tensor.name == "model.layers.1.post_attention_layernorm.weight").unwrap();
        assert_eq!(checkpoint.vector(VectorRole::MlpNorm, 1).unwrap(), norm.values(), "{name}");
    }
    let lone = tempfile::tempdir().unwrap();
    write_tiny_gguf(lone.path(), "qwen2-q4_0", 2);
    assert_eq!(Checkpoint::open(lone.path()).unwrap().config.family, "qwen2", "a folder with one .gguf file");
}

/// A file of zero weights: hidden 64, 2 heads of 32 with 1 key/value head, MLP of 32, vocabulary of 8.
struct Zeros {
    arch: &'static str,
    writer: GgufWriter,
    layers: usize,
}

impl Zeros {
    fn new(arch: &'static str, layers: usize) -> Zeros {
        let mut writer = GgufWriter::default();
        writer.text("general.architecture", arch);
        let numbers = [
            ("context_length", 128),
            ("embedding_length", 64),
            ("block_count", layers as u32),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ];
        numbers.iter().for_each(|(key, value)| writer.number(&format!("{arch}.{key}"), *value));
        writer.float(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-6);
        writer.text("tokenizer.ggml.model", "llama");
        let tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "<end_of_turn>", "<|end|>"].map(str::to_owned);
        writer.texts("tokenizer.ggml.tokens", &tokens);
        writer.ints("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 3, 1]);
        writer.number("tokenizer.ggml.eos_token_id", 2);
        let mut zeros = Zeros { arch, writer, layers };
        zeros.put("token_embd.weight", &[8, 64]).put("output_norm.weight", &[64]);
        zeros
    }

    fn put(&mut self, name: &str, shape: &[usize]) -> &mut Zeros {
        let len: usize = shape.iter().product();
        self.writer.tensor(name, shape, WeightFormat::F16, vec![0; 2 * len]);
        self
    }

    fn layers(mut self, tensors: &[(&str, &[usize])]) -> Zeros {
        for layer in 0..self.layers {
            for (name, shape) in tensors {
                self.put(&format!("blk.{layer}.{name}.weight"), shape);
            }
        }
        self
    }

    fn number(mut self, key: &str, value: u32) -> Zeros {
        self.writer.number(&format!("{}.{key}", self.arch), value);
        self
    }

    fn open(self, folder: &Path) -> Checkpoint {
        let path = folder.join(format!("{}.gguf", self.arch));
        std::fs::write(&path, self.writer.finish()).unwrap();
        Checkpoint::open(&path).unwrap_or_else(|error| panic!("{error}"))
    }
}

const NORMS: &[(&str, &[usize])] = &[("attn_norm", &[64]), ("ffn_norm", &[64]), ("attn_output", &[64, 64])];
const QKV: &[(&str, &[usize])] = &[("attn_q", &[64, 64]), ("attn_k", &[32, 64]), ("attn_v", &[32, 64])];
const MLP: &[(&str, &[usize])] = &[("ffn_gate", &[32, 64]), ("ffn_up", &[32, 64]), ("ffn_down", &[64, 32])];
const HEAD_NORMS: &[(&str, &[usize])] = &[("attn_q_norm", &[32]), ("attn_k_norm", &[32])];
const POST_NORMS: &[(&str, &[usize])] = &[("post_attention_norm", &[64]), ("post_ffw_norm", &[64])];
const EXPERTS: &[(&str, &[usize])] =
    &[("ffn_gate_inp", &[4, 64]), ("ffn_gate_exps", &[4, 32, 64]), ("ffn_up_exps", &[4, 32, 64]), ("ffn_down_exps", &[4, 64, 32])];

#[test]
fn every_other_architecture_opens() {
    let folder = tempfile::tempdir().unwrap();
    let moe = |zeros: Zeros| zeros.layers(NORMS).layers(QKV).layers(EXPERTS).number("expert_count", 4).number("expert_used_count", 2);
    let expected = Some(MoeConfig { num_experts: 4, top_k: 2, intermediate_size: 32, renormalise: true });
    let c = moe(Zeros::new("llama", 2)).open(folder.path());
    assert_eq!((c.config.moe, c.config.rope.style), (expected, RopeStyle::Interleaved));
    let part = c.linear(LinearRole::ExpertGateUp(3), 1).unwrap().parts.swap_remove(1).into_rows();
    assert_eq!((part.n, part.k, part.bytes.len(), &*part.name), (32, 64, 32 * 64 * 2, "blk.1.ffn_up_exps.weight[3]"));
    assert_eq!(c.config.eos_token_ids, [2, 6], "eos, and a control token that ends a turn; <|end|> is plain text here");

    let c = moe(Zeros::new("qwen3moe", 2)).layers(HEAD_NORMS).number("expert_feed_forward_length", 32).open(folder.path());
    assert_eq!((c.config.moe, c.config.qk_norm, c.config.rope.style), (expected, true, RopeStyle::HalfSplit));

    let c = Zeros::new("qwen3", 2).layers(NORMS).layers(QKV).layers(MLP).layers(HEAD_NORMS).open(folder.path());
    assert!(c.config.qk_norm && !c.config.qkv_bias && c.config.tie_word_embeddings);

    let fused: &[(&str, &[usize])] = &[("attn_qkv", &[128, 64]), ("ffn_up", &[64, 64]), ("ffn_down", &[64, 32])];
    let c = Zeros::new("phi3", 1).layers(NORMS).layers(fused).number("attention.sliding_window", 64).open(folder.path());
    assert_eq!(c.linear(LinearRole::Qkv, 0).unwrap().parts.len(), 1);
    assert_eq!((c.linear(LinearRole::GateUp, 0).unwrap().parts[0].n(), c.config.layers[0].window), (64, Some(64)));

    let gemma = |arch| Zeros::new(arch, 7).layers(NORMS).layers(QKV).layers(MLP).layers(POST_NORMS).number("attention.sliding_window", 16);
    let c = gemma("gemma2").open(folder.path()).config;
    assert_eq!((c.activation, c.embedding_scale, c.norm_plus_one, c.post_norms), (Activation::GeluTanh, 8.0, false, true));
    assert_eq!((c.attention_soft_cap, c.final_soft_cap), (Some(50.0), Some(30.0)));
    assert_eq!([0, 1, 2].map(|layer| c.layers[layer].window), [Some(16), None, Some(16)]);
    let c = gemma("gemma3").layers(HEAD_NORMS).open(folder.path()).config;
    assert_eq!((c.attention_soft_cap, c.qk_norm, c.rope_local.map(|rope| rope.theta)), (None, true, Some(10000.0)));
    let full: Vec<usize> = (0..7).filter(|layer| c.layers[*layer].window.is_none() && !c.layers[*layer].local_rope).collect();
    assert_eq!(full, [5]);
}

#[test]
fn rope_scaling_keys() {
    let folder = tempfile::tempdir().unwrap();
    let scaling = |kind: Option<&str>, floats: &[(&str, f32)]| {
        let mut zeros = Zeros::new("qwen2", 1).layers(NORMS).layers(QKV).layers(MLP);
        kind.iter().for_each(|kind| zeros.writer.text("qwen2.rope.scaling.type", kind));
        floats.iter().for_each(|(key, value)| zeros.writer.float(&format!("qwen2.rope.{key}"), *value));
        let config = zeros.number("rope.scaling.original_context_length", 64).open(folder.path()).config;
        (config.rope.scaling, config.max_position_embeddings)
    };
    assert_eq!(scaling(None, &[]), (RopeScaling::None, 128));
    assert_eq!(scaling(None, &[("scale_linear", 2.0)]), (RopeScaling::Linear { factor: 2.0 }, 128));
    assert_eq!(scaling(Some("linear"), &[("scaling.factor", 4.0)]), (RopeScaling::Linear { factor: 4.0 }, 128));
    let yarn = |attention_factor| RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        truncate: true,
    };
    assert_eq!(scaling(Some("yarn"), &[("scaling.factor", 4.0)]), (yarn(None), 256));
    let with_factor = scaling(Some("yarn"), &[("scaling.factor", 4.0), ("scaling.attn_factor", 2.0)]);
    assert_eq!(with_factor.0, yarn(Some(2.0 * (0.1 * 4f32.ln() + 1.0))));
}

#[test]
fn the_parser_reads_back_what_the_writer_wrote() {
    let mut writer = GgufWriter::default();
    writer.text("a", "é");
    writer.number("b", u32::MAX);
    writer.float("c", 0.5);
    writer.flag("d", true);
    writer.texts("e", &["x".to_owned(), String::new()]);
    writer.ints("f", &[-1, 7]);
    writer.tensor("t", &[2, 32], WeightFormat::Q8_0, (0..68).collect());
    writer.tensor("u", &[3], WeightFormat::F32, vec![9; 12]);
    let bytes = writer.finish();
    let file = parse(&bytes).unwrap();
    let expected = [
        ("a", GgufValue::Text("é".into())),
        ("b", GgufValue::Int(u32::MAX.into())),
        ("c", GgufValue::Float(0.5)),
        ("d", GgufValue::Bool(true)),
        ("e", GgufValue::Texts(vec!["x".into(), String::new()])),
        ("f", GgufValue::Ints(vec![-1, 7])),
    ];
    assert_eq!(file.metadata, expected.map(|(key, value)| (key.to_owned(), value)).into());
    let [t, u] = file.tensors.as_slice() else { panic!("two tensors") };
    assert_eq!(
        (t.shape.as_slice(), t.format, u.shape.as_slice(), u.format),
        ([2, 32].as_slice(), WeightFormat::Q8_0, [3].as_slice(), WeightFormat::F32)
    );
    assert_eq!(
        (&bytes[t.start..t.start + t.len], &bytes[u.start..u.start + u.len]),
        ((0..68).collect::<Vec<u8>>().as_slice(), [9; 12].as_slice())
    );
}

#[test]
fn damaged_files() {
    let good = || {
        let mut writer = GgufWriter::default();
        writer.text("general.architecture", "llama");
        writer.tensor("t", &[2, 32], WeightFormat::Q8_0, vec![0; 68]);
        writer.tensor("u", &[4], WeightFormat::F32, vec![0; 16]);
        writer.finish()
    };
    let bytes = good();
    let find = |what: &[u8]| bytes.windows(what.len()).position(|window| window == what).unwrap();
    // Header 24 bytes, key 8 + 20, type 4, string 8 + 5; then name 8 + 1, dims 4 + 2 * 8, type 4, offset 8.
    let tensor = find(b"llama") + 5 + 9;
    let cases: [(&str, usize, &[u8], &str); 16] = [
        ("magic", 0, b"GGML", "does not begin with `GGUF`"),
        ("version 1", 4, &[1], "is GGUF version 1, expected 2 or 3"),
        ("big-endian", 4, &[0, 0, 0, 3], "is a big-endian GGUF file"),
        ("tensors", 8, &[0xFF; 8], "tensors, at most"),
        ("keys", 16, &[0xFF; 8], "metadata keys, at most"),
        ("key length", 24, &[0xFF; 8], "(truncated file?)"),
        ("value type", 52, &[99], "key `general.architecture`: has unknown type 99"),
        ("array of arrays", 52, &[9, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "key `general.architecture`: array of arrays"),
        ("array count", 52, &[9, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF], "array entries, at most"),
        ("no dimensions", tensor, &[0], "tensor `t`: 0 dimensions"),
        ("dimensions", tensor, &[5], "tensor `t`: 5 dimensions"),
        ("zero dimension", tensor + 12, &[0], "tensor `t`: a dimension is zero"),
        ("huge dimension", tensor + 12, &[0xFF; 8], "tensor `t`: is too large"),
        ("row", tensor + 4, &[33], "tensor `t`: rows of 33 are no multiple of the 32 values of a Q8_0 block"),
        ("type", tensor + 20, &[16], "tensor `t`: type IQ2_XXS is not supported"),
        ("offset", tensor + 24, &[1], "tensor `t`: offset 1 is no multiple of the alignment 32"),
    ];
    for (what, at, change, expected) in cases {
        let mut bytes = good();
        bytes[at..at + change.len()].copy_from_slice(change);
        check_says(&parse(&bytes).unwrap_err(), expected, what);
    }
    let second = tensor + 32 + 9;
    let mut overlapping = good();
    overlapping[second + 16] = 64;
    check_says(&parse(&overlapping).unwrap_err(), "tensor `u`: starts at 224 inside `t`", "overlap");
    for len in 0..bytes.len() - 16 {
        assert!(parse(&bytes[..len]).is_err(), "accepted the first {len} of {} bytes", bytes.len());
    }
    let mut twice = GgufWriter::default();
    (0..2).for_each(|_| twice.tensor("t", &[4], WeightFormat::F32, vec![0; 16]));
    check_says(&parse(&twice.finish()).unwrap_err(), "tensor `t` occurs twice", "twice");
    let mut twice = GgufWriter::default();
    (0..2).for_each(|_| twice.number("k", 1));
    check_says(&parse(&twice.finish()).unwrap_err(), "key `k` occurs twice", "twice");
}

#[test]
fn single_bytes_of_a_file_may_be_anything() {
    let mut zeros = Zeros::new("llama", 1).layers(NORMS).layers(QKV).layers(MLP);
    zeros.writer.float("llama.rope.freq_base", 1e4);
    let whole = zeros.writer.finish();
    for at in 0..whole.len().min(1500) {
        for value in [0, 1, 0x7F, 0xFF] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(file) = parse(&bytes) {
                assert!(file.tensors.iter().all(|tensor| tensor.start + tensor.len <= bytes.len()), "byte {at} = {value}");
            }
        }
    }
}

#[test]
fn wrong_models_name_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let says = |writer: GgufWriter, expected: &str| {
        std::fs::write(&path, writer.finish()).unwrap();
        check_says(&refusal(&path, expected), expected, expected);
    };
    says(GgufWriter::default(), "model.gguf: key `general.architecture` is missing or no string");
    says(Zeros::new("mamba", 1).writer, "mamba: llama, qwen2, qwen3, qwen3moe, phi3, gemma2, gemma3");
    says(Zeros::new("llama", 1).layers(NORMS).writer, "model.gguf: tensor `blk.0.attn_q.weight` is missing, expected shape [64, 64]");
    says(
        Zeros::new("llama", 1).number("attention.value_length", 16).writer,
        "key `llama.attention.value_length` differs from the key length 32",
    );
    let mut split = Zeros::new("llama", 1).writer;
    split.number("split.count", 2);
    says(split, "a GGUF model split over several files");
    let mut scaled = Zeros::new("llama", 1).writer;
    scaled.text("llama.rope.scaling.type", "cubic");
    says(scaled, "key `llama.rope.scaling.type` is `cubic`");
    std::fs::write(&path, b"not a model").unwrap();
    check_says(&refusal(&path, "no GGUF"), "model.gguf: does not begin with `GGUF`", "no GGUF");
}

/// The default model, where `pagoda pull` or a test run has put it.
fn cached_smollm2() -> Option<PathBuf> {
    let mut folders = vec![PathBuf::from(std::env::var_os("HOME")?).join(".cache/pagoda")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") && !path.ends_with("cuda") {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "SmolLM2-135M-Instruct.Q4_1.gguf") {
                return Some(path);
            }
        }
    }
    None
}

#[test]
fn smollm2_opens_when_it_is_in_the_cache() {
    let Some(path) = cached_smollm2() else {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: SmolLM2-135M-Instruct.Q4_1.gguf is not in ~/.cache/pagoda\n");
        return;
    };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let c = &checkpoint.config;
    assert_eq!((c.hidden_size, c.layers.len(), c.num_heads, c.num_kv_heads, c.vocab_size), (576, 30, 9, 3, 49152));
    assert_eq!((c.rope.theta, c.rope.style, c.tie_word_embeddings), (100000.0, RopeStyle::Interleaved, true));
    assert_eq!((c.eos_token_ids.as_slice(), c.bos_token_id), ([2, 0].as_slice(), Some(1)));
    assert_eq!(checkpoint.linear(LinearRole::Qkv, 29).unwrap().parts.swap_remove(1).into_rows().format, WeightFormat::Q4_1);
    assert_eq!(checkpoint.linear(LinearRole::LmHead, 0).unwrap().parts.swap_remove(0).into_rows().format, WeightFormat::Q8_0);
}
