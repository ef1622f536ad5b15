//! Templates of several families against renderings by Jinja2 as transformers sets it up (made by jinja2 3.1.6), and the bounds.

use serde_json::json;

use super::*;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/chat_templates");

fn text_config(bos: &str, eos: &str) -> TextConfig {
    let token = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    TextConfig { bos_token: token(bos), eos_token: token(eos), ..TextConfig::default() }
}

/// Renders one of the inputs of cases.json.
fn render_json(template: &ChatTemplate, input: &Json) -> Result<String> {
    let list = |key: &str| input[key].as_array().cloned().unwrap_or_default();
    let kwargs = input["kwargs"].as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect();
    template.render(&ChatInput {
        messages: &list("messages"),
        tools: &list("tools"),
        add_generation_prompt: input["add_generation_prompt"] == true,
        continue_final_message: input["continue_final_message"] == true,
        kwargs: &kwargs,
    })
}

fn render(source: &str, messages: Json) -> Result<String> {
    render_json(&ChatTemplate::new(source, &text_config("<s>", "</s>"))?, &json!({"messages": messages, "add_generation_prompt": true}))
}

/// Every template on every input; an expected null is a refusal.
#[test]
fn renderings_equal_jinja2() {
    let cases: Json = serde_json::from_slice(&std::fs::read(format!("{DATA}/cases.json")).unwrap()).unwrap();
    let mut compared = 0;
    for (name, row) in cases["templates"].as_object().unwrap() {
        let source = std::fs::read_to_string(format!("{DATA}/{name}.jinja")).unwrap();
        let config = text_config(row["bos"].as_str().unwrap(), row["eos"].as_str().unwrap());
        let template = ChatTemplate::new(&source, &config).unwrap();
        for (input, expected) in row["expected"].as_object().unwrap() {
            let got = render_json(&template, &cases["inputs"][input]);
            match expected.as_str() {
                Some(expected) => assert_eq!(got.unwrap(), expected, "{name} on {input}"),
                None => assert!(got.is_err(), "{name} on {input}: rendered {got:?}, expected a refusal"),
            }
            compared += 1;
        }
    }
    assert!(compared > 50, "{compared} cases");
}

/// The bounds are far from what a long conversation needs.
#[test]
fn long_conversations_fit() {
    let source = std::fs::read_to_string(format!("{DATA}/qwen2_5.jinja")).unwrap();
    let messages: Vec<Json> =
        (0..5000).map(|i| json!({"role": if i % 2 == 0 { "user" } else { "assistant" }, "content": "word ".repeat(100)})).collect();
    let text = render(&source, Json::from(messages)).unwrap();
    assert_eq!(text.matches("<|im_start|>").count(), 5002);
}

#[test]
fn refusals_say_why() {
    let check = |source: &str, needle: &str| match render(source, json!([{"role": "user", "content": "x"}])) {
        Err(EngineError::InvalidRequest(message)) => assert!(message.contains(needle), "{message}"),
        other => panic!("{source}: {other:?}"),
    };
    check("{{ raise_exception('roles must alternate') }}", "roles must alternate");
    check("{{ messages[0].content.nothing() }}", "nothing");
    check("{% for i in range(9999) %}{% for j in range(9999) %}{{ i * j }}{% endfor %}{% endfor %}", "");
    check("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "");
    check("{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}", "");
    check("{% set x = 'y' * 1000000 %}{% for i in range(20) %}{{ x }}{% endfor %}", "longer than");
}

#[test]
fn bad_sources_are_refused() {
    let error = ChatTemplate::new("line\n{% if %}", &TextConfig::default()).err().unwrap().to_string();
    assert!(error.contains("chat template") && error.contains('2'), "{error}");
    assert!(ChatTemplate::new(&"x".repeat(MAX_TEMPLATE_BYTES + 1), &TextConfig::default()).is_err());
    let include = render("{% include 'other' %}", json!([])).unwrap_err().to_string();
    assert!(include.contains("other"), "{include}");
}

#[test]
fn content_takes_the_shape_that_the_template_knows() {
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]);
    let text = json!([{"role": "user", "content": "a"}]);
    let strings = "{% for m in messages %}{{ m.content + '|' }}{% endfor %}";
    let lists = "{% for m in messages %}{% for p in m.content %}{{ p.text }}|{% endfor %}{% endfor %}";
    let both = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}|{% endfor %}{% endif %}{% endfor %}";
    for (source, messages, expected) in [
        (strings, &parts, "a\nb|"),
        (strings, &text, "a|"),
        (lists, &parts, "a|b|"),
        (lists, &text, "a|"),
        (both, &parts, "a|b|"),
        (both, &text, "a"),
    ] {
        assert_eq!(render(source, messages.clone()).unwrap(), expected, "{source}");
    }
    assert!(render(strings, image).is_err());
}

#[test]
fn tool_call_arguments_are_parsed() {
    let call = |arguments: Json| json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]);
    let source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}";
    assert_eq!(render(source, call(json!(r#"{"b":1,"a":[2]}"#))).unwrap(), r#"{"b": 1, "a": [2]}"#);
    assert_eq!(render(source, call(json!({"x": null}))).unwrap(), r#"{"x": null}"#);
    assert_eq!(render(source, call(json!("not json"))).unwrap(), r#""not json""#);
}

#[test]
fn continuing_the_last_message() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}";
    let template = ChatTemplate::new(source, &TextConfig::default()).unwrap();
    let go = |messages: Json, prompt: bool| {
        render_json(&template, &json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": prompt}))
    };
    let user = json!({"role": "user", "content": "hi"});
    assert_eq!(go(json!([user, {"role": "assistant", "content": "It is "}]), false).unwrap(), "<user>hi</><assistant>It is");
    assert_eq!(go(json!([{"role": "assistant", "content": [{"type": "text", "text": "Yes"}]}]), false).unwrap(), "<assistant>Yes");
    assert!(go(json!([user]), true).is_err());
    assert!(go(json!([]), false).is_err());
    assert!(go(json!([{"role": "assistant", "content": null}]), false).is_err());
}

#[test]
fn variables_of_the_template() {
    let config = TextConfig { special_tokens: vec![("pad_token".into(), "<pad>".into())], ..text_config("<s>", "") };
    let source = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ tools is none }}{{ thinking }}{{ add_generation_prompt }}";
    let template = ChatTemplate::new(source, &config).unwrap();
    let got = render_json(&template, &json!({"messages": [], "kwargs": {"thinking": false, "pad_token": "P", "tools": 1}}));
    assert_eq!(got.unwrap(), "<s>PTrueFalseFalse");
    assert_eq!(template.source(), source);
}
