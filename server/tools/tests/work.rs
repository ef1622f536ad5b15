//! The parser's work is linear in the text, however it comes: bytes looked at or moved are counted, not time.

use pagoda_backends::ToolDialect;
use serde_json::{Value, json};

use super::super::scan::work_of;
use super::{CASES, TextEnd, ToolParser, offered};

/// Bytes looked at for each byte of a text, at most.
const MAX_WORK: usize = 60;

/// A text of about `len` bytes: `head`, many times `middle`, `tail`.
fn long(head: &str, middle: &str, tail: &str, len: usize) -> String {
    format!("{head}{}{tail}", middle.repeat(len / middle.len()))
}

fn check(dialect: ToolDialect, raw: &str) {
    let schemas = &serde_json::from_str::<Value>(CASES).unwrap()["tools"];
    for piece in [1, 7, raw.len()] {
        let work = work_of(|| {
            let mut parser = ToolParser::new(offered(&json!({}), schemas), dialect);
            let mut rest = raw;
            while !rest.is_empty() {
                let at = (piece..=rest.len()).find(|at| rest.is_char_boundary(*at)).unwrap_or(rest.len());
                parser.feed(&rest[..at]);
                rest = &rest[at..];
            }
            parser.finish(TextEnd::Complete);
        });
        let shown: String = raw.chars().take(60).collect();
        assert!(work <= MAX_WORK * raw.len(), "{dialect:?} in pieces of {piece}: {work} for {} bytes of {shown:?}", raw.len());
    }
}

#[test]
fn work_is_linear() {
    const LEN: usize = 100_000;
    let call = "{\"name\": \"Bash\", \"arguments\": {\"command\": \"";
    let hermes = [
        long("```json\n", "{\"name\": \"ping\", \"arguments\": {}}\n", "```", LEN),
        long(&format!("```json\n{call}"), "ls {} [] ", "\"}}\n```", LEN),
        long("```json\n", " ", "", LEN),
        long("```", "x", "\n```", LEN),
        long("", "```json\n", "", LEN),
        long("", "```\n{\"name\": 1}\n", "", LEN),
        long(call, "echo <tool_call> ' ", "\"}}", LEN),
        long(&format!("{call}x\"}}}}"), " ", "</tool_call>", LEN),
        long("{", " ", "\"name\"", LEN),
        long("", "{\"name\": ", "", LEN),
        long("", "{\n", "", LEN),
        long("", "[1]\n", "", LEN),
        long(&format!("<tool_call>{call}"), "</tool_call> ", "\"}}</tool_call>", LEN),
        long("<tool_call>", " ", "{}", LEN),
        long("", "<tool_call>", "", LEN),
        long("", "<tool_call>{\"name\": \"ping\"}", "", LEN),
        long("", "<tool_call>\"", "", LEN),
        long("", "plain text <b> ", "", LEN),
    ];
    let others = [
        (ToolDialect::Qwen3Coder, long("<tool_call><function=Bash><parameter=command>", "a </parameter> b ", "", LEN)),
        (ToolDialect::Qwen3Coder, long("<function=Bash><parameter=command></parameter>", " ", "x", LEN)),
        (ToolDialect::Qwen3Coder, long("", "<function=Bash><parameter=command>", "", LEN)),
        (ToolDialect::Qwen3Coder, long("", "<function=Bash><parameter=command></parameter>", "<parameter=\n", LEN)),
        (ToolDialect::Qwen3Coder, long("", "<function=", "", LEN)),
        (ToolDialect::Qwen3Coder, long("<function=Bash><parameter=command>", "\n<parameter=", "", LEN)),
        (ToolDialect::Qwen3Coder, long("<function=Bash><parameter=command>", "\n<parameter=other>", "", LEN)),
        (ToolDialect::Qwen3Coder, long("<function=Bash><parameter=command>", "\n</function> \n </tool", "", LEN)),
        (ToolDialect::Hermes, long("<tool_call>{}", " it's \" <", "</tool_call>", LEN)),
        (ToolDialect::Qwen3Coder, long("", "<tool_call><function=ping></function></tool_call>", "", LEN)),
        (ToolDialect::Llama3Json, long("", "{\"name\": \"ping\", \"parameters\": {}}; ", "", LEN)),
        (ToolDialect::Llama3Json, long("<|python_tag|>", "x = {'a': [1]}\n", "", LEN)),
        (ToolDialect::Pythonic, long("[Bash(command='", "ls [] ", "')]", LEN)),
        (ToolDialect::Pythonic, long("[ping()]", " ", "x", LEN)),
        (ToolDialect::Pythonic, long("", "[ping()]\n", "", LEN)),
        (ToolDialect::Pythonic, long("", "[ping(\n", "", LEN)),
        (ToolDialect::Mistral, long("[TOOL_CALLS]", " ", "[", LEN)),
        (ToolDialect::Mistral, long("[TOOL_CALLS][", "{\"name\": \"ping\", \"arguments\": {}}, ", "]", LEN)),
        (ToolDialect::Mistral, long("", "[TOOL_CALLS]x", "", LEN)),
        (ToolDialect::Mistral, long("", "[TOOL_CALLS]ping[ARGS]{", "", LEN)),
        (ToolDialect::DeepSeek, long("", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n", "", LEN)),
        (ToolDialect::DeepSeek, long("", "<｜tool▁calls▁begin｜>", "{", LEN)),
        (ToolDialect::Harmony, long("", "to=functions.", "{", LEN)),
        (ToolDialect::Harmony, long("", "<|channel|>commentary to=functions.ping<|message|>{", "", LEN)),
    ];
    for raw in &hermes {
        check(ToolDialect::Hermes, raw);
    }
    for (dialect, raw) in &others {
        check(*dialect, raw);
    }
}
