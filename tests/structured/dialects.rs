//! Forced calls in every dialect: what the grammar makes a model write, the parser reads.

use std::path::Path;

use serde_json::{Value, json};

use crate::client::{ask, get};
use crate::process::{Served, serve_with};
use crate::{WIRES, in_parallel};

/// A special token of the tiny models that nothing else needs.
const UNUSED: &str = "<|im_start|>";

/// A tiny model that writes calls in `dialect`; `mark` is one of its special tokens.
fn serve_writing(dialect: &str, mark: &str) -> Served {
    serve_with(&["--tool-call-parser", dialect, "--max-num-seqs", "16"], |folder: &Path| {
        let file = folder.join("tokenizer.json");
        let text = std::fs::read_to_string(&file).expect("a tokeniser");
        assert!(text.contains(UNUSED), "{UNUSED} is a token");
        std::fs::write(&file, text.replace(UNUSED, mark)).expect("written");
    })
}

#[test]
fn forced_calls_of_every_dialect_are_read() {
    let dialects = [
        ("hermes", UNUSED),
        ("qwen3_coder", UNUSED),
        ("llama3_json", "<|python_tag|>"),
        ("pythonic", "<|python_start|>"),
        ("mistral", "[TOOL_CALLS]"),
        ("deepseek", "<｜tool▁calls▁begin｜>"),
        ("harmony", "<|channel|>"),
        ("json", UNUSED),
    ];
    for (dialect, mark) in dialects {
        let served = serve_writing(dialect, mark);
        let (_, model) = get(&served.address, "/v1/models/tiny");
        let model: Value = serde_json::from_str(&model).expect("JSON");
        assert_eq!(model["capabilities"]["tool_call_parser"], dialect);
        let schema = json!({
            "type": "object", "required": ["text", "mode"],
            "properties": {"text": {"type": "string", "maxLength": 12}, "mode": {"enum": ["a", 2, null]}},
        });
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        in_parallel(12, |i| {
            let choice = if i % 3 == 0 { json!({"type": "tool", "name": "use_it"}) } else { json!({"type": "any"}) };
            let request = json!({
                "max_tokens": 600, "temperature": 1.0, "seed": i, "stream": i / 2 % 2 == 0, "tool_choice": choice,
                "tools": [{"name": "use_it", "input_schema": schema}, {"name": "other-one", "input_schema": schema}],
            });
            let answer = ask(&served.address, WIRES[i % 2], &request);
            assert_eq!(answer.stop_reason, "tool_use", "{dialect}: {:?}", answer.blocks);
            assert_eq!(answer.calls().count(), answer.blocks.len(), "{dialect}: calls and nothing else: {:?}", answer.blocks);
            for (name, input) in answer.calls() {
                assert!(name == "use_it" || i % 3 != 0 && name == "other-one", "{dialect}: {name}");
                validator.validate(input).unwrap_or_else(|error| panic!("{dialect}: {error}: {input}"));
            }
        });
    }
}
