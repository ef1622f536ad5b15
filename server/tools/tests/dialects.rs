//! Every dialect: recorded outputs whole and cut anywhere, random mixtures against themselves, and that no text is lost.

use pagoda_backends::ToolDialect;
use serde_json::{Value, json};

use super::{CASES, Piece, TextEnd, ToolParser, blocks_of, char_boundaries, offered, trimmed};

const DIALECTS: &str = include_str!("dialects.json");

fn schemas() -> Value {
    let mut all = serde_json::from_str::<Value>(CASES).unwrap()["tools"].take();
    let more = serde_json::from_str::<Value>(DIALECTS).unwrap()["tools"].take();
    for (name, schema) in more.as_object().unwrap() {
        all[name] = schema.clone();
    }
    all
}

fn parser(dialect: ToolDialect, schemas: &Value) -> ToolParser {
    ToolParser::new(offered(&json!({}), schemas), dialect)
}

#[test]
fn recorded_outputs_of_every_dialect_mean_the_recorded_calls() {
    let (data, schemas) = (serde_json::from_str::<Value>(DIALECTS).unwrap(), schemas());
    for dialect in ToolDialect::ALL {
        let cases = data["dialects"][dialect.as_str()].as_array().unwrap();
        assert!(cases.len() >= 3, "{dialect:?}");
        for case in cases {
            let raw = case["raw"].as_str().unwrap();
            let end = if case["cut"] == true { TextEnd::Cut } else { TextEnd::Complete };
            let run = |cuts: &[usize]| blocks_of(parser(dialect, &schemas), raw, end, cuts);
            let whole = run(&[]);
            assert_eq!(trimmed(&whole, false), *case["content"].as_array().unwrap(), "{dialect:?}: {raw}");
            for cut in char_boundaries(raw) {
                assert_eq!(run(&[cut]), whole, "{dialect:?} cut at {cut}: {raw}");
            }
            assert_eq!(run(&char_boundaries(raw)), whole, "{dialect:?} in single characters: {raw}");
        }
    }
}

/// Pieces that answers of all dialects are made of.
const FRAGMENTS: [&str; 12] = ["\n", " ", "text", "é🙂", ",", ";", "{", "]", "\"", "'", "{\"a\": 1, \"b\": 2}", "```json\n"];

/// Pieces of one dialect's.
fn fragments(dialect: ToolDialect) -> &'static [&'static str] {
    match dialect {
        ToolDialect::Hermes | ToolDialect::Json => &["<tool_call>", "{\"name\": \"ping\", \"arguments\": {}}", "</tool_call>", "}", "<"],
        ToolDialect::Qwen3Coder => &[
            "<tool_call>\n",
            "<function=add>",
            "<function=ping>",
            "<parameter=a>\n",
            "<parameter=b>",
            "1",
            "</parameter>",
            "\n</function>\n",
            "</tool_call>",
            "<",
            "</param",
        ],
        ToolDialect::Llama3Json | ToolDialect::Pythonic => &[
            "<|python_tag|>",
            "<|python",
            "{\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": 2}}",
            "[add(a=1, b=2)]",
            "[ping(), add(a=1,",
            "b=[2])]",
            "[",
            "ping()",
            ")",
            "<|python_end|>",
            "(url)",
        ],
        ToolDialect::Mistral => &[
            "[TOOL_CALLS]",
            "[TOOL_CALLS]ping",
            "[TOOL",
            "[ARGS]",
            "[CALL_ID]x1",
            "add",
            "ping",
            "{}",
            "[",
            "{\"name\": \"ping\", \"arguments\": {}}",
            "{\"name\": \"nobody\", \"arguments\": {}}",
        ],
        ToolDialect::DeepSeek => &[
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "function",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁begin｜>ping<｜tool▁sep｜>",
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n",
            "```",
            "{}",
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool",
        ],
        ToolDialect::Harmony => &[
            "<|start|>assistant",
            "<|channel|>commentary to=functions.ping <|message|>",
            " to=functions.add",
            " to=functions.ping",
            " <|constrain|>json",
            "<|message|>",
            "{}",
            "<|call|>",
            "<|end|>",
            "t",
            "<|",
        ],
    }
}

/// Whether `text` is what is left of `raw` without some of its characters.
fn is_rest(raw: &str, text: &str) -> bool {
    let mut rest = raw.chars();
    text.chars().all(|c| rest.any(|other| other == c))
}

#[test]
fn random_mixtures_of_every_dialect_give_the_same_blocks_and_lose_nothing() {
    let schemas = schemas();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for dialect in ToolDialect::ALL {
        let own = fragments(dialect);
        let mut num_calls = 0;
        for round in 0..3000 {
            let mut pick = || if draw(3) == 0 { FRAGMENTS[draw(FRAGMENTS.len())] } else { own[draw(own.len())] };
            let raw: String = (0..10).map(|_| pick()).collect();
            let end = if draw(4) == 0 { TextEnd::Cut } else { TextEnd::Complete };
            let run = |cuts: &[usize]| blocks_of(parser(dialect, &schemas), &raw, end, cuts);
            let whole = run(&[]);
            let all = char_boundaries(&raw);
            assert_eq!(run(&all), whole, "{dialect:?} round {round}, single characters: {raw:?}");
            let some: Vec<usize> = all.into_iter().filter(|_| draw(3) == 0).collect();
            assert_eq!(run(&some), whole, "{dialect:?} round {round}, cut at {some:?}: {raw:?}");
            let texts: Vec<&str> = whole.iter().filter_map(|block| block["text"].as_str()).collect();
            num_calls += whole.len() - texts.len();
            assert!(is_rest(&raw, &texts.concat()), "{dialect:?} round {round}: {texts:?} of {raw:?}");
            if texts.len() == whole.len() {
                assert_eq!(texts.concat(), raw, "{dialect:?} round {round}: text is lost");
            }
        }
        assert!(num_calls > 100, "{dialect:?}: {num_calls} calls in all mixtures");
    }
}

/// A call comes as soon as its own text is there, not at the end of the answer.
#[test]
fn calls_come_when_they_are_whole() {
    let schemas = schemas();
    let cases = [
        (ToolDialect::Mistral, "[TOOL_CALLS][{\"name\": \"ping\", \"arguments\": {}}", ", {\"name\""),
        (ToolDialect::Mistral, "[TOOL_CALLS]ping[ARGS]{}", "[TOOL_CALLS]add"),
        (ToolDialect::DeepSeek, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>ping<｜tool▁sep｜>{}", "<｜tool▁call▁end｜>"),
        (ToolDialect::Harmony, "<|channel|>commentary to=functions.ping <|constrain|>json<|message|>{}", "<|call|>"),
        (ToolDialect::Qwen3Coder, "<tool_call>\n<function=ping>\n</function>", "\n</tool_call>"),
        (ToolDialect::Pythonic, "<|python_start|>[ping()]", "<|python_end|>"),
    ];
    for (dialect, call, rest) in cases {
        let mut parser = parser(dialect, &schemas);
        let pieces = parser.feed(call);
        assert!(matches!(&pieces[..], [Piece::Call(call)] if call.name == "ping"), "{dialect:?}: {pieces:?}");
        assert_eq!(parser.feed(rest), [], "{dialect:?}");
    }
}

#[test]
fn bare_values_have_the_types_of_the_schema() {
    let argument = super::super::xml::argument;
    let cases = [
        ("\n5\n", json!({"type": "integer"}), json!(5)),
        ("5", json!({"type": "string"}), json!("5")),
        ("5.5", json!({"type": "integer"}), json!("5.5")),
        ("5.5", json!({"type": "number"}), json!(5.5)),
        ("True", json!({"type": "boolean"}), json!(true)),
        ("maybe", json!({"type": "boolean"}), json!("maybe")),
        ("None", json!({"type": ["string", "null"]}), json!(null)),
        ("5", json!({"type": ["string", "null"]}), json!("5")),
        ("['a', 1]", json!({"type": "array"}), json!(["a", 1])),
        ("{\"a\": 1}", json!({"anyOf": [{"type": "object"}, {"type": "null"}]}), json!({"a": 1})),
        ("{\"a\": 1}", json!({"type": "string"}), json!("{\"a\": 1}")),
        ("\n\n a \n\n", json!({"type": "string"}), json!("\n a \n")),
        ("2", json!({"enum": [1, 2]}), json!(2)),
        ("celsius\n", json!({"enum": ["celsius", 2]}), json!("celsius")),
        ("7", json!({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}), json!(7)),
        ("x", json!({"$ref": "#"}), json!("x")),
        ("7", json!({"anyOf": vec![json!({"$ref": "#"}); 1000]}), json!(7)),
        ("{\"a\": 1}", json!({}), json!({"a": 1})),
        ("word", json!({}), json!("word")),
    ];
    for (text, schema, value) in cases {
        assert_eq!(argument(text, &schema), value, "{text:?} under {schema}");
    }
}
