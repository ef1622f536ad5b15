//! The parser against recorded outputs, whole and cut at every byte, and against itself on random mixtures of fragments.

mod dialects;
mod work;

use pagoda_backends::ToolDialect;
use serde_json::{Value, json};

use super::{OfferedTool, OfferedTools, Piece, TextEnd, ToolParser};

const CASES: &str = include_str!("tests/cases.json");

fn offered(case: &Value, schemas: &Value) -> OfferedTools {
    let all = schemas.as_object().unwrap();
    let names: Vec<&str> = match case.get("tools") {
        Some(names) => names.as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect(),
        None => all.keys().map(String::as_str).collect(),
    };
    OfferedTools::new(names.into_iter().map(|name| OfferedTool { name: name.into(), schema: all[name].clone() }).collect())
}

/// Blocks of an answer in Hermes' dialect that comes in pieces cut at `cuts`.
fn blocks(raw: &str, tools: OfferedTools, end: TextEnd, cuts: &[usize]) -> Vec<Value> {
    blocks_of(ToolParser::new(tools, ToolDialect::Hermes), raw, end, cuts)
}

fn blocks_of(mut parser: ToolParser, raw: &str, end: TextEnd, cuts: &[usize]) -> Vec<Value> {
    let mut pieces = Vec::new();
    let mut last = 0;
    for &cut in cuts.iter().chain([&raw.len()]) {
        pieces.extend(parser.feed(&raw[last..cut]));
        last = cut;
    }
    pieces.extend(parser.finish(end));
    let mut blocks: Vec<Value> = Vec::new();
    for piece in pieces {
        match (piece, blocks.last_mut()) {
            (Piece::Text(text), Some(block)) if block["type"] == "text" => {
                block["text"] = format!("{}{text}", block["text"].as_str().unwrap()).into();
            }
            (Piece::Text(text), _) => blocks.push(json!({"type": "text", "text": text})),
            (Piece::Call(call), _) => blocks.push(json!({"type": "tool_use", "name": call.name, "input": call.arguments})),
        }
    }
    blocks
}

/// Texts trimmed, empty ones left out.
fn trimmed(blocks: &[Value], ignore_text: bool) -> Vec<Value> {
    let trim = |block: &Value| match block["text"].as_str() {
        Some(text) if ignore_text || text.trim().is_empty() => None,
        Some(text) => Some(json!({"type": "text", "text": text.trim()})),
        None => Some(block.clone()),
    };
    blocks.iter().filter_map(trim).collect()
}

fn char_boundaries(text: &str) -> Vec<usize> {
    text.char_indices().map(|(at, _)| at).skip(1).collect()
}

#[test]
fn recorded_outputs_mean_the_recorded_calls_whole_and_cut_anywhere() {
    let data: Value = serde_json::from_str(CASES).unwrap();
    for case in data["cases"].as_array().unwrap() {
        let (id, raw) = (case["id"].as_str().unwrap(), case["raw"].as_str().unwrap());
        let end = if case["finish_reason"] == "length" { TextEnd::Cut } else { TextEnd::Complete };
        let run = |cuts: &[usize]| blocks(raw, offered(case, &data["tools"]), end, cuts);
        let whole = run(&[]);
        let ignore_text = case.get("text_unchecked").is_some();
        let expected = trimmed(case["content"].as_array().unwrap(), ignore_text);
        assert_eq!(trimmed(&whole, ignore_text), expected, "{id}: {raw}");
        for cut in char_boundaries(raw) {
            assert_eq!(run(&[cut]), whole, "{id} cut at {cut}: {raw}");
        }
        assert_eq!(run(&char_boundaries(raw)), whole, "{id} in single characters: {raw}");
    }
}

/// Pieces that answers are made of.
const FRAGMENTS: [&str; 34] = [
    "<tool_call>",
    "</tool_call>",
    "<tools>",
    "</tools>",
    "\n",
    " ",
    "```json\n",
    "```",
    "```python\n",
    "{\"name\": \"ping\", \"arguments\": {}}",
    "{\"name\": \"ping\", \"arguments\": {}",
    "{'name': 'add', 'arguments': {'a': 1, 'b': 2}}",
    "{\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": 2}}",
    "[{\"name\": \"ping\", \"arguments\": {}}]",
    "{\"request\": ",
    "{\"name\": \"Bash\", \"arguments\": {\"command\": \"a '<tool_call>' }} \\\" ",
    "\"}}",
    "}",
    "]",
    "{",
    "[",
    "\"",
    "'",
    "<",
    "</tool",
    "<tool_",
    "`",
    "``",
    "text",
    "é🙂",
    ",",
    "\\",
    "{{\"name\": \"ping\", \"arguments\": {}}}",
    "null",
];

#[test]
fn random_mixtures_give_the_same_blocks_however_they_are_cut() {
    let data: Value = serde_json::from_str(CASES).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..4000 {
        let raw: String = (0..1 + draw(9)).map(|_| FRAGMENTS[draw(FRAGMENTS.len())]).collect();
        let end = if draw(4) == 0 { TextEnd::Cut } else { TextEnd::Complete };
        let run = |cuts: &[usize]| blocks(&raw, offered(&json!({}), &data["tools"]), end, cuts);
        let whole = run(&[]);
        let all = char_boundaries(&raw);
        assert_eq!(run(&all), whole, "round {round}, single characters: {raw:?}");
        let some: Vec<usize> = all.into_iter().filter(|_| draw(3) == 0).collect();
        assert_eq!(run(&some), whole, "round {round}, cut at {some:?}: {raw:?}");
    }
}

#[test]
fn quotes_of_a_call_without_start_tag_are_seen_however_it_is_cut() {
    let data: Value = serde_json::from_str(CASES).unwrap();
    let raw = "{'name': 'Bash', 'arguments': {'command': 'a } b'}}</tool_call>";
    let got = |cuts: &[usize]| blocks(raw, offered(&json!({}), &data["tools"]), TextEnd::Complete, cuts);
    assert_eq!(got(&[])[0]["type"], "tool_use");
    assert_eq!(got(&[1]), got(&[]), "cut behind the bracket");
}

#[test]
fn text_without_calls_comes_out_byte_for_byte() {
    let data: Value = serde_json::from_str(CASES).unwrap();
    for raw in ["  a\n\n b \n", "{\n  \"x\": 1\n}\n", "```rust\nfn main() {}\n```\n", "a < b && c > d <tool", "[link](url)\n- {x}"] {
        let got = blocks(raw, offered(&json!({}), &data["tools"]), TextEnd::Complete, &[]);
        assert_eq!(got, [json!({"type": "text", "text": raw})]);
    }
}
