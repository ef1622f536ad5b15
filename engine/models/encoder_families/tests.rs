//! Configurations of encoders, read and refused.

use serde_json::{Value, json};

use super::*;

fn parse(value: Value) -> Result<EncoderConfig> {
    let path = Path::new("config.json");
    let map = value.as_object().expect("an object").clone();
    parse_encoder_config(path, &Fields::new(path, map)).map(|(config, _)| config)
}

fn config(architecture: &str, extra: Value) -> Value {
    let mut value = json!({
        "architectures": [architecture], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 512,
    });
    value.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    value
}

#[test]
fn bert_counts_positions_from_zero_and_roberta_behind_its_padding() {
    let bert = parse(config("BertModel", json!({"layer_norm_eps": 1e-12}))).expect("parses");
    assert_eq!((bert.max_seq_len, &bert.positions), (512, &Positions::Learned { rows: 512, offset: 0 }));
    assert_eq!((bert.head_dim, bert.num_token_types, bert.pre_norm, bert.gated, bert.head), (16, 2, false, false, None));
    let xlm = parse(config("XLMRobertaModel", json!({"pad_token_id": 1, "max_position_embeddings": 514, "type_vocab_size": 1})));
    let xlm = xlm.expect("parses");
    assert_eq!((xlm.family, xlm.max_seq_len, xlm.num_token_types), ("roberta", 512, 1));
    assert_eq!(xlm.positions, Positions::Learned { rows: 514, offset: 2 });
}

#[test]
fn distilbert_has_names_of_its_own_and_mpnet_a_bias_of_distances() {
    let sizes = json!({"architectures": ["DistilBertModel"], "vocab_size": 100, "dim": 64, "hidden_dim": 128, "n_layers": 3, "n_heads": 4,
        "max_position_embeddings": 512, "activation": "gelu"});
    let distil = parse(sizes.clone()).expect("parses");
    let shape = (distil.hidden_size, distil.intermediate_size, distil.num_heads, distil.radii.len(), distil.num_token_types);
    assert_eq!((distil.family, shape, distil.max_seq_len), ("distilbert", (64, 128, 4, 3, 0), 512));
    let mut odd = sizes;
    odd["n_heads"] = json!(5);
    let message = parse(odd).expect_err("refused").to_string();
    assert!(message.contains("`n_heads` is 5, which does not divide dim 64"), "{message}");
    let mpnet = parse(config("MPNetForMaskedLM", json!({"max_position_embeddings": 514, "pad_token_id": 7}))).expect("parses");
    assert_eq!((mpnet.max_seq_len, mpnet.relative_buckets, mpnet.num_token_types), (512, Some(32), 0));
    assert_eq!(mpnet.positions, Positions::Learned { rows: 514, offset: 2 });
    let few = parse(config("MPNetModel", json!({"relative_attention_num_buckets": 8}))).expect_err("refused").to_string();
    assert!(few.contains("relative_attention_num_buckets"), "{few}");
    let head = parse(config("MPNetForSequenceClassification", json!({"num_labels": 1}))).expect("parses").head.expect("a head");
    assert_eq!((head.num_labels, head.activation), (1, HeadActivation::Tanh));
}

#[test]
fn classifiers_have_a_head_with_as_many_scores_as_labels() {
    let one = json!({"id2label": {"0": "LABEL_0"}});
    let head = parse(config("BertForSequenceClassification", one)).expect("parses").head.expect("a head");
    assert_eq!((head.num_labels, head.activation, head.pools_mean), (1, HeadActivation::Tanh, false));
    let modern = json!({"num_labels": 3, "classifier_pooling": "mean"});
    let head = parse(config("ModernBertForSequenceClassification", modern)).expect("parses").head.expect("a head");
    assert_eq!((head.num_labels, head.activation, head.pools_mean), (3, HeadActivation::GeluNorm, true));
}

#[test]
fn modernbert_alternates_and_reads_both_layouts_of_its_rotation() {
    let old = json!({"global_attn_every_n_layers": 2, "local_attention": 32, "global_rope_theta": 90000.0, "local_rope_theta": null});
    let config_of = |extra| parse(config("ModernBertModel", extra)).expect("parses");
    let thetas = |config: &EncoderConfig| match &config.positions {
        Positions::Rotary { global, local } => (global.theta, local.theta),
        Positions::Learned { .. } => panic!("ModernBERT rotates"),
    };
    let old = config_of(old);
    assert_eq!((old.radii.as_slice(), thetas(&old)), (&[None, Some(16), None, Some(16)][..], (90000.0, 90000.0)));
    assert!(old.pre_norm && old.gated && !old.norm_bias && !old.attention_bias && !old.mlp_bias);
    let new = config_of(json!({
        "layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5000.0}, "sliding_attention": {"rope_theta": 7000.0}},
    }));
    assert_eq!((new.radii.as_slice(), thetas(&new)), (&[None, None, Some(64), None][..], (5000.0, 7000.0)));
    assert_eq!(thetas(&config_of(json!({}))), (160_000.0, 10_000.0));
}

#[test]
fn what_is_not_supported_is_named() {
    for (architecture, extra, expected) in [
        ("DebertaModel", json!({}), "unknown architecture `DebertaModel`; known: BertModel"),
        ("BertModel", json!({"position_embedding_type": "relative_key"}), "position_embedding_type"),
        ("BertModel", json!({"is_decoder": true}), "is_decoder"),
        ("BertModel", json!({"hidden_act": "relu"}), "`hidden_act` is `relu`"),
        ("BertModel", json!({"num_attention_heads": 5}), "num_attention_heads"),
        ("RobertaModel", json!({"max_position_embeddings": 3}), "max_position_embeddings"),
        ("ModernBertModel", json!({"layer_types": ["full_attention"]}), "layer_types"),
        (
            "ModernBertModel",
            json!({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}),
            "rope_parameters.full_attention.rope_type",
        ),
        ("ModernBertForSequenceClassification", json!({"classifier_pooling": "max"}), "classifier_pooling"),
    ] {
        let message = parse(config(architecture, extra)).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    }
}
