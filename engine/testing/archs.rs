//! config.json of every tiny architecture, as a hub checkpoint has it.

use serde_json::{Map, Value, json};

use super::VOCAB;

/// The tiny architectures.
pub const ARCHS: [&str; 10] = ["qwen2", "qwen2-yarn", "qwen3", "llama", "mistral", "phi3", "gemma2", "gemma3", "mixtral", "qwen3-moe"];

/// config.json of `arch`.
pub fn config(arch: &str) -> Value {
    let mut config = match arch {
        "gemma2" | "gemma3" => gemma(arch),
        "mixtral" | "qwen3-moe" => experts(arch),
        _ => dense(arch),
    };
    let common = json!({
        "vocab_size": VOCAB, "bos_token_id": VOCAB - 3, "eos_token_id": VOCAB - 2, "torch_dtype": "bfloat16", "use_cache": true,
        "attention_dropout": 0.0, "max_position_embeddings": 2048, "initializer_range": 0.02,
    });
    let map: &mut Map<String, Value> = config.as_object_mut().expect("a configuration is an object");
    for (key, value) in common.as_object().expect("an object") {
        map.entry(key.as_str()).or_insert_with(|| value.clone());
    }
    config
}

fn dense(arch: &str) -> Value {
    match arch {
        "qwen2" => json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 128, "intermediate_size": 256,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "use_sliding_window": false, "sliding_window": null, "max_window_layers": 3, "tie_word_embeddings": true,
        }),
        "qwen2-yarn" => json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 128, "intermediate_size": 192,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "use_sliding_window": false, "sliding_window": null, "max_window_layers": 2, "tie_word_embeddings": false,
            "rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            "max_position_embeddings": 512,
        }),
        "qwen3" => json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "hidden_size": 128, "intermediate_size": 256,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "rope_scaling": null, "attention_bias": false, "use_sliding_window": false, "sliding_window": null,
            "max_window_layers": 2, "tie_word_embeddings": true,
        }),
        "llama" => json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 512,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "attention_bias": false, "mlp_bias": false,
            "rope_scaling": {
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_type": "llama3",
            },
            "tie_word_embeddings": false,
        }),
        "mistral" => json!({
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 24, "tie_word_embeddings": false,
        }),
        "phi3" => json!({
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu", "hidden_size": 128, "intermediate_size": 192,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "rope_scaling": null, "sliding_window": null, "partial_rotary_factor": 1.0, "original_max_position_embeddings": 2048,
            "embd_pdrop": 0.0, "resid_pdrop": 0.0, "pad_token_id": VOCAB - 2, "tie_word_embeddings": false,
        }),
        other => panic!("no tiny architecture `{other}`; there are {ARCHS:?}"),
    }
}

fn gemma(arch: &str) -> Value {
    if arch == "gemma2" {
        return json!({
            "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "sliding_window": 24, "attention_bias": false, "attn_logit_softcapping": 10.0, "final_logit_softcapping": 12.0,
            "query_pre_attn_scalar": 48, "cache_implementation": "hybrid", "pad_token_id": 0, "tie_word_embeddings": true,
        });
    }
    json!({
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window": 24, "sliding_window_pattern": 2,
        "attention_bias": false, "query_pre_attn_scalar": 64, "rope_scaling": null, "pad_token_id": 0, "tie_word_embeddings": true,
    })
}

fn experts(arch: &str) -> Value {
    if arch == "mixtral" {
        return json!({
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu", "hidden_size": 128,
            "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": null, "num_local_experts": 4, "num_experts_per_tok": 2,
            "output_router_logits": false, "router_aux_loss_coef": 0.0, "router_jitter_noise": 0.0, "tie_word_embeddings": false,
        });
    }
    json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 256, "moe_intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": null, "attention_bias": false,
        "use_sliding_window": false, "sliding_window": null, "max_window_layers": 2, "num_experts": 8, "num_experts_per_tok": 2,
        "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "output_router_logits": false, "router_aux_loss_coef": 0.0,
        "tie_word_embeddings": false,
    })
}
