//! vLLM's structural tags (xgrammar's `structural_tag`, both its forms) as a `Format`.

use serde_json::{Map, Value};

use super::source::{Format, GrammarError, Tagged, invalid};

/// Reads `{"structures": [...], "triggers": [...]}` or `{"format": {...}}`.
///
/// # Errors
/// The part that is missing or not known, by its path.
pub fn format_of_structural_tag(tag: &Value) -> Result<Format, GrammarError> {
    let map = object(tag, "structural_tag")?;
    match map.get("format") {
        Some(format) => read(format, "format"),
        None => older(map),
    }
}

/// The older form: free text with triggered tags.
fn older(map: &Map<String, Value>) -> Result<Format, GrammarError> {
    let mut tags = Vec::new();
    for (i, entry) in list(map, "structures", "structural_tag")?.iter().enumerate() {
        let path = format!("structures[{i}]");
        let entry = object(entry, &path)?;
        let schema = entry.get("schema").cloned().unwrap_or_else(|| Value::Object(Map::new()));
        let (begin, end) = (text(entry, "begin", &path)?, text(entry, "end", &path)?);
        tags.push(Tagged { begin, content: Format::JsonSchema(schema), end });
    }
    let triggers = texts(map, "triggers", "structural_tag")?;
    Ok(Format::Triggered { triggers, tags, at_least_one: false, stop_after_first: false })
}

fn read(format: &Value, path: &str) -> Result<Format, GrammarError> {
    let map = object(format, path)?;
    let formats = |name| {
        let items = list(map, name, path)?.iter().enumerate();
        items.map(|(i, item)| read(item, &format!("{path}.{name}[{i}]"))).collect::<Result<Vec<_>, _>>()
    };
    let flag = |name| map.get(name).and_then(Value::as_bool).unwrap_or(false);
    Ok(match text(map, "type", path)?.as_str() {
        "const_string" => Format::Text(text(map, "value", path)?),
        "json_schema" => {
            let schema = map.get("json_schema").ok_or_else(|| invalid(format!("{path}.json_schema: field required")))?;
            Format::JsonSchema(schema.clone())
        }
        "any_text" => Format::AnyText,
        "regex" => Format::Regex(text(map, "pattern", path)?),
        "grammar" => Format::Grammar(text(map, "grammar", path)?),
        "sequence" => Format::Sequence(formats("elements")?),
        "or" => Format::AnyOf(formats("elements")?),
        "tag" => tag(map, path)?.into(),
        "triggered_tags" => Format::Triggered {
            triggers: texts(map, "triggers", path)?,
            tags: tags(map, path)?,
            at_least_one: flag("at_least_one"),
            stop_after_first: flag("stop_after_first"),
        },
        "tags_with_separator" => Format::Repeat {
            item: Box::new(Format::AnyOf(tags(map, path)?.into_iter().map(Format::from).collect())),
            separator: map.get("separator").and_then(Value::as_str).unwrap_or_default().to_string(),
            min: usize::from(flag("at_least_one")),
            max: flag("stop_after_first").then_some(1),
        },
        other => return Err(invalid(format!("{path}.type: structural tags of type {other:?} are not supported"))),
    })
}

fn tags(map: &Map<String, Value>, path: &str) -> Result<Vec<Tagged>, GrammarError> {
    let items = list(map, "tags", path)?.iter().enumerate();
    items.map(|(i, item)| tag(object(item, &format!("{path}.tags[{i}]"))?, &format!("{path}.tags[{i}]"))).collect()
}

fn tag(map: &Map<String, Value>, path: &str) -> Result<Tagged, GrammarError> {
    let content = map.get("content").ok_or_else(|| invalid(format!("{path}.content: field required")))?;
    let content = read(content, &format!("{path}.content"))?;
    Ok(Tagged { begin: text(map, "begin", path)?, content, end: text(map, "end", path)? })
}

fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, GrammarError> {
    value.as_object().ok_or_else(|| invalid(format!("{path}: must be an object")))
}

fn list<'a>(map: &'a Map<String, Value>, name: &str, path: &str) -> Result<&'a [Value], GrammarError> {
    let items = map.get(name).and_then(Value::as_array).filter(|items| !items.is_empty());
    items.map(Vec::as_slice).ok_or_else(|| invalid(format!("{path}.{name}: must be a non-empty array")))
}

fn text(map: &Map<String, Value>, name: &str, path: &str) -> Result<String, GrammarError> {
    map.get(name).and_then(Value::as_str).map(str::to_string).ok_or_else(|| invalid(format!("{path}.{name}: must be a string")))
}

fn texts(map: &Map<String, Value>, name: &str, path: &str) -> Result<Vec<String>, GrammarError> {
    let text = |item: &Value| item.as_str().map(str::to_string);
    let items = list(map, name, path)?.iter().map(text).collect::<Option<Vec<_>>>();
    items.ok_or_else(|| invalid(format!("{path}.{name}: must be an array of strings")))
}
