//! Fields of both families that say what form an answer must have, read into one `Constraint`.
//!
//! OpenAI's `response_format`, Anthropic's `output_config.format`, vLLM's `structured_outputs` and its older `guided_*` names. What a schema
//! or a grammar says is the backend's to check.

use pagoda_backends::{Constraint, ConstraintForm, Json};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::Fields;

/// Texts of a `choice`.
const MAX_CHOICES: usize = 10_000;
/// Names of vLLM's forms, in `structured_outputs` and, behind `guided_`, on their own.
const FORMS: [&str; 6] = ["json", "regex", "choice", "grammar", "json_object", "structural_tag"];

/// vLLM's fields, the same in both families: they hold for the raw text.
pub(crate) fn read_raw(body: &Fields) -> Result<Option<Constraint>, ApiError> {
    let mut found = None;
    if let Some(options) = body.object("structured_outputs")? {
        for form in FORMS {
            add(&mut found, read_form(&options, form, form)?)?;
        }
        if found.is_none() {
            return Err(body.error("structured_outputs", format!("needs one of {}", FORMS.join(", "))));
        }
        let compact = options.boolean("disable_any_whitespace")?.unwrap_or(false);
        if let Some(constraint) = &mut found {
            constraint.compact_json = compact;
        }
        options.refuse(&["whitespace_pattern"])?;
        options.boolean("disable_fallback")?;
        options.boolean("disable_additional_properties")?;
    }
    for form in FORMS {
        add(&mut found, read_form(body, &format!("guided_{form}"), form)?)?;
    }
    body.string("guided_decoding_backend")?;
    body.refuse(&["guided_whitespace_pattern"])?;
    Ok(found)
}

/// `response_format` of OpenAI's routes.
pub(crate) fn read_response_format(body: &Fields) -> Result<Option<Constraint>, ApiError> {
    let Some(format) = body.object("response_format")? else { return Ok(None) };
    match format.required_string("type")? {
        "text" => Ok(None),
        "json_object" => Ok(Some(answer(&format, "type", ConstraintForm::JsonObject))),
        "json_schema" => {
            let definition = Fields::of(format.require("json_schema")?, format.path("json_schema"))?;
            let name = definition.required_string("name")?.to_owned();
            definition.string("description")?;
            definition.boolean("strict")?;
            let schema = schema_of(&definition, "schema")?;
            Ok(Some(answer(&definition, "schema", ConstraintForm::JsonSchema { schema, name: Some(name) })))
        }
        "structural_tag" => {
            let tag = body.require("response_format")?.clone();
            Ok(Some(answer(body, "response_format", ConstraintForm::StructuralTag(tag))))
        }
        _ => Err(format.wrong("type", "one of text, json_object, json_schema, structural_tag")),
    }
}

/// `output_config.format` of `/v1/messages`, and `output_format`, as it was called before.
pub(crate) fn read_output_format(body: &Fields) -> Result<Option<Constraint>, ApiError> {
    let mut found = None;
    if let Some(config) = body.object("output_config")?
        && let Some(format) = config.object("format")?
    {
        add(&mut found, read_format(&format)?)?;
    }
    if let Some(format) = body.object("output_format")? {
        add(&mut found, read_format(&format)?)?;
    }
    Ok(found)
}

fn read_format(format: &Fields) -> Result<Option<Constraint>, ApiError> {
    match format.required_string("type")? {
        "text" => Ok(None),
        "json_schema" => {
            let form = ConstraintForm::JsonSchema { schema: schema_of(format, "schema")?, name: None };
            Ok(Some(answer(format, "schema", form)))
        }
        _ => Err(format.wrong("type", "\"json_schema\"")),
    }
}

/// The one constraint of two places that may ask for one.
pub(crate) fn only_one(first: Option<Constraint>, second: Option<Constraint>) -> Result<Option<Constraint>, ApiError> {
    match (first, second) {
        (Some(first), Some(second)) => Err(ApiError::field(&second.field, format!("cannot be combined with {}", first.field))),
        (first, second) => Ok(first.or(second)),
    }
}

/// Takes the next constraint, if it is the only one.
fn add(found: &mut Option<Constraint>, next: Option<Constraint>) -> Result<(), ApiError> {
    *found = only_one(found.take(), next)?;
    Ok(())
}

/// One of vLLM's forms, which stands under `name`.
fn read_form(owner: &Fields, name: &str, form: &str) -> Result<Option<Constraint>, ApiError> {
    let Some(value) = owner.get(name) else { return Ok(None) };
    let form = match form {
        "json" => ConstraintForm::JsonSchema { schema: schema_of(owner, name)?, name: None },
        "regex" => ConstraintForm::Regex(owner.required_string(name)?.to_owned()),
        "choice" => match owner.strings(name, MAX_CHOICES)? {
            Some(choices) if !choices.is_empty() => ConstraintForm::Choice(choices),
            _ => return Err(owner.wrong(name, "a non-empty array of strings")),
        },
        "grammar" => ConstraintForm::Grammar(owner.required_string(name)?.to_owned()),
        "json_object" => match owner.boolean(name)? {
            Some(true) => ConstraintForm::JsonObject,
            _ => return Ok(None),
        },
        _ => ConstraintForm::StructuralTag(parsed(owner, name, value, "an object, or a string of JSON that holds one")?),
    };
    Ok(Some(Constraint { form, raw: true, compact_json: false, field: owner.path(name) }))
}

fn answer(owner: &Fields, name: &str, form: ConstraintForm) -> Constraint {
    Constraint { form, raw: false, compact_json: false, field: owner.path(name) }
}

/// A JSON schema: an object, a boolean, or a string of JSON.
fn schema_of(owner: &Fields, name: &str) -> Result<Json, ApiError> {
    let expected = "a JSON schema (an object)";
    let value = owner.require(name)?;
    if value.is_boolean() { Ok(value.clone()) } else { parsed(owner, name, value, expected) }
}

fn parsed(owner: &Fields, name: &str, value: &Value, expected: &str) -> Result<Json, ApiError> {
    let parsed = match value {
        Value::String(text) => {
            serde_json::from_str(text).map_err(|error| owner.error(name, format!("is a string, but no JSON: {error}")))?
        }
        other => other.clone(),
    };
    if parsed.is_object() { Ok(parsed) } else { Err(owner.wrong(name, expected)) }
}
