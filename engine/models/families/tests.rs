//! Configurations of published models, reduced to the keys that are read, and what is wrong with broken ones.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::models::config::RopeScaling;

fn parse(config: &Value) -> Result<ModelConfig> {
    let path = Path::new("config.json");
    parse_config(path, &Fields::new(path, config.as_object().unwrap().clone())).map(|(config, _)| config)
}

fn parsed(config: &Value) -> ModelConfig {
    parse(config).unwrap_or_else(|error| panic!("{error}: {config}"))
}

fn merged(base: &Value, changes: Value) -> Value {
    let mut all = base.clone();
    for (key, value) in changes.as_object().unwrap() {
        all[key] = value.clone();
    }
    all
}

fn llama32_1b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 128256,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    })
}

fn mistral_7b() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "vocab_size": 32000,
    })
}

fn phi3_mini_4k() -> Value {
    json!({
        "architectures": ["Phi3ForCausalLM"], "bos_token_id": 1, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false, "vocab_size": 32064,
        "attention_bias": false,
    })
}

fn gemma3_1b() -> Value {
    json!({
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": null, "bos_token_id": 2,
        "eos_token_id": [1, 106], "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "vocab_size": 262144,
    })
}

#[test]
fn llama_with_llama3_scaling() {
    let c = parsed(&llama32_1b());
    assert_eq!((c.family, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim), ("llama", 2048, 32, 8, 64));
    assert_eq!((c.layers.len(), c.vocab_size, c.max_position_embeddings), (16, 128256, 131072));
    assert!(c.tie_word_embeddings && !c.qkv_bias && !c.o_bias && !c.mlp_bias && !c.qk_norm && !c.post_norms && !c.norm_plus_one);
    assert_eq!((c.activation, c.attention_scale, c.embedding_scale), (Activation::Silu, 0.125, 1.0));
    assert_eq!((c.rope.theta, c.rope.rotary_dim, c.rope_local.is_none()), (500000.0, 64, true));
    let original_max_position_embeddings = 8192;
    let scaling = RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings };
    assert_eq!(c.rope.scaling, scaling);
    assert_eq!((c.eos_token_ids, c.bos_token_id), (vec![128001, 128008, 128009], Some(128000)));
    assert!(c.layers.iter().all(|layer| layer.window.is_none() && !layer.moe));
}

#[test]
fn version_5_layout_means_the_same() {
    let mut new = llama32_1b();
    let map = new.as_object_mut().unwrap();
    let mut parameters = map.remove("rope_scaling").unwrap();
    parameters["rope_theta"] = map.remove("rope_theta").unwrap();
    map.insert("rope_parameters".into(), parameters);
    map.remove("torch_dtype");
    map.insert("dtype".into(), "bfloat16".into());
    assert_eq!(parsed(&new), parsed(&llama32_1b()));

    let mut new = gemma3_1b();
    let map = new.as_object_mut().unwrap();
    for key in ["rope_scaling", "rope_theta", "rope_local_base_freq", "sliding_window_pattern"] {
        map.remove(key);
    }
    let types: Vec<&str> = (1..=26).map(|layer| if layer % 6 == 0 { "full_attention" } else { "sliding_attention" }).collect();
    map.insert("layer_types".into(), json!(types));
    map.insert(
        "rope_parameters".into(),
        json!({
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }),
    );
    assert_eq!(parsed(&new), parsed(&gemma3_1b()));
}

#[test]
fn older_llamas() {
    let llama2 = json!({
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": null, "tie_word_embeddings": false,
        "vocab_size": 32000,
    });
    let c = parsed(&llama2);
    assert_eq!((c.head_dim, c.num_kv_heads, c.rope.theta, c.rope.scaling), (128, 32, 10000.0, RopeScaling::None));
    let c = parsed(&merged(&llama2, json!({"rope_scaling": {"type": "linear", "factor": 4.0}})));
    assert_eq!((c.rope.scaling, c.max_position_embeddings), (RopeScaling::Linear { factor: 4.0 }, 4096));
    let smollm2 = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": true, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 576, "intermediate_size": 1536, "max_position_embeddings": 8192, "mlp_bias": true, "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_interleaved": false, "rope_theta": 100000,
        "tie_word_embeddings": true, "vocab_size": 49152,
    });
    let c = parsed(&smollm2);
    assert_eq!((c.head_dim, c.rope.theta), (64, 100000.0));
    assert!(c.qkv_bias && c.o_bias && c.mlp_bias, "attention_bias and mlp_bias are read");
}

#[test]
fn qwen() {
    let qwen2 = json!({
        "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936,
    });
    let c = parsed(&qwen2);
    assert!(c.qkv_bias && !c.o_bias && !c.mlp_bias);
    assert!(c.layers.iter().all(|layer| layer.window.is_none()));
    let c = parsed(&merged(&qwen2, json!({"use_sliding_window": true, "sliding_window": 4096})));
    assert_eq!(c.layers.iter().map(|layer| layer.window.is_some()).collect::<Vec<_>>(), [vec![false; 21], vec![true; 3]].concat());
    let yarn = json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}});
    let c = parsed(&merged(&qwen2, yarn));
    assert_eq!(c.max_position_embeddings, 131072, "the extended context");
    let expected = RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 32768,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        truncate: true,
    };
    assert_eq!(c.rope.scaling, expected);
    let qwen3 = json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": null,
        "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936,
    });
    let c = parsed(&qwen3);
    assert!(c.qk_norm && !c.qkv_bias);
    assert_eq!((c.head_dim, c.num_heads * c.head_dim), (128, 2048));
}

#[test]
fn mistral_and_its_window() {
    let windows = |c: &ModelConfig| c.layers.iter().map(|layer| layer.window).collect::<Vec<_>>();
    assert_eq!(windows(&parsed(&mistral_7b())), vec![Some(4096); 32]);
    let without = merged(&mistral_7b(), json!({"sliding_window": null}));
    assert_eq!(windows(&parsed(&without)), vec![None; 32]);
    let as_long_as_the_context = merged(&mistral_7b(), json!({"sliding_window": 32768}));
    assert_eq!(windows(&parsed(&as_long_as_the_context)), vec![None; 32]);
    let nemo = merged(&without, json!({"hidden_size": 5120, "head_dim": 128, "num_hidden_layers": 40}));
    let c = parsed(&nemo);
    assert_eq!((c.head_dim, c.num_heads * c.head_dim, c.hidden_size), (128, 4096, 5120));
}

#[test]
fn phi3_and_longrope() {
    let c = parsed(&phi3_mini_4k());
    assert_eq!((c.head_dim, c.rope.rotary_dim, c.layers[0].window), (96, 96, Some(2047)));
    let factors = |value: f32| json!(vec![value; 48]);
    let long = json!({
        "max_position_embeddings": 131072, "sliding_window": 262144,
        "rope_scaling": {"type": "su", "short_factor": factors(1.05), "long_factor": factors(1.3)},
    });
    let c = parsed(&merged(&phi3_mini_4k(), long));
    let RopeScaling::PerDim { short, long, original_max_position_embeddings, attention_factor } = c.rope.scaling else { panic!() };
    assert_eq!((short, long, original_max_position_embeddings), (vec![1.05; 48], vec![1.3; 48], 4096));
    assert!((attention_factor - 1.190_238_1).abs() < 1e-5, "sqrt(1 + ln 32 / ln 4096), got {attention_factor}");
    assert_eq!(c.layers[0].window, None);
    let phi4_mini = json!({"num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75, "sliding_window": 262144});
    let c = parsed(&merged(&phi3_mini_4k(), phi4_mini));
    assert_eq!((c.head_dim, c.rope.rotary_dim), (128, 96));
}

#[test]
fn gemma() {
    let gemma2 = json!({
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
        "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192,
        "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "query_pre_attn_scalar": 224, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
    });
    let c = parsed(&gemma2);
    assert!(c.tie_word_embeddings && c.norm_plus_one && c.post_norms && !c.qk_norm);
    assert_eq!((c.activation, c.embedding_scale, c.attention_scale), (Activation::GeluTanh, 48.0, 1.0 / 224f32.sqrt()));
    assert_eq!((c.attention_soft_cap, c.final_soft_cap, c.rope_local.is_none()), (Some(50.0), Some(30.0), true));
    let windows: Vec<_> = c.layers.iter().take(3).map(|layer| layer.window).collect();
    assert_eq!(windows, [Some(4096), None, Some(4096)]);
    let c = parsed(&merged(&gemma2, json!({"attn_logit_softcapping": null, "head_dim": null})));
    assert_eq!((c.attention_soft_cap, c.head_dim), (None, 256));

    let c = parsed(&gemma3_1b());
    assert!(c.tie_word_embeddings && c.norm_plus_one && c.post_norms && c.qk_norm);
    assert_eq!((c.attention_scale, c.attention_soft_cap, c.final_soft_cap), (1.0 / 16.0, None, None));
    for (layer, config) in c.layers.iter().enumerate() {
        let full = layer % 6 == 5;
        assert_eq!((config.window, config.local_rope), (if full { None } else { Some(512) }, !full), "layer {layer}");
    }
    assert_eq!((c.rope.theta, c.rope_local.unwrap().theta), (1000000.0, 10000.0));
    let c = parsed(&merged(&gemma3_1b(), json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}})));
    assert_eq!((c.rope.scaling, c.rope_local.unwrap().scaling), (RopeScaling::Linear { factor: 8.0 }, RopeScaling::None));
}

#[test]
fn mixtures_of_experts() {
    let mixtral = merged(
        &mistral_7b(),
        json!({"architectures": ["MixtralForCausalLM"], "num_experts_per_tok": 2, "num_local_experts": 8, "sliding_window": null, "rope_theta": 1e6}),
    );
    let c = parsed(&mixtral);
    assert_eq!(c.moe, Some(MoeConfig { num_experts: 8, top_k: 2, intermediate_size: 14336, renormalise: true }));
    assert!(c.layers.iter().all(|layer| layer.moe));
    let qwen = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "bos_token_id": 151643, "decoder_sparse_step": 1,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768,
        "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": null, "use_sliding_window": false,
        "vocab_size": 151936,
    });
    let c = parsed(&qwen);
    assert_eq!(c.moe, Some(MoeConfig { num_experts: 128, top_k: 8, intermediate_size: 768, renormalise: true }));
    assert!(c.qk_norm && c.layers.iter().all(|layer| layer.moe));
    let c = parsed(&merged(&qwen, json!({"decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": false})));
    let sparse: Vec<bool> = c.layers.iter().take(6).map(|layer| layer.moe).collect();
    assert_eq!((sparse, c.moe.unwrap().renormalise), (vec![false, true, false, false, false, true], false));
}

#[test]
fn broken_configurations_name_file_and_key() {
    let cases = [
        (json!({"architectures": ["FooForCausalLM"]}), "unknown architecture `FooForCausalLM`; known: LlamaForCausalLM, Qwen2ForCausalLM"),
        (json!({"architectures": null}), "config.json: `architectures` is missing"),
        (json!({"hidden_size": null}), "config.json: `hidden_size` is missing"),
        (json!({"hidden_size": "2048"}), "config.json: `hidden_size` is \"2048\", expected an integer"),
        (json!({"hidden_size": -1}), "`hidden_size` is -1, expected an integer"),
        (json!({"hidden_size": 0}), "`hidden_size` is 0, expected 1 to"),
        (json!({"num_hidden_layers": 1e9}), "`num_hidden_layers` is 1000000000.0, expected an integer of at most 1024"),
        (json!({"num_attention_heads": 33, "head_dim": null}), "`num_attention_heads` is 33, which does not divide hidden_size 2048"),
        (json!({"num_key_value_heads": 5}), "32 heads are no multiple of 5 key/value heads"),
        (json!({"head_dim": 63}), "expected an even number"),
        (json!({"head_dim": 1024}), "head_dim is 1024, expected 1 to 512"),
        (json!({"rms_norm_eps": 0}), "`rms_norm_eps` is 0, expected a number above 0"),
        (json!({"rope_theta": 1.0}), "rope theta is 1"),
        (json!({"hidden_act": "relu"}), "`hidden_act` is `relu`"),
        (json!({"tie_word_embeddings": "yes"}), "`tie_word_embeddings` is \"yes\", expected true or false"),
        (json!({"eos_token_id": [1, -2]}), "`eos_token_id` is [1,-2], expected a token id or a list"),
        (json!({"eos_token_id": 128256}), "special token 128256 is outside the vocabulary of 128256"),
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}), "`rope_scaling.rope_type` is `dynamic`; known: default, linear"),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "`rope_scaling.factor` is missing"),
        (json!({"rope_scaling": 3}), "`rope_scaling` is 3, expected an object"),
        (
            json!({"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}),
            "`rope_scaling.short_factor` has 1 entries, expected 32",
        ),
    ];
    for (changes, expected) in cases {
        let error = parse(&merged(&llama32_1b(), changes.clone())).err().unwrap_or_else(|| panic!("accepted {changes}")).to_string();
        assert!(error.contains(expected), "{changes}\n  said     {error}\n  expected {expected}");
    }
}
