//! Damaged safetensors files: each is refused with a sentence that names file and tensor.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Parts, check_says, refusal};
use crate::testing::write_tiny;
use crate::weights::safetensors::parse_header;

fn header(text: &str, data_len: usize) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &vec![0; data_len]].concat()
}

#[test]
fn damaged_headers() {
    let entry = |shape: &str, offsets: &str| format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#);
    let one = |shape: &str, offsets: &str| format!(r#"{{"a":{}}}"#, entry(shape, offsets));
    let cases = [
        (vec![], "has 0 bytes, too short for a header"),
        (vec![1; 7], "has 7 bytes, too short for a header"),
        (vec![0xFF; 8], "at most 100000000 are read"),
        (100u64.to_le_bytes().to_vec(), "header of 100 bytes in a file of 8"),
        (header("[]", 0), "header is not a JSON object"),
        (header("{\"a\":", 0), "header is not a JSON object"),
        (header("{\"a\": 1}", 0), "tensor `a`: bad header entry"),
        (header(r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, 4), "tensor `a`: bad header entry"),
        (header(&one("[-1]", "[0,4]"), 4), "tensor `a`: bad header entry"),
        (header(&one("[1]", "[0,4]"), 3), "tensor `a`: offsets 0..4 do not lie in the 3 bytes of data"),
        (header(&one("[1]", "[4,0]"), 4), "tensor `a`: offsets 4..0 do not lie"),
        (header(&one("[2]", "[0,4]"), 4), "tensor `a`: 4 bytes do not hold F32 of shape [2]"),
        (header(&one("[4611686018427387904,4]", "[0,0]"), 0), "tensor `a`: 0 bytes do not hold"),
        (header(&one("[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4), "tensor `a`: 9 dimensions"),
        (header(&one("[1]", "[4,8]"), 8), "tensor `a`: starts at 4, expected 0 (a hole)"),
        (header(&one("[1]", "[0,4]"), 6), "2 bytes after the last tensor"),
        (header(&format!(r#"{{"a":{},"b":{}}}"#, entry("[2]", "[0,8]"), entry("[1]", "[4,8]")), 8), "tensor `b`: starts at 4 inside `a`"),
    ];
    for (bytes, expected) in cases {
        check_says(&parse_header(&bytes).unwrap_err(), expected, &String::from_utf8_lossy(&bytes));
    }
    let good = parse_header(&header(&format!(r#"{{"__metadata__":{{"x":"y"}},"a":{}}}"#, entry("[1]", "[0,4]")), 4)).unwrap();
    assert_eq!((good.len(), good[0].name.as_str(), good[0].len), (1, "a", 4));
    assert!(parse_header(&header("{}", 0)).unwrap().is_empty());
}

/// Writes a tiny checkpoint with its header edited, the data following.
fn edited(folder: &Path, edit: impl FnOnce(&mut Parts)) -> std::path::PathBuf {
    let path = write_tiny(folder, "qwen2", 1);
    let file = path.join("model.safetensors");
    let mut parts = Parts::read(&file);
    edit(&mut parts);
    std::fs::write(file, parts.bytes()).unwrap();
    path
}

#[test]
fn damaged_tensors() {
    let folder = tempfile::tempdir().unwrap();
    const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
    const NORM: &str = "model.norm.weight";
    type Edit = fn(&mut Parts);
    let rename: Edit = |parts| {
        let entry = parts.header.remove(DOWN).unwrap();
        parts.header.insert("x".into(), entry);
    };
    let cases: [(&str, Edit, &str); 8] = [
        ("missing", rename, "model.safetensors: tensor `model.layers.1.mlp.down_proj.weight` is missing, expected shape [128, 256]"),
        ("transposed", |parts| parts.header[DOWN]["shape"] = json!([256, 128]), "has shape [256, 128], expected [128, 256]"),
        (
            "dtype",
            |parts| parts.header[DOWN]["dtype"] = json!("I16"),
            "`model.layers.1.mlp.down_proj.weight` is of type I16, expected a float",
        ),
        ("norm shape", |parts| parts.header[NORM]["shape"] = json!([64, 2]), "`model.norm.weight` has shape [64, 2], expected [128]"),
        ("norm dtype", |parts| parts.header[NORM]["dtype"] = json!("U16"), "tensor `model.norm.weight` is of type U16"),
        ("truncated", |parts| parts.data.truncate(1000), "(truncated file?)"),
        ("longer", |parts| parts.data.push(0), "1 bytes after the last tensor"),
        (
            "bias",
            |parts| {
                let len = parts.data.len();
                parts.data.extend([0; 256]);
                let entry = json!({"dtype": "BF16", "shape": [128], "data_offsets": [len, len + 256]});
                parts.header.insert("model.layers.0.self_attn.o_proj.bias".into(), entry);
            },
            "tensor `model.layers.0.self_attn.o_proj.bias` is there, but the configuration says that this layer has no bias",
        ),
    ];
    for (what, edit, expected) in cases {
        check_says(&refusal(&edited(folder.path(), edit), what), expected, what);
    }
}

#[test]
fn damaged_folders() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_tiny(folder.path(), "qwen2", 1);
    let replace = |name: &str, bytes: &[u8], expected: &str| {
        let before = std::fs::read(path.join(name)).unwrap();
        std::fs::write(path.join(name), bytes).unwrap();
        check_says(&refusal(&path, name), expected, name);
        std::fs::write(path.join(name), before).unwrap();
    };
    replace("config.json", b"{", "config.json: is not valid JSON");
    replace("config.json", b"[1]", "config.json: holds a list, expected an object");
    replace("config.json", b"\xFF\xFE", "config.json: is not UTF-8");
    replace("config.json", b"{\"architectures\": [\"T5\"]}", "T5: LlamaForCausalLM");
    replace("model.safetensors", b"", "model.safetensors: has 0 bytes, too short");
    replace("tokenizer_config.json", b"{\"bos_token\": 5}", "tokenizer_config.json: `bos_token` is neither a string nor an object");
    replace("tokenizer_config.json", b"{\"chat_template\": [{}]}", "`chat_template` is a list without a `template` string");
    replace("generation_config.json", b"{\"top_p\": 1.5}", "generation_config.json: `top_p` is 1.5, expected at most 1");
    std::fs::rename(path.join("model.safetensors"), path.join("pytorch_model.bin")).unwrap();
    check_says(&refusal(&path, "pickle"), "pytorch_model.bin is not read, convert it to safetensors", "pickle");
    std::fs::remove_file(path.join("config.json")).unwrap();
    check_says(&refusal(&path, "no config"), "config.json: No such file", "no config");
    check_says(&refusal(Path::new("no/such/model"), "no folder"), "no/such/model: No such file", "no folder");
}

#[test]
fn single_bytes_of_a_header_may_be_anything() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(write_tiny(folder.path(), "mistral", 1).join("model.safetensors")).unwrap();
    let end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in (0..end).step_by(7) {
        for value in [0, b'"', b'9', b'{', 0xFF] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(entries) = parse_header(&bytes) {
                assert!(entries.iter().all(|entry| entry.start + entry.len <= bytes.len()), "byte {at} = {value}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn headers_of_any_numbers(starts in prop::collection::vec((0u64..40, 0u64..40, 0u64..12), 0..5), data_len in 0usize..40) {
        let entries = starts.iter().enumerate().map(|(i, (start, end, dim))| {
            (format!("t{i}"), json!({"dtype": "U8", "shape": [dim], "data_offsets": [start, end]}))
        });
        let bytes = header(&Value::Object(entries.collect()).to_string(), data_len);
        if let Ok(entries) = parse_header(&bytes) {
            let covered: usize = entries.iter().map(|entry| entry.len).sum();
            prop_assert_eq!(covered, data_len);
        }
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_header(&bytes);
        let _ = crate::weights::gguf::parse(&bytes);
    }
}
