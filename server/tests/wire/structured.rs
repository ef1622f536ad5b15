//! What an answer has to be: every spelling of it reaches the backend as one constraint or one choice of tools.

use pagoda_backends::{BackendError, Constraint, ConstraintForm, Prompt, ToolChoice};
use serde_json::{Value, json};

use crate::client::Server;
use crate::scripted::Reply;

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const COMPLETIONS: &str = "/v1/completions";

fn body(path: &str, more: Value) -> Value {
    let mut body = match path {
        COMPLETIONS => json!({"model": "m", "prompt": "hi", "max_tokens": 64}),
        _ => json!({"model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}),
    };
    more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
    body
}

async fn constraint(server: &Server, path: &str, more: Value) -> Option<Constraint> {
    let answer = server.post(path, &body(path, more.clone())).await;
    assert_eq!(answer.status, 200, "{path} {more}: {}", answer.text());
    server.backend.last().config.constraint
}

#[tokio::test]
async fn every_spelling_is_one_constraint() {
    let server = Server::start().await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let of_schema = |name: Option<&str>| ConstraintForm::JsonSchema { schema: schema.clone(), name: name.map(str::to_owned) };
    let tag = json!({"type": "structural_tag", "format": {"type": "any_text"}});
    let raw = [
        (json!({"json": schema}), of_schema(None)),
        (json!({"json": schema.to_string()}), of_schema(None)),
        (json!({"regex": "a+"}), ConstraintForm::Regex("a+".into())),
        (json!({"choice": ["a", "b"]}), ConstraintForm::Choice(vec!["a".into(), "b".into()])),
        (json!({"grammar": "root ::= \"a\""}), ConstraintForm::Grammar("root ::= \"a\"".into())),
        (json!({"json_object": true}), ConstraintForm::JsonObject),
        (json!({"structural_tag": tag.to_string()}), ConstraintForm::StructuralTag(tag.clone())),
    ];
    for path in [CHAT, MESSAGES, COMPLETIONS] {
        for (options, form) in &raw {
            let (name, value) = options.as_object().unwrap().iter().next().unwrap();
            let found = constraint(&server, path, json!({"structured_outputs": options})).await;
            let expected = |field: String| Some(Constraint { form: form.clone(), raw: true, compact_json: false, field });
            assert_eq!(found, expected(format!("structured_outputs.{name}")), "{path}");
            let mut older = json!({});
            older[format!("guided_{name}")] = value.clone();
            assert_eq!(constraint(&server, path, older).await, expected(format!("guided_{name}")), "{path}");
        }
        let compact = json!({"structured_outputs": {"json_object": true, "disable_any_whitespace": true}});
        assert!(constraint(&server, path, compact).await.unwrap().compact_json);
        assert_eq!(constraint(&server, path, json!({"guided_json_object": false})).await, None);
    }
    let answer = |form: ConstraintForm, field: &str| Some(Constraint { form, raw: false, compact_json: false, field: field.into() });
    for path in [CHAT, COMPLETIONS] {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}});
        let found = constraint(&server, path, json!({"response_format": format})).await;
        assert_eq!(found, answer(of_schema(Some("x")), "response_format.json_schema.schema"));
        let found = constraint(&server, path, json!({"response_format": {"type": "json_object"}})).await;
        assert_eq!(found, answer(ConstraintForm::JsonObject, "response_format.type"));
        let found = constraint(&server, path, json!({"response_format": tag})).await;
        assert_eq!(found, answer(ConstraintForm::StructuralTag(tag.clone()), "response_format"));
        assert_eq!(constraint(&server, path, json!({"response_format": {"type": "text"}})).await, None);
    }
    let format = json!({"type": "json_schema", "schema": schema});
    let found = constraint(&server, MESSAGES, json!({"output_config": {"effort": "low", "format": format}})).await;
    assert_eq!(found, answer(of_schema(None), "output_config.format.schema"));
    let found = constraint(&server, MESSAGES, json!({"output_format": format})).await;
    assert_eq!(found, answer(of_schema(None), "output_format.schema"));
    assert_eq!(constraint(&server, MESSAGES, json!({"output_config": {"effort": "low", "format": null}})).await, None);
}

#[tokio::test]
async fn two_constraints_are_one_too_many() {
    let server = Server::start().await;
    for (path, more, named) in [
        (CHAT, json!({"structured_outputs": {"regex": "a"}, "guided_json": {}}), "guided_json"),
        (CHAT, json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}), "structured_outputs.regex"),
        (MESSAGES, json!({"guided_regex": "a", "output_format": {"type": "json_schema", "schema": {}}}), "guided_regex"),
    ] {
        let answer = server.post(path, &body(path, more)).await;
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains(named) && answer.text().contains("cannot be combined"), "{}", answer.text());
    }
}

#[tokio::test]
async fn tool_choices_and_strict_tools_reach_the_backend() {
    let server = Server::start().await;
    let function = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": true}});
    let tool = json!({"name": "f", "input_schema": {"type": "object"}, "strict": true});
    let required = || ToolChoice::Required;
    let named = || ToolChoice::Function("f".into());
    for (path, more, choice, single) in [
        (MESSAGES, json!({"tool_choice": {"type": "any"}}), required(), false),
        (MESSAGES, json!({"tool_choice": {"type": "any", "disable_parallel_tool_use": true}}), required(), true),
        (MESSAGES, json!({"tool_choice": {"type": "tool", "name": "f"}}), named(), false),
        (MESSAGES, json!({"tool_choice": {"type": "none"}}), ToolChoice::None, false),
        (MESSAGES, json!({}), ToolChoice::Auto, false),
        (CHAT, json!({"tool_choice": "required"}), required(), false),
        (CHAT, json!({"tool_choice": "required", "parallel_tool_calls": false}), required(), true),
        (CHAT, json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}), named(), false),
        (CHAT, json!({"tool_choice": "auto", "parallel_tool_calls": false}), ToolChoice::Auto, true),
    ] {
        let mut body = body(path, more);
        body["tools"] = json!([if path == MESSAGES { tool.clone() } else { function.clone() }]);
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let Prompt::Chat(chat) = server.backend.last().prompt else { panic!("a chat") };
        assert_eq!((&chat.tool_choice, chat.single_tool_call), (&choice, single), "{body}");
        assert_eq!(chat.tools, [json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": true}})]);
    }
    for (path, choice, named) in [
        (MESSAGES, json!({"type": "tool", "name": "g"}), "tool_choice.name"),
        (MESSAGES, json!({"type": "tool"}), "tool_choice.name"),
        (CHAT, json!({"type": "function", "function": {"name": "g"}}), "tool_choice"),
        (CHAT, json!({"type": "function"}), "tool_choice.function"),
        (CHAT, json!({"type": "custom", "function": {"name": "f"}}), "tool_choice.type"),
        (CHAT, json!("always"), "tool_choice"),
    ] {
        let mut body = body(path, json!({"tool_choice": choice}));
        body["tools"] = json!([if path == MESSAGES { tool.clone() } else { function.clone() }]);
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text().contains(named), "{}", answer.text());
    }
}

#[tokio::test]
async fn what_a_backend_cannot_enforce_is_the_clients_to_hear() {
    let server = Server::start().await;
    let message = "structured_outputs.regex: regex parse error";
    for (error, status) in [
        (BackendError::InvalidRequest { param: Some("structured_outputs.regex".into()), message: message.into() }, 400),
        (BackendError::Unsupported("structured output".into()), 400),
    ] {
        for path in [CHAT, MESSAGES, COMPLETIONS] {
            server.backend.push(Reply::Refuse(error.clone()));
            let answer = server.post(path, &body(path, json!({"structured_outputs": {"regex": "("}, "stream": true}))).await;
            assert_eq!(answer.status, status, "{}", answer.text());
        }
    }
}
