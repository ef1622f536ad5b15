//! Answers with tool calls. Input: the dialect, how the text is cut, the text. However it is cut it means the same, and no text is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagoda_backends::ToolDialect;
use pagoda_server::tools::{OfferedTool, OfferedTools, Piece, TextEnd, ToolParser};
use serde_json::json;

fn tools() -> OfferedTools {
    let add = json!({"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "integer"}}, "required": ["a"]});
    let write = json!({"type": "object", "properties": {"path": {"type": "string"}, "to": {"enum": ["x", 1, null]}}, "required": ["path"]});
    let tools = [("ping", json!({"type": "object", "properties": {}})), ("add", add), ("Write", write), ("any", json!({}))];
    OfferedTools::new(tools.into_iter().map(|(name, schema)| OfferedTool { name: name.into(), schema }).collect())
}

/// Pieces of a text that comes cut behind every `step` characters; neighbouring texts as one.
fn pieces(dialect: ToolDialect, text: &str, end: TextEnd, step: usize) -> Vec<Piece> {
    let mut parser = ToolParser::new(tools(), dialect);
    let chars: Vec<char> = text.chars().collect();
    let mut all: Vec<Piece> = chars.chunks(step).flat_map(|piece| parser.feed(&piece.iter().collect::<String>())).collect();
    all.extend(parser.finish(end));
    let mut joined: Vec<Piece> = Vec::new();
    for piece in all {
        match (piece, joined.last_mut()) {
            (Piece::Text(text), Some(Piece::Text(last))) => last.push_str(&text),
            (piece, _) => joined.push(piece),
        }
    }
    joined
}

fuzz_target!(|data: &[u8]| {
    let [dialect, cut, text @ ..] = data else { return };
    let text = String::from_utf8_lossy(text);
    let dialect = ToolDialect::ALL[usize::from(*dialect) % ToolDialect::ALL.len()];
    let end = if cut % 2 == 0 { TextEnd::Complete } else { TextEnd::Cut };
    let whole = pieces(dialect, &text, end, usize::MAX);
    for step in [1, 2 + usize::from(cut / 2) % 30] {
        assert_eq!(pieces(dialect, &text, end, step), whole, "{dialect:?} in pieces of {step}");
    }
    let said: String = whole.iter().map(|piece| if let Piece::Text(text) = piece { text.as_str() } else { "" }).collect();
    if whole.iter().all(|piece| matches!(piece, Piece::Text(_))) {
        assert_eq!(said, text, "{dialect:?}: without a call everything is text");
    }
    let mut rest = text.chars();
    assert!(said.chars().all(|c| rest.any(|other| other == c)), "{dialect:?}: {said:?} is not what the model said");
});
