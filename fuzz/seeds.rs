//! Writes the seed corpus into fuzz/corpus: small valid inputs, cut where a whole one would be large. Run by `scripts/fuzz --seeds`;
//! the result is committed.

use std::fs;
use std::path::Path;

use pagoda_backends::ToolDialect;
use serde_json::{Value, json};

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

/// (name, quantization_config, tensors) of a matrix of 8 rows and 32 columns.
type Quantised = (&'static str, serde_json::Value, Vec<(&'static str, &'static str, &'static [usize], usize)>);

fn quantised() -> Vec<Quantised> {
    let gptq = |bits: u32| json!({"quant_method": "gptq", "bits": bits, "group_size": 16});
    vec![
        (
            "awq",
            json!({"quant_method": "awq", "bits": 4, "version": "gemm"}),
            vec![("x.qweight", "I32", &[32, 1], 128), ("x.qzeros", "I32", &[2, 1], 8), ("x.scales", "F16", &[2, 8], 32)],
        ),
        ("gptq", gptq(4), vec![("x.qweight", "I32", &[4, 8], 128), ("x.qzeros", "I32", &[2, 1], 8), ("x.scales", "F16", &[2, 8], 32)]),
        ("gptq8", gptq(8), vec![("x.qweight", "I32", &[8, 8], 256), ("x.qzeros", "I32", &[2, 2], 16), ("x.scales", "F16", &[2, 8], 32)]),
        (
            "packed",
            json!({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4}}}}),
            vec![
                ("x.weight_packed", "I32", &[8, 4], 128),
                ("x.weight_scale", "BF16", &[8, 2], 32),
                ("x.weight_zero_point", "I32", &[1, 2], 8),
            ],
        ),
        (
            "fp8",
            json!({"quant_method": "fp8", "weight_block_size": [4, 16]}),
            vec![("x.weight", "F8_E4M3", &[8, 32], 256), ("x.weight_scale_inv", "F32", &[2, 2], 16)],
        ),
        (
            "nvfp4",
            json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}),
            vec![("x.weight", "U8", &[8, 16], 128), ("x.weight_scale", "F8_E4M3", &[8, 2], 16), ("x.weight_scale_2", "F32", &[], 4)],
        ),
        ("mxfp4", json!(null), vec![("x.weight_packed", "U8", &[8, 16], 128), ("x.weight_scale", "U8", &[8, 1], 8)]),
        ("int8", json!({"quant_method": "bitsandbytes"}), vec![("x.weight", "I8", &[8, 32], 256), ("x.SCB", "F32", &[8], 32)]),
    ]
}

/// bitsandbytes NF4 with double quantisation, whose quant_state is text inside the data.
fn nested() -> Vec<u8> {
    let state = r#"{"quant_type": "nf4", "blocksize": 32, "shape": [8, 32], "nested_blocksize": 16, "nested_offset": 0.5}"#;
    let len = state.len();
    let shape: &[usize] = &[len];
    let mut file = safetensors(&[
        ("x.weight", "U8", &[128, 1], 128),
        ("x.weight.absmax", "U8", &[8], 8),
        ("x.weight.nested_absmax", "F32", &[1], 4),
        ("x.weight.nested_quant_map", "F32", &[256], 1024),
        ("x.weight.quant_map", "F32", &[16], 64),
        ("x.weight.quant_state.bitsandbytes__nf4", "U8", shape, len),
    ]);
    let start = file.len() - len;
    file[start..].copy_from_slice(state.as_bytes());
    [&[0u8, 1, 0][..], &file].concat()
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

/// The parser's recorded outputs, by the place of their dialect.
fn tool_calls() -> std::io::Result<()> {
    let recorded: Value = serde_json::from_str(include_str!("../server/tools/tests/dialects.json"))?;
    let hermes: Value = serde_json::from_str(include_str!("../server/tools/tests/cases.json"))?;
    for (place, dialect) in (0u8..).zip(ToolDialect::ALL) {
        let own = recorded["dialects"][dialect.as_str()].as_array();
        let more = hermes["cases"].as_array().filter(|_| dialect == ToolDialect::Hermes);
        for (idx, case) in own.into_iter().chain(more).flatten().enumerate() {
            let raw = case["raw"].as_str().unwrap_or_default().replace("get_weather", "Write").replace("city", "path");
            write("tool_calls", &format!("{}-{idx}", dialect.as_str()), &[&[place, idx as u8 * 2][..], raw.as_bytes()].concat())?;
        }
    }
    Ok(())
}

/// Schemas of the tests of forced calls, and one of every other form.
fn schema_grammars() -> std::io::Result<()> {
    let schemas: Value = serde_json::from_str(include_str!("../tests/data/structured/schemas.json"))?;
    for entry in schemas.as_array().into_iter().flatten() {
        let text = entry["schema"].to_string();
        write("schema_grammar", entry["name"].as_str().unwrap_or_default(), &[&[0, 7][..], text.as_bytes()].concat())?;
    }
    let tag = r#"{"type": "structural_tag", "format": {"type": "tag", "begin": "<n>", "content": {"type": "regex", "pattern": "[0-9]"}, "end": "</n>"}}"#;
    let triggers = r#"{"structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}], "triggers": ["<f"]}"#;
    let others: [(&str, u8, &str); 8] = [
        ("ebnf", 1, "root ::= \"(\" root \")\" | \"x\" [0-9]\n"),
        ("lark", 1, "start: A (B | \"c\")~2\nA: /[a-z]+/\nB: \"b\"i\n"),
        ("regex", 2, "(a|b{2,5})*[^\\n\"]{1,20}\\d+"),
        ("nested_regex", 2, "((a{1,30}){1,30}){1,30}|(.*d){9}"),
        ("tag", 3, tag),
        ("triggers", 3, triggers),
        ("choice", 4, "yes\nyes, please\nno"),
        ("reference", 0, r##"{"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, {"items": {"$ref": "#/$defs/a"}}]}}}"##),
    ];
    for (name, kind, text) in others {
        write("schema_grammar", name, &[&[kind, 7][..], text.as_bytes()].concat())?;
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    tool_calls()?;
    schema_grammars()?;
    write("safetensors_header", "two_tensors", &safetensors(&[("a.weight", "BF16", &[2, 3], 12), ("b", "F32", &[1], 4)]))?;
    write("safetensors_header", "empty", &safetensors(&[]))?;
    write("safetensors_header", "not_json", b"\x04\0\0\0\0\0\0\0nope")?;
    for (name, config, tensors) in quantised() {
        write("quantised", name, &[&[0u8, 1][..], config.to_string().as_bytes(), &[0], &safetensors(&tensors)].concat())?;
    }
    write("quantised", "nested", &nested())?;
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
