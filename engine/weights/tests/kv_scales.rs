//! Scales of a KV cache of e4m3, under every name that they have in checkpoints.

use std::path::Path;

use serde_json::json;

use super::{Parts, check_says};
use crate::device::KvScales;
use crate::testing::write_tiny;
use crate::weights::checkpoint::Checkpoint;

/// Name, shape and values of a tensor of f32.
type Tensor<'a> = (&'a str, &'a [usize], &'a [f32]);

fn add(path: &Path, tensors: &[Tensor<'_>]) -> Checkpoint {
    let file = path.join("model.safetensors");
    let mut parts = Parts::read(&file);
    for (name, shape, values) in tensors {
        let begin = parts.data.len();
        parts.data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, parts.data.len()] });
        parts.header.insert((*name).into(), entry);
    }
    std::fs::write(&file, parts.bytes()).unwrap();
    Checkpoint::open(path).unwrap()
}

#[test]
fn scales_are_found_by_each_of_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_tiny(folder.path(), "mistral", 1);
    let heads = Checkpoint::open(&path).unwrap().config.num_kv_heads;
    assert_eq!(heads, 2, "of the tiny mistral");
    let checkpoint = add(
        &path,
        &[
            ("model.layers.0.self_attn.k_scale", &[], &[0.5]),
            ("model.layers.0.self_attn.v_scale", &[1], &[0.25]),
            ("model.layers.1.self_attn.k_proj.k_scale", &[2], &[1.0, 2.0]),
            ("model.layers.1.self_attn.v_proj.v_scale", &[2], &[3.0, 4.0]),
        ],
    );
    let scales = |k: [f32; 2], v: [f32; 2]| Some(KvScales { k: k.to_vec(), v: v.to_vec() });
    assert_eq!(checkpoint.kv_scales(0).unwrap(), scales([0.5, 0.5], [0.25, 0.25]));
    assert_eq!(checkpoint.kv_scales(1).unwrap(), scales([1.0, 2.0], [3.0, 4.0]));
    assert_eq!(checkpoint.kv_scales(2).unwrap(), None);
}

#[test]
fn one_scale_may_serve_keys_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = add(&write_tiny(folder.path(), "mistral", 1), &[("model.layers.1.self_attn.kv_scale", &[1], &[0.125])]);
    assert_eq!(checkpoint.kv_scales(1).unwrap(), Some(KvScales { k: vec![0.125; 2], v: vec![0.125; 2] }));
}

#[test]
fn scales_that_divide_by_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_tiny(folder.path(), "mistral", 1);
    let checkpoint = add(
        &path,
        &[
            ("model.layers.0.self_attn.k_scale", &[1], &[0.0]),
            ("model.layers.1.self_attn.k_scale", &[3], &[1.0, 1.0, 1.0]),
            ("model.layers.2.self_attn.k_scale", &[1], &[f32::NAN]),
        ],
    );
    for (layer, expected) in [
        (0, "`model.layers.0.self_attn.k_scale` is 0, expected finite numbers above 0"),
        (1, "`model.layers.1.self_attn.k_scale` has shape [3], expected [2]"),
        (2, "`model.layers.2.self_attn.k_scale` is NaN"),
    ] {
        let said = checkpoint.kv_scales(layer).unwrap_err().to_string();
        check_says(&said, expected, &format!("layer {layer}"));
    }
}
