//! Writes the seed corpus into fuzz/corpus: small valid inputs, cut where a whole one would be large. Run by `scripts/fuzz --seeds`;
//! the result is committed.

use std::fs;
use std::path::Path;

use serde_json::json;

/// Longest seed: a longer valid file is cut, header first.
const MAX_SEED_BYTES: usize = 16 << 10;

fn write(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), &bytes[..bytes.len().min(MAX_SEED_BYTES)])
}

/// A safetensors file of (name, dtype, shape, bytes).
fn safetensors(tensors: &[(&str, &str, &[usize], usize)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, dtype, shape, len) in tensors {
        header.insert((*name).into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + len]}));
        end += len;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end, 7);
    file
}

/// Key-value pairs of a GGUF file, enough to reach the model reader; one F32 tensor.
fn gguf() -> Vec<u8> {
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    let numbers = [
        ("llama.block_count", 1u32),
        ("llama.embedding_length", 32),
        ("llama.feed_forward_length", 32),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.context_length", 64),
    ];
    file.extend(1u64.to_le_bytes()); // tensors
    file.extend((numbers.len() as u64 + 3).to_le_bytes()); // pairs
    file.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("llama")].concat());
    for (key, value) in numbers {
        file.extend([text(key), 4u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat());
    }
    file.extend([text("llama.attention.layer_norm_rms_epsilon"), 6u32.to_le_bytes().to_vec(), 1e-5f32.to_le_bytes().to_vec()].concat());
    let list = [text("a"), text("b"), text("ab")].concat();
    let head = [9u32.to_le_bytes().to_vec(), 8u32.to_le_bytes().to_vec(), 3u64.to_le_bytes().to_vec()].concat();
    file.extend([text("tokenizer.ggml.tokens"), head, list].concat());
    let shape = [1u32.to_le_bytes().to_vec(), 32u64.to_le_bytes().to_vec(), 0u32.to_le_bytes().to_vec(), 0u64.to_le_bytes().to_vec()];
    file.extend([text("output_norm.weight"), shape.concat()].concat());
    file.resize(file.len().next_multiple_of(32) + 128, 0);
    file
}

/// (name, route as in targets/request_bodies.rs, body).
fn bodies() -> Vec<(&'static str, u8, serde_json::Value)> {
    let messages = json!({
        "model": "m", "max_tokens": 16, "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "1"}]}]},
        ],
        "stop_sequences": ["a"], "stream": true, "temperature": 0.5, "top_p": 0.9, "top_k": 4,
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"}, "thinking": {"type": "disabled"},
    });
    let chat = json!({
        "model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}],
        "max_completion_tokens": 5, "n": 2, "logprobs": true, "top_logprobs": 2, "stop": ["x"], "seed": 1, "logit_bias": {"5": -100},
        "presence_penalty": 0.1, "stream": true, "stream_options": {"include_usage": true}, "response_format": {"type": "text"},
        "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": true, "chat_template_kwargs": {"enable_thinking": false},
    });
    let completion = json!({"model": "m", "prompt": [[1, 2], [3]], "max_tokens": 4, "logprobs": 5, "echo": true, "return_token_ids": true});
    let tokenize = json!({"model": "m", "prompt": "a b", "add_special_tokens": false});
    vec![
        ("messages", 0, messages.clone()),
        ("count", 1, messages),
        ("chat", 2, chat),
        ("completion", 3, completion),
        ("completion_text", 3, json!({"prompt": "once", "suffix": null, "best_of": 1})),
        ("tokenize", 4, tokenize),
        ("nested", 2, json!({"messages": [[[[[[[[{}]]]]]]]]})),
    ]
}

fn main() -> std::io::Result<()> {
    write("safetensors_header", "two_tensors", &safetensors(&[("a.weight", "BF16", &[2, 3], 12), ("b", "F32", &[1], 4)]))?;
    write("safetensors_header", "empty", &safetensors(&[]))?;
    write("safetensors_header", "not_json", b"\x04\0\0\0\0\0\0\0nope")?;
    write("gguf", "small", &gguf())?;
    write("gguf", "magic_only", b"GGUF\x03\0\0\0")?;

    let chatml = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + (m.content or '') + '<|im_end|>' + '\\n' }}{% endfor %}\
                  {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    let tools = "{%- if tools %}{% for t in tools %}{{ t.function | tojson }}{% endfor %}{% endif -%}\
                 {% set ns = namespace(n=0) %}{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}\
                 {% if m.tool_calls is defined and m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson(indent=2) }}\
                 {% elif m.content is string %}{{ m['content'].split('</think>')[-1].strip() }}{% endif %}{% endfor %}{{ raise_exception('no') }}";
    write("chat_template", "chatml", chatml.as_bytes())?;
    write("chat_template", "tools", tools.as_bytes())?;
    write(
        "chat_template",
        "kwargs",
        b"{% macro f(x) %}{{ x }}{{ enable_thinking }}{% endmacro %}{{ f(bos_token) }}\0{\"enable_thinking\": true}",
    )?;
    write(
        "chat_template",
        "messages",
        b"{{ messages | tojson }}{{ messages[0].role | upper }}\0[{\"role\": \"user\", \"content\": \"x\"}]",
    )?;
    write("chat_template", "long_loop", b"{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}")?;

    for (name, route, body) in bodies() {
        write("request_bodies", name, &[&[route][..], body.to_string().as_bytes()].concat())?;
    }

    let sizes = [3, 30, 4, 3, 16, 3, 8];
    let one = [&sizes[..], &[0, 12, 0x5a, 0, 6, 1, 0, 4, 6, 1, 4, 6, 2, 4, 4, 6, 3, 6, 4]].concat();
    write("scheduler_ops", "one_sequence", &one)?;
    let many: Vec<u8> = sizes.iter().copied().chain((0..200u32).map(|i| (i * 37 % 251) as u8)).collect();
    write("scheduler_ops", "many", &many)
}
