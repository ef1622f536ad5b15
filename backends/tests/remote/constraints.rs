//! Forms of answers and forced calls, in the words of each kind of service.

use pagoda_backends::registry::BackendKind;
use pagoda_backends::remote::RemoteService;
use pagoda_backends::{BackendError, Constraint, ConstraintForm, InferenceBackend, Prompt, ToolChoice};
use serde_json::{Value, json};

use crate::question;
use crate::upstream::{Upstream, finish, remote, settings, text};

fn constraint(form: ConstraintForm, raw: bool) -> Constraint {
    Constraint { form, raw, compact_json: false, field: "the_field".into() }
}

#[tokio::test]
async fn forms_of_answers_pass_or_are_refused() {
    let upstream = Upstream::start().await;
    let vllm = remote(&upstream);
    let openai = RemoteService::new(&settings(BackendKind::RemoteOpenai, &upstream.url)).unwrap().model("gpt", Some(4096));
    let schema = json!({"type": "object"});
    let by_schema = || ConstraintForm::JsonSchema { schema: schema.clone(), name: Some("it".into()) };
    let format = json!({"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": true}});
    let raw = |key: &str, value: Value| ("structured_outputs", json!({ key: value }));
    let choices = || ConstraintForm::Choice(vec!["a".into(), "b".into()]);
    for (constraint, (field, expected), with_openai) in [
        (constraint(ConstraintForm::JsonObject, false), ("response_format", json!({"type": "json_object"})), true),
        (constraint(by_schema(), false), ("response_format", format), true),
        (constraint(by_schema(), true), raw("json", schema.clone()), false),
        (constraint(ConstraintForm::Regex("a+".into()), true), raw("regex", json!("a+")), false),
        (constraint(choices(), true), raw("choice", json!(["a", "b"])), false),
        (constraint(ConstraintForm::Grammar("root ::= x".into()), true), raw("grammar", json!("root ::= x")), false),
    ] {
        for (remote, is_sent) in [(&vllm, true), (&openai, with_openai)] {
            let mut request = question(remote);
            request.config.constraint = Some(constraint.clone());
            let before = upstream.seen().len();
            if is_sent {
                upstream.play(&[text("{}"), finish("stop")]);
                remote.generate(request).await.unwrap();
                assert_eq!(upstream.seen().last().unwrap().body[field], expected, "{constraint:?}");
            } else {
                let error = remote.generate(request).await.unwrap_err();
                assert!(matches!(&error, BackendError::Unsupported(message) if message.contains("the_field")), "{error}");
                assert_eq!(upstream.seen().len(), before, "nothing is sent");
            }
        }
    }
    let mut request = question(&openai);
    let Prompt::Chat(chat) = &mut request.prompt else { panic!("a chat") };
    chat.tools = vec![json!({"type": "function", "function": {"name": "f"}})];
    chat.tool_choice = ToolChoice::Required;
    upstream.play(&[text("x"), finish("stop")]);
    openai.generate(request).await.unwrap();
    assert_eq!(upstream.seen().last().unwrap().body["tool_choice"], "required");
}
