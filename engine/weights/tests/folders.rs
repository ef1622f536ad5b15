//! Hugging Face folders: the ten tiny families, shards, text files.

use std::path::Path;

use half::bf16;
use serde_json::json;

use super::{Parts, check_says, refusal};
use crate::device::{HostMatrix, HostWeight};
use crate::testing::{ARCHS, TinyTensor, tiny_tensors, write_tiny};
use crate::weights::checkpoint::{Checkpoint, LinearRole, TokenizerSource, VectorRole};
use crate::weights::format::WeightFormat;

fn find<'a>(tensors: &'a [TinyTensor], name: &str) -> &'a TinyTensor {
    tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no tensor {name}"))
}

fn bits(part: &HostWeight) -> Vec<u16> {
    part.bytes.as_slice().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

fn rows(part: &HostMatrix) -> &HostWeight {
    match part {
        HostMatrix::Rows(weight) => weight,
        HostMatrix::Coded(matrix) => panic!("{} is quantised", matrix.name),
    }
}

fn check_shapes(checkpoint: &Checkpoint, arch: &str) {
    let c = &checkpoint.config;
    let shape = |role, layer| {
        let linear = checkpoint.linear(role, layer).unwrap();
        assert!(linear.parts.iter().map(rows).all(|part| part.bytes.len() == part.n * part.row_bytes()), "{arch} {role:?}");
        (linear.parts.iter().map(|part| part.n()).sum::<usize>(), linear.parts[0].k(), linear.bias.map(|bias| bias.len()))
    };
    let qkv_rows = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim;
    assert_eq!(shape(LinearRole::Embedding, 0), (c.vocab_size, c.hidden_size, None), "{arch}");
    assert_eq!(shape(LinearRole::LmHead, 0), (c.vocab_size, c.hidden_size, None), "{arch}");
    for (layer, layer_config) in c.layers.iter().enumerate() {
        assert_eq!(shape(LinearRole::Qkv, layer), (qkv_rows, c.hidden_size, c.qkv_bias.then_some(qkv_rows)), "{arch}");
        assert_eq!(shape(LinearRole::O, layer), (c.hidden_size, c.num_heads * c.head_dim, None), "{arch}");
        match c.moe.filter(|_| layer_config.moe) {
            None => {
                assert_eq!(shape(LinearRole::GateUp, layer), (2 * c.intermediate_size, c.hidden_size, None), "{arch}");
                assert_eq!(shape(LinearRole::Down, layer), (c.hidden_size, c.intermediate_size, None), "{arch}");
            }
            Some(moe) => {
                assert_eq!(shape(LinearRole::Router, layer), (moe.num_experts, c.hidden_size, None), "{arch}");
                let last = moe.num_experts - 1;
                assert_eq!(shape(LinearRole::ExpertGateUp(last), layer), (2 * moe.intermediate_size, c.hidden_size, None), "{arch}");
                assert_eq!(shape(LinearRole::ExpertDown(last), layer), (c.hidden_size, moe.intermediate_size, None), "{arch}");
                assert!(checkpoint.linear(LinearRole::ExpertDown(moe.num_experts), layer).is_err(), "{arch}: one expert too many");
            }
        }
        let len = |role| checkpoint.vector(role, layer).map(|values| values.len()).ok();
        assert_eq!(len(VectorRole::InputNorm), Some(c.hidden_size), "{arch}");
        assert_eq!(len(VectorRole::MlpNorm), Some(c.hidden_size), "{arch}");
        assert_eq!(len(VectorRole::PostMlpNorm), c.post_norms.then_some(c.hidden_size), "{arch}");
        assert_eq!(len(VectorRole::PostAttentionNorm), c.post_norms.then_some(c.hidden_size), "{arch}");
        assert_eq!(len(VectorRole::QNorm), c.qk_norm.then_some(c.head_dim), "{arch}");
        assert_eq!(len(VectorRole::KNorm), c.qk_norm.then_some(c.head_dim), "{arch}");
    }
    assert!(checkpoint.linear(LinearRole::Qkv, c.layers.len()).is_err(), "{arch}: one layer too many");
}

#[test]
fn every_tiny_family_opens_with_the_shapes_of_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    for arch in ARCHS {
        let checkpoint = Checkpoint::open(&write_tiny(folder.path(), arch, 1)).unwrap_or_else(|error| panic!("{arch}: {error}"));
        check_shapes(&checkpoint, arch);
        let tensors = tiny_tensors(arch, 1);
        let all: usize = tensors.iter().map(|tensor| 2 * tensor.bits.len()).sum();
        assert_eq!(checkpoint.weight_bytes(), all, "{arch}: every tensor is used");
        assert_eq!((checkpoint.config.eos_token_ids.as_slice(), checkpoint.config.bos_token_id), ([766].as_slice(), Some(765)), "{arch}");
        let mut seen = 0;
        checkpoint.prefetch(|done, total| {
            assert!(done > seen && total == all, "{arch}");
            seen = done;
        });
        assert_eq!(seen, all, "{arch}");
    }
}

#[test]
fn weights_are_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&write_tiny(folder.path(), "qwen2", 3)).unwrap();
    let tensors = tiny_tensors("qwen2", 3);
    let qkv = checkpoint.linear(LinearRole::Qkv, 2).unwrap();
    let mut bias = Vec::new();
    for (part, letter) in qkv.parts.iter().map(rows).zip(["q", "k", "v"]) {
        assert_eq!(part.format, WeightFormat::BF16);
        assert_eq!(bits(part), find(&tensors, &format!("model.layers.2.self_attn.{letter}_proj.weight")).bits);
        bias.extend(find(&tensors, &format!("model.layers.2.self_attn.{letter}_proj.bias")).values());
    }
    assert_eq!(qkv.bias, Some(bias));
    let head = checkpoint.linear(LinearRole::LmHead, 0).unwrap();
    assert_eq!(&*rows(&head.parts[0]).name, "model.embed_tokens.weight", "tied");

    let checkpoint = Checkpoint::open(&write_tiny(folder.path(), "gemma2", 3)).unwrap();
    let stored = find(&tiny_tensors("gemma2", 3), "model.layers.1.pre_feedforward_layernorm.weight").values();
    let folded: Vec<f32> = stored.iter().map(|value| value + 1.0).collect();
    assert_eq!(checkpoint.vector(VectorRole::MlpNorm, 1).unwrap(), folded, "Gemma's norms are 1 + w");

    let checkpoint = Checkpoint::open(&write_tiny(folder.path(), "mixtral", 3)).unwrap();
    let expert = checkpoint.linear(LinearRole::ExpertGateUp(2), 1).unwrap();
    let tensors = tiny_tensors("mixtral", 3);
    for (part, name) in expert.parts.iter().map(rows).zip(["w1", "w3"]) {
        assert_eq!(bits(part), find(&tensors, &format!("model.layers.1.block_sparse_moe.experts.2.{name}.weight")).bits);
    }
}

#[test]
fn element_types_and_odd_alignment() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_tiny(folder.path(), "mistral", 1);
    let file = path.join("model.safetensors");
    let name = "model.layers.0.self_attn.o_proj.weight";
    let mut parts = Parts::read(&file);
    // A header of odd length puts every tensor at an odd address.
    parts.header.insert("__metadata__".into(), json!({"format": "pt", "pad": ""}));
    while parts.bytes().len().is_multiple_of(2) == parts.data.len().is_multiple_of(2) {
        parts.header["__metadata__"]["pad"] = json!("x");
    }
    std::fs::write(&file, parts.bytes()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let linear = checkpoint.linear(LinearRole::O, 0).unwrap();
    let part = rows(&linear.parts[0]);
    assert_eq!(part.bytes.as_slice().as_ptr().align_offset(2), 0, "an owned, aligned copy");
    assert_eq!(bits(part), find(&tiny_tensors("mistral", 1), name).bits);
    assert_eq!(checkpoint.vector(VectorRole::FinalNorm, 0).unwrap().len(), 64);
    assert!(bf16::from_bits(bits(part)[0]).to_f32().is_finite());
}

/// Splits a tiny checkpoint into two shards.
fn shard(path: &Path) -> serde_json::Value {
    let file = path.join("model.safetensors");
    let whole = Parts::read(&file);
    let mut map = serde_json::Map::new();
    let mut shards = [0, 1].map(|_| Parts { header: serde_json::Map::new(), data: Vec::new() });
    for (i, (name, entry)) in whole.header.iter().filter(|(name, _)| *name != "__metadata__").enumerate() {
        let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
        let shard = &mut shards[i % 2];
        let start = shard.data.len();
        shard.data.extend(&whole.data[offset(0)..offset(1)]);
        let mut entry = entry.clone();
        entry["data_offsets"] = json!([start, shard.data.len()]);
        shard.header.insert(name.clone(), entry);
        map.insert(name.clone(), format!("model-{}-of-2.safetensors", i % 2 + 1).into());
    }
    for (i, shard) in shards.iter().enumerate() {
        std::fs::write(path.join(format!("model-{}-of-2.safetensors", i + 1)), shard.bytes()).unwrap();
    }
    std::fs::remove_file(file).unwrap();
    let index = json!({"metadata": {"total_size": whole.data.len()}, "weight_map": map});
    std::fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
    index
}

#[test]
fn shards_and_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_tiny(folder.path(), "llama", 1);
    let whole = bits(rows(&Checkpoint::open(&path).unwrap().linear(LinearRole::Down, 1).unwrap().parts[0]));
    let index = shard(&path);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(bits(rows(&checkpoint.linear(LinearRole::Down, 1).unwrap().parts[0])), whole);
    assert_eq!(checkpoint.paths().len(), 2);
    drop(checkpoint);
    let name = "model.layers.1.mlp.down_proj.weight";
    let cases = [
        (json!("../model-1-of-2.safetensors"), "is not the name of a file in the folder"),
        (json!("/etc/passwd"), "is not the name of a file in the folder"),
        (json!(".."), "is not the name of a file in the folder"),
        (json!("a\\b"), "is not the name of a file in the folder"),
        (json!(""), "is not the name of a file in the folder"),
        (json!(7), "has no file name"),
        (json!("model-3-of-2.safetensors"), "model-3-of-2.safetensors: No such file"),
    ];
    for (file, expected) in cases {
        let mut broken = index.clone();
        broken["weight_map"][name] = file.clone();
        std::fs::write(path.join("model.safetensors.index.json"), broken.to_string()).unwrap();
        check_says(&refusal(&path, "index"), expected, &file.to_string());
    }
    let mut wrong_shard = index.clone();
    let other = if index["weight_map"][name] == "model-1-of-2.safetensors" { 2 } else { 1 };
    wrong_shard["weight_map"][name] = format!("model-{other}-of-2.safetensors").into();
    std::fs::write(path.join("model.safetensors.index.json"), wrong_shard.to_string()).unwrap();
    check_says(&refusal(&path, "index"), "is missing, model.safetensors.index.json says it is here", "wrong shard");
    std::fs::write(path.join("model.safetensors.index.json"), "{}").unwrap();
    check_says(&refusal(&path, "index"), "`weight_map` is missing", "empty index");
}

#[test]
fn text_files_and_their_precedence() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_tiny(folder.path(), "mistral", 1);
    let put = |name: &str, value: serde_json::Value| std::fs::write(path.join(name), value.to_string()).unwrap();
    put(
        "tokenizer_config.json",
        json!({
            "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "add_bos_token": true,
            "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
        }),
    );
    put("special_tokens_map.json", json!({"bos_token": "ignored", "unk_token": {"content": "<unk>"}, "pad_token": "<pad>"}));
    put("generation_config.json", json!({"eos_token_id": [766, 5], "temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": true}));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let text = &checkpoint.text;
    assert_eq!((text.bos_token.as_deref(), text.eos_token.as_deref(), text.add_bos_token), (Some("<s>"), Some("</s>"), Some(true)));
    assert_eq!(text.chat_template.as_deref(), Some("D"));
    let special = |key: &str| text.special_tokens.iter().find(|(name, _)| name == key).map(|(_, token)| token.as_str());
    assert_eq!((special("unk_token"), special("pad_token")), (Some("<unk>"), Some("<pad>")));
    assert_eq!(checkpoint.config.eos_token_ids, [766, 5], "config's, then generation_config's");
    let generation = &checkpoint.generation;
    assert_eq!((generation.temperature, generation.top_p, generation.top_k), (Some(0.6), Some(0.9), Some(20)));
    assert!(matches!(&checkpoint.tokenizer, TokenizerSource::File(file) if file.ends_with("tokenizer.json")));

    std::fs::write(path.join("chat_template.jinja"), "J").unwrap();
    put("generation_config.json", json!({"do_sample": false, "temperature": 0.6}));
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!((checkpoint.text.chat_template.as_deref(), checkpoint.generation.temperature), (Some("J"), Some(0.0)));

    for name in ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"] {
        std::fs::remove_file(path.join(name)).unwrap();
    }
    assert!(Checkpoint::open(&path).unwrap().text.chat_template.is_none(), "all of them are optional");
    std::fs::write(path.join("generation_config.json"), "{\"eos_token_id\": 768}").unwrap();
    check_says(&refusal(&path, "eos"), "special token 768 is outside the vocabulary of 768", "eos");
    std::fs::remove_file(path.join("tokenizer.json")).unwrap();
    check_says(&refusal(&path, "tokenizer"), "holds no tokenizer.json", "tokenizer");
}
