//! The tools a request offers, as far as parsing needs them: names, and which arguments fit.

use serde_json::{Map, Value};

/// A tool that the model may call.
#[derive(Clone, Debug)]
pub struct OfferedTool {
    /// Its name.
    pub name: String,
    /// JSON Schema of its arguments.
    pub schema: Value,
}

/// All tools of a request.
#[derive(Clone, Debug, Default)]
pub struct OfferedTools {
    tools: Vec<OfferedTool>,
}

impl OfferedTools {
    /// Takes the tools of a request.
    pub fn new(tools: Vec<OfferedTool>) -> OfferedTools {
        OfferedTools { tools }
    }

    /// Takes tools in OpenAI's function shape: `{"function": {"name", "parameters"}}`.
    pub(crate) fn of_functions(functions: &[Value]) -> OfferedTools {
        let tool = |value: &Value| {
            let function = &value["function"];
            OfferedTool { name: function["name"].as_str().unwrap_or_default().to_owned(), schema: function["parameters"].clone() }
        };
        OfferedTools::new(functions.iter().map(tool).collect())
    }

    /// Whether there is none, so that nothing can be a call.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// The tool a model means: the exact name, or the only one that differs in case or outer white space.
    pub fn find(&self, name: &str) -> Option<&OfferedTool> {
        if let Some(exact) = self.tools.iter().find(|tool| tool.name == name) {
            return Some(exact);
        }
        let wanted = name.trim().to_lowercase();
        let mut similar = self.tools.iter().filter(|tool| tool.name.trim().to_lowercase() == wanted);
        let found = similar.next()?;
        similar.next().is_none().then_some(found)
    }
}

impl OfferedTool {
    /// The schema of one of its parameters.
    pub(super) fn parameter(&self, name: &str) -> Option<&Value> {
        self.schema.get("properties")?.get(name)
    }

    /// Whether the required keys are there and no key is unknown. A schema without `properties` takes any key.
    pub fn accepts(&self, arguments: &Map<String, Value>) -> bool {
        let required = self.schema.get("required").and_then(Value::as_array);
        let has_required = required.is_none_or(|keys| keys.iter().filter_map(Value::as_str).all(|key| arguments.contains_key(key)));
        let open = self.schema.get("additionalProperties").is_some_and(|more| more.as_bool() == Some(true) || more.is_object());
        let known = self.schema.get("properties").and_then(Value::as_object);
        let all_known = open || known.is_none_or(|known| arguments.keys().all(|key| known.contains_key(key)));
        has_required && all_known
    }
}
