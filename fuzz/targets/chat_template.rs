//! Chat templates of arbitrary source, rendered over a conversation with tools; input: `source NUL kwargs-or-messages as JSON`.
//! Neither may panic, run long or write without end.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use pagoda_engine::text::{ChatInput, ChatTemplate};
use pagoda_engine::weights::checkpoint::TextConfig;
use serde_json::{Value, json};

const MAX_RENDERED_BYTES: usize = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let (source, rest) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[][..]),
    };
    let Ok(source) = std::str::from_utf8(source) else { return };
    let text = TextConfig { bos_token: Some("<s>".into()), eos_token: Some("</s>".into()), ..TextConfig::default() };
    let Ok(template) = ChatTemplate::new(source, &text) else { return };
    let given: Option<Value> = serde_json::from_slice(rest).ok();
    let messages = match &given {
        Some(Value::Array(messages)) => messages.clone(),
        _ => conversation(),
    };
    let kwargs: BTreeMap<String, Value> = match given {
        Some(Value::Object(map)) => map.into_iter().collect(),
        _ => BTreeMap::new(),
    };
    let tools = [json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}})];
    for (add_generation_prompt, continue_final_message) in [(true, false), (false, true)] {
        let input = ChatInput { messages: &messages, tools: &tools, add_generation_prompt, continue_final_message, kwargs: &kwargs };
        if let Ok(rendered) = template.render(&input) {
            assert!(rendered.len() <= MAX_RENDERED_BYTES, "{} bytes rendered", rendered.len());
        }
    }
});

fn conversation() -> Vec<Value> {
    vec![
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": [{"type": "text", "text": "What is 2 + 2?"}]}),
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]}),
        json!({"role": "tool", "tool_call_id": "1", "content": "4"}),
        json!({"role": "assistant", "content": "Four."}),
    ]
}
