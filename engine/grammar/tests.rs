//! Grammars over a small vocabulary, followed by a model that knows nothing: every random walk must end in a text of the grammar.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

/// Bytes, and tokens that join what grammars keep apart.
const JOINED: [&str; 12] =
    ["{\"", "\": ", "\", \"", "}}", "true", "1234", "00000000000000000000", "e9999", "<tool_call>", "the", " \n", "],"];
const EOS: u32 = 256 + JOINED.len() as u32;

fn compiler() -> Compiler {
    Compiler::new(Limits::default(), EOS as usize + 2, &[EOS], |token| match token {
        0..256 => Some(vec![token as u8]),
        _ => JOINED.get(token as usize - 256).map(|text| text.as_bytes().to_vec()),
    })
}

fn text_of(tokens: &[u32]) -> String {
    let bytes = tokens.iter().flat_map(|&token| match token {
        0..256 => vec![token as u8],
        _ => JOINED[token as usize - 256].as_bytes().to_vec(),
    });
    String::from_utf8(bytes.collect()).expect("grammars make UTF-8")
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

/// A random text of the grammar; None when it did not end in `max` tokens.
fn walk(grammar: &Grammar, seed: u64, max: usize) -> Option<String> {
    let mut random = Random(seed);
    let mut state = GrammarState::new(grammar.clone(), Arc::new([EOS]), 0, &[]);
    let mut tokens = Vec::new();
    for _ in 0..max {
        let allowed: Vec<u32> = (0..=EOS).filter(|&t| state.mask()[t as usize / 32] >> (t % 32) & 1 == 1).collect();
        let token = allowed[random.below(allowed.len())];
        assert_eq!(state.error(), None, "after {:?}", text_of(&tokens));
        if token == EOS {
            assert!(state.may_end());
            return Some(text_of(&tokens));
        }
        tokens.push(token);
        state.advance(token);
    }
    None
}

fn walks(compiler: &Compiler, format: Format, max: usize) -> Vec<String> {
    let grammar = compiler.compile(&format.clone().into()).unwrap_or_else(|e| panic!("{e}"));
    let ended =
        |seed| walk(&grammar, seed, max).unwrap_or_else(|| panic!("no end of {}", lark::lark_of(&format.clone().into()).unwrap().text));
    (0..20).map(ended).collect()
}

fn refusal(compiler: &Compiler, format: Format) -> String {
    match compiler.compile(&format.into()) {
        Err(GrammarError::Invalid(message)) => message,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn schema(value: Value) -> Format {
    Format::JsonSchema(value)
}

#[test]
fn finite_schemas_end_and_fit() {
    let compiler = compiler();
    let weather = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "days": {"type": "integer"},
            "share": {"type": "number"},
            "unit": {"enum": ["celsius", "fahrenheit", 3, null]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["city", "days", "share", "unit", "tags"],
    });
    for text in walks(&compiler, schema(weather), 600) {
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["city", "days", "share", "unit", "tags"], "{text}");
        assert!(value["days"].is_i64() && value["share"].is_number() && value["city"].as_str().unwrap().chars().count() <= 8, "{text}");
        assert!(["\"celsius\"", "\"fahrenheit\"", "3", "null"].contains(&value["unit"].to_string().as_str()), "{text}");
        assert!(value["tags"].as_array().unwrap().len() <= 3, "{text}");
    }
}

#[test]
fn objects_that_name_their_properties_have_no_others() {
    let compiler = compiler();
    assert!(
        walks(&compiler, schema(json!({"type": "object", "properties": {}})), 60)
            .iter()
            .all(|t| t.split_whitespace().collect::<String>() == "{}")
    );
    let all_of = json!({"allOf": [
        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"const": 2}}, "required": ["b"]},
    ]});
    let nested = json!({"type": "object", "properties": {"v": all_of.clone()}, "required": ["v"]});
    for text in walks(&compiler, schema(all_of), 500) {
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({"a": 1, "b": 2}));
    }
    for text in walks(&compiler, schema(nested), 500) {
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({"v": {"a": 1, "b": 2}}));
    }
    let pet = |kind: &str| json!({"type": "object", "properties": {"kind": {"const": kind}, "n": {"enum": [1, 2]}}, "required": ["kind"]});
    let apart =
        json!({"$defs": {"dog": pet("dog")}, "oneOf": [pet("cat"), {"$ref": "#/$defs/dog"}], "discriminator": {"propertyName": "kind"}});
    for text in walks(&compiler, schema(apart), 500) {
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!((value["kind"] == "cat" || value["kind"] == "dog") && value.as_object().unwrap().len() <= 2, "{text}");
    }
    // Closed they would look apart, but a value with both names fits both: refused, not answered wrongly.
    let of =
        |name: &str| json!({"type": "object", "properties": {name: {"type": "integer"}, "y": {"type": "integer"}}, "required": [name]});
    let overlapping = json!({"$defs": {"a": of("x"), "b": of("y")}, "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]});
    assert!(refusal(&compiler, schema(overlapping)).contains("oneOf"));
    let wrapped = json!({
        "$defs": {"p": {"type": "object", "properties": {"a": {"const": 1}}}},
        "type": "object", "properties": {"v": {"allOf": [{"$ref": "#/$defs/p"}], "description": "as generators write it"}}, "required": ["v"],
    });
    for text in walks(&compiler, schema(wrapped), 500) {
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value == json!({"v": {"a": 1}}) || value == json!({"v": {}}), "{text}");
    }
}

#[test]
fn every_form_is_followed() {
    let compiler = compiler();
    for text in walks(&compiler, Format::Choice(vec!["a".into(), "abc".into(), "x\ny\"\u{7f}".into()]), 20) {
        assert!(["a", "abc", "x\ny\"\u{7f}"].contains(&text.as_str()), "{text:?}");
    }
    for text in walks(&compiler, Format::Regex(r"^[a-c]{2}/\d{1,2}(é|\$)$".into()), 20) {
        let (letters, rest) = text.split_once('/').unwrap();
        assert!(letters.len() == 2 && rest.ends_with(['é', '$']), "{text}");
    }
    for text in walks(&compiler, Format::Grammar("start: \"a\" (\"b\" | \"c\"){1,3}\n".into()), 20) {
        assert!(text.starts_with('a') && (2..=4).contains(&text.len()), "{text}");
    }
    let ebnf = "# a comment\nroot ::= \"SELECT \" name\n  | (\"x\" [0-9\\-]{2})\nname ::= [a-z]+ \" \"? \"z\" | \"ab\" \"c\"?\n";
    for seed in 0..20 {
        let grammar = compiler.compile(&Format::Grammar(ebnf.into()).into()).unwrap();
        let Some(text) = walk(&grammar, seed, 300) else { continue };
        assert!(text.starts_with("SELECT ") || text.starts_with('x') && text.len() == 3, "{text}");
    }
    let nested = "root ::= \"(\" root? \")\" | \"ab\" | \"abc\"\n";
    let grammar = compiler.compile(&Format::Grammar(nested.into()).into()).unwrap();
    for text in (0..20).filter_map(|seed| walk(&grammar, seed, 200)) {
        let inner = text.trim_matches(['(', ')']);
        assert!(["", "ab", "abc"].contains(&inner) && text.matches('(').count() == text.matches(')').count(), "{text}");
    }
}

#[test]
fn both_continuations_of_a_common_beginning_are_open() {
    let grammar = compiler().compile(&Format::Grammar("root ::= \"(\" root \")\" | \"a\" \"bd\" | \"ab\" \"c\"\n".into()).into()).unwrap();
    for text in ["abd", "abc", "(abd)", "((abc))"] {
        let mut state = GrammarState::new(grammar.clone(), Arc::new([EOS]), 0, &[]);
        text.bytes().for_each(|byte| state.advance(u32::from(byte)));
        assert!(state.may_end(), "{text}: {:?}", state.error());
    }
}

#[test]
fn tags_begin_with_their_triggers_and_hold_their_schemas() {
    let compiler = compiler();
    let tag = |name: &str| Tagged {
        begin: format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": "),
        content: schema(json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})),
        end: "}\n</tool_call>".into(),
    };
    let item = Box::new(Format::AnyOf(vec![tag("a").into(), tag("b").into()]));
    let one = Format::Repeat { item: item.clone(), separator: "\n".into(), min: 1, max: Some(1) };
    assert!(walks(&compiler, one, 400).iter().all(|text| text.matches("</tool_call>").count() == 1));
    let forced = Format::Repeat { item, separator: "\n".into(), min: 1, max: Some(3) };
    for text in walks(&compiler, forced, 1000) {
        for call in text.split("</tool_call>\n") {
            let call = call.trim_start_matches("<tool_call>\n").trim_end_matches("</tool_call>");
            let value: Value = serde_json::from_str(call).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(["a", "b"].contains(&value["name"].as_str().unwrap()) && value["arguments"]["x"].is_i64(), "{text}");
        }
    }
    let free =
        Format::Triggered { triggers: vec!["<tool_call>".into()], tags: vec![tag("a")], at_least_one: false, stop_after_first: false };
    let grammar = compiler.compile(&free.into()).unwrap();
    let follows = |text: &str| {
        let mut state = GrammarState::new(grammar.clone(), Arc::new([EOS]), 0, &[]);
        text.bytes().for_each(|byte| state.advance(u32::from(byte)));
        state.error().is_none()
    };
    assert!(follows("Some < text \"and\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call> more"));
    assert!(!follows("text <tool_call>\n{\"name\": \"b\""));
    assert!(!follows("<tool_call>\n{\"name\": \"a\", \"arguments\": {\"y\""));
}

#[test]
fn structural_tags_of_both_forms_are_read() {
    let compiler = compiler();
    let older = json!({"type": "structural_tag", "triggers": ["<f="], "structures": [{"begin": "<f=a>", "schema": {"type": "object", "properties": {}}, "end": "</f>"}]});
    compiler.compile(&format_of_structural_tag(&older).unwrap().into()).unwrap();
    let newer = json!({"type": "structural_tag", "format": {"type": "sequence", "elements": [
        {"type": "const_string", "value": "<think>"},
        {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": "</think>"},
        {"type": "or", "elements": [{"type": "regex", "pattern": "[0-9]{2}"}, {"type": "grammar", "grammar": "root ::= \"no\""}]},
    ]}});
    let grammar = compiler.compile(&format_of_structural_tag(&newer).unwrap().into()).unwrap();
    for (text, ends) in [("<think>a < b</think>42", true), ("<think></think>no", true), ("<think>x</think>", false)] {
        let mut state = GrammarState::new(grammar.clone(), Arc::new([EOS]), 0, &[]);
        text.bytes().for_each(|byte| state.advance(u32::from(byte)));
        assert_eq!((state.may_end(), state.error()), (ends, None), "{text}");
    }
    let unknown = json!({"type": "structural_tag", "format": {"type": "sequence", "elements": [{"type": "qwen_xml"}]}});
    assert!(format_of_structural_tag(&unknown).unwrap_err().to_string().contains("format.elements[0].type"));
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    let compiler = compiler();
    for (value, expected) in [
        (json!({"type": "array", "uniqueItems": true}), "`uniqueItems`"),
        (json!({"properties": {"a": {"not": {"type": "string"}}}}), "at #/properties/a: `not`"),
        (json!({"if": {}, "then": {}}), "`if`"),
        (json!({"$ref": "https://example.com/schema"}), "`$ref`"),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"type": "string", "format": "no-such-format"}), "no-such-format"),
        (json!({"type": "strin"}), "strin"),
        (json!({"oneOf": [{}, {"type": "string"}]}), "`oneOf`"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (json!({"enum": [9_007_199_254_740_993_u64]}), "9007199254740993"),
        (json!({"multipleOf": 1e-9}), "`multipleOf`"),
        (json!({"enum": []}), "nsatisfiable"),
        (json!({"type": "string", "pattern": "(?=a)b"}), "look"),
        (json!({"type": "string", "pattern": "(a"}), "("),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "minimum"),
        (json!([]), "must be an object"),
        (json!({"items": 5}), "must be an object or a boolean"),
    ] {
        let message = refusal(&compiler, schema(value.clone()));
        assert!(message.contains(expected), "{value}: {message}");
    }
    for (format, expected) in [
        (Format::Regex("(".into()), "regex"),
        (Format::Regex(String::new()), "empty"),
        (Format::Grammar("root ::= nothing".into()), "`nothing`"),
        (Format::Grammar("root := \"a\"\nx ::= 1".into()), "line 1"),
        (Format::Grammar("rule: \"a\"".into()), "start"),
        (Format::Choice(vec![]), "at least one"),
        (Format::Choice(vec![String::new()]), "empty"),
    ] {
        let message = refusal(&compiler, format);
        assert!(message.to_lowercase().contains(expected), "{expected}: {message}");
    }
}

/// Whatever they come to, hostile sources are answered soon and leave the process alone.
#[test]
fn hostile_sources_are_answered_soon() {
    let compiler = compiler();
    let deep = (0..300).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    let chain: serde_json::Map<String, Value> = (0..900)
        .map(|i| (format!("d{i}"), json!({"properties": {"x": {"$ref": format!("#/$defs/d{}", (i + 1) % 900)}}, "type": "object"})))
        .collect();
    let wide: Vec<Value> = (0..50_000).map(|i| json!(format!("value number {i}"))).collect();
    let powers = (0..14).fold(json!({"type": "integer"}), |inner, _| json!({"anyOf": [inner.clone(), {"type": "array", "items": inner}]}));
    let sources: Vec<(&str, Format)> = vec![
        ("deep schema", schema(deep)),
        ("chain of references", schema(json!({"$ref": "#/$defs/d0", "$defs": chain}))),
        (
            "references to each other",
            schema(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}})),
        ),
        ("huge enum", schema(json!({"enum": wide}))),
        ("powers of two", schema(powers)),
        ("many items", schema(json!({"type": "array", "items": {"type": "array", "minItems": 100_000}, "minItems": 100_000}))),
        ("long string", schema(json!({"type": "string", "minLength": 10_000_000}))),
        ("huge multiple", schema(json!({"type": "integer", "multipleOf": 999_999}))),
        ("large multiple", schema(json!({"type": "integer", "multipleOf": 9973}))),
        ("large decimal multiple", schema(json!({"type": "number", "multipleOf": 0.9973, "minimum": -1000}))),
        ("counted counts", Format::Regex("((a{1,1000}){1,1000}){1,1000}".into())),
        ("ambiguous", Format::Regex("(a|a?)+(a|aa)*b{0,500}(.*x){50}".into())),
        ("exponential automaton", Format::Regex("(.*a.{40}|.*b.{41}|.*c.{42})d".into())),
        ("intersecting classes", Format::Regex(r"[\p{L}&&\p{Greek}]{1,400}\w{400,900}".into())),
        ("deep brackets", Format::Regex("(".repeat(5000) + &")".repeat(5000))),
        ("deep grammar", Format::Grammar("start: ".to_string() + &"(".repeat(5000) + "\"a\"" + &")".repeat(5000))),
        ("ambiguous grammar", Format::Grammar("start: a\na: a a | \"x\" | \"\"\n".into())),
        ("recursive only", Format::Grammar("root ::= root root".into())),
        ("left recursion", Format::Grammar("root ::= root \"a\" | root root | \"a\"".into())),
        ("long choice", Format::Choice((0..20_000).map(|i| format!("choice {i} of many")).collect())),
        ("long literal", Format::Regex("a".repeat(100_000))),
    ];
    for (name, format) in sources {
        let started = Instant::now();
        let outcome = compiler.compile(&format.into());
        let compiled = started.elapsed();
        let mut steps = Duration::ZERO;
        let mut longest = Duration::ZERO;
        if let Ok(grammar) = &outcome {
            let mut state = GrammarState::new(grammar.clone(), Arc::new([EOS]), 0, &[]);
            let mut random = Random(1);
            for _ in 0..60 {
                let allowed: Vec<u32> = (0..=EOS).filter(|&t| state.mask()[t as usize / 32] >> (t % 32) & 1 == 1).collect();
                let before = Instant::now();
                state.advance(allowed[random.below(allowed.len())]);
                longest = longest.max(before.elapsed());
                steps += before.elapsed();
            }
        }
        let said = outcome.map_or_else(|e| e.to_string(), |_| "compiled".into());
        if std::env::var_os("SHOW").is_some() {
            eprintln!("{name}: {compiled:?} {steps:?} longest {longest:?} {}", &said[..said.len().min(100)]);
        }
        assert!(compiled < Duration::from_secs(20) && steps < Duration::from_secs(20), "{name}: {compiled:?}, {steps:?}: {said}");
    }
}

#[test]
fn a_grammar_is_compiled_once_and_the_oldest_makes_room() {
    let compiler = compiler();
    let source = |i: usize| GrammarSource::from(Format::Regex(format!("a{{{}}}", i + 1)));
    let first = compiler.compile(&source(0)).unwrap();
    assert_eq!(compiler.compile(&source(0)).unwrap(), first);
    for i in 1..130 {
        compiler.compile(&source(i)).unwrap();
    }
    assert_ne!(compiler.compile(&source(0)).unwrap(), first, "it was not used for longest");
    let spared = compiler.compile(&GrammarSource { spacing: Spacing::Compact, ..schema(json!({"enum": [[1, 2]]})).into() }).unwrap();
    assert_eq!(walk(&spared, 3, 20).as_deref(), Some("[1,2]"));
}

/// A request that finds the vocabulary unprepared waits for it, however little time its grammar has.
#[test]
fn the_vocabulary_does_not_count_as_time_to_compile() {
    let num_tokens = 20_000;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let limits = Limits { compile_time: Duration::ZERO, ..Limits::default() };
    let compiler = Compiler::new(limits, num_tokens, &[0], move |token| {
        counter.fetch_add(1, Ordering::Relaxed);
        Some(token.to_string().into_bytes())
    });
    let _ = compiler.compile(&Format::Regex("1".into()).into());
    assert_eq!(asked.load(Ordering::Relaxed), num_tokens);
}

#[test]
fn ends_come_when_the_text_is_whole_and_not_before_min_tokens() {
    let grammar = compiler().compile(&Format::Regex("a{1,5}".into()).into()).unwrap();
    let allows_end = |state: &GrammarState| state.mask()[EOS as usize / 32] >> (EOS % 32) & 1 == 1;
    let mut state = GrammarState::new(grammar.clone(), Arc::new([EOS]), 3, &[]);
    for expected in [false, false, false, true, true, true] {
        assert_eq!(allows_end(&state), expected);
        state.advance(u32::from(b'a'));
    }
    assert!(state.error().is_some(), "six are too many");
    assert!(allows_end(&state), "what failed can only end");
    // The text is whole: it ends, whatever `min_tokens` says.
    let mut state = GrammarState::new(grammar.clone(), Arc::new([EOS]), 10, &[97; 5]);
    assert!(allows_end(&state) && state.may_end());
    state.advance(EOS);
    state.advance(EOS);
    assert!(allows_end(&state) && state.error().is_none(), "an end that does not end the sequence may be repeated");
}

#[test]
fn a_slot_comes_to_the_same_mask_step_by_step_and_after_preemption() {
    let grammar = compiler()
        .compile(&schema(json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]})).into())
        .unwrap();
    let tokens: Vec<u32> = "{\"a\": \"y\"".bytes().map(u32::from).collect();
    let mut slot = SlotMask::start(&grammar, Arc::new([EOS]), 0, &[]);
    for (i, &token) in tokens.iter().enumerate() {
        let mut again = SlotMask::start(&grammar, Arc::new([EOS]), 0, &tokens[..i]);
        again.wait();
        slot.wait();
        assert_eq!(slot.allowed(), again.allowed(), "after {i} tokens");
        assert_eq!(slot.allowed()[token as usize / 32] >> (token % 32) & 1, 1);
        slot.advance(token);
    }
    slot.wait();
    assert_eq!(slot.error(), None);
}
