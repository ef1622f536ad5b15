//! Values that are written as bare text: which JSON they are, by the schema of what they are for.

use serde_json::{Number, Value};

use super::call::whole;

/// Parts of a schema that are looked at: references may lead in circles.
const MAX_PARTS: usize = 64;

/// The value that `text` stands for under `schema`, a part of `root`. What fits no type of the schema stays a string.
pub(super) fn typed(text: &str, schema: Option<&Value>, root: &Value) -> Value {
    let mut types = Types::default();
    let mut parts: Vec<&Value> = schema.into_iter().collect();
    for _ in 0..MAX_PARTS {
        let Some(part) = parts.pop() else { break };
        types.add(part, root, &mut parts);
    }
    types.value(text).unwrap_or_else(|| Value::from(text))
}

/// What a schema allows a value to be.
#[derive(Default)]
struct Types<'a> {
    names: Vec<&'a str>,
    values: Vec<&'a Value>,
}

impl<'a> Types<'a> {
    /// What one part of a schema says; the parts that it is made of are still to come.
    fn add(&mut self, schema: &'a Value, root: &'a Value, parts: &mut Vec<&'a Value>) {
        let target = schema["$ref"].as_str().and_then(|path| root.pointer(path.strip_prefix('#')?));
        parts.extend(target);
        match &schema["type"] {
            Value::String(name) => self.names.push(name),
            Value::Array(names) => self.names.extend(names.iter().filter_map(Value::as_str)),
            _ => {}
        }
        self.values.extend(schema["enum"].as_array().into_iter().flatten().chain(schema.get("const")));
        parts.extend(["anyOf", "oneOf", "allOf"].iter().filter_map(|key| schema[key].as_array()).flatten());
    }

    fn allows(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    fn value(&self, text: &str) -> Option<Value> {
        let trimmed = text.trim();
        if let Some(value) = self.values.iter().find(|value| value.as_str() == Some(trimmed)) {
            return Some((*value).clone());
        }
        // Templates write what is no string as Python does.
        let plain = match trimmed {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            _ if trimmed.starts_with(['{', '[']) => whole(trimmed),
            _ => trimmed.parse::<Number>().ok().map(Value::Number),
        };
        let plain = plain?;
        if self.values.contains(&&plain) {
            return Some(plain);
        }
        let untyped = self.names.is_empty() && self.values.is_empty();
        let fits = match &plain {
            Value::Null => self.allows("null"),
            Value::Object(_) => self.allows("object"),
            Value::Array(_) => self.allows("array"),
            // Where a string is allowed too, the text is one.
            Value::Bool(_) => self.allows("boolean") && !self.allows("string"),
            Value::Number(number) => {
                let whole = number.is_i64() || number.is_u64();
                (self.allows("number") || self.allows("integer") && whole) && !self.allows("string")
            }
            Value::String(_) => false,
        };
        (fits || untyped).then_some(plain)
    }
}
