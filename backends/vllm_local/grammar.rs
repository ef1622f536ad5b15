//! From what a request asks of the form of its answer to a compiled grammar.

use std::sync::Arc;

use pagoda_engine::grammar::{Compiler, Format, Grammar, GrammarError, GrammarSource, Limits, Spacing, Tagged, format_of_structural_tag};
use pagoda_engine::text::Tokenizer;
use serde_json::{Value, json};

use super::RETRY_AFTER_S;
use super::frames::CallFrame;
use crate::{BackendError, ChatPrompt, Constraint, ConstraintForm, GenerationConfig, Json, Prompt, ToolChoice};

/// Calls of one answer at most, where it has to call and may do so several times: as many as there are tools, and no more than this. A
/// model that repeats itself would never end.
const MAX_CALLS: usize = 16;

/// Makes grammars of requests, for one model.
pub(super) struct Grammars {
    compiler: Compiler,
    frame: CallFrame,
}

impl Grammars {
    /// Nothing is made of the tokeniser until the first request asks for a grammar. `marks`: special tokens that are text of calls.
    pub(super) fn new(tokenizer: Tokenizer, vocab_size: usize, eos: &[u32], marks: Arc<[u32]>, frame: CallFrame) -> Grammars {
        let text = move |id: u32| {
            let is_text = !tokenizer.is_special(id) || marks.contains(&id);
            is_text.then(|| tokenizer.token_bytes(id)).filter(|bytes| !bytes.is_empty())
        };
        Grammars { compiler: Compiler::new(Limits::default(), vocab_size, eos, text), frame }
    }

    /// The grammar of a request's answers, if it asks for any; `reasoning_end`: the answer begins inside reasoning, and behind this is what
    /// it asks for. May take as long as `Limits::compile_time`.
    pub(super) fn of_request(
        &self,
        prompt: &Prompt,
        config: &GenerationConfig,
        reasoning_end: Option<&str>,
    ) -> Result<Option<Grammar>, BackendError> {
        let chat = match prompt {
            Prompt::Chat(chat) => Some(chat),
            Prompt::Text { .. } | Prompt::Tokens(_) => None,
        };
        let constraint = config.constraint.as_ref();
        let (format, field) = match (chat.filter(|chat| !chat.tools.is_empty()), constraint) {
            (Some(chat), Some(constraint)) if chat.tool_choice.is_forced() && constraint.raw => {
                return Err(invalid(&constraint.field, "cannot be combined with a tool_choice that forces a call"));
            }
            (Some(chat), _) if chat.tool_choice.is_forced() => (self.forced_calls(chat)?, "tools"),
            (Some(chat), Some(constraint)) if !constraint.raw && chat.tool_choice == ToolChoice::Auto => {
                let answer = format_of(constraint)?;
                (Format::AnyOf(vec![self.forced_calls(chat)?, answer]), constraint.field.as_str())
            }
            (_, Some(constraint)) => (format_of(constraint)?, constraint.field.as_str()),
            (Some(chat), None) if chat.tool_choice == ToolChoice::Auto && chat.tools.iter().any(is_strict) => {
                (self.strict_calls(chat), "tools")
            }
            (_, None) => return Ok(None),
        };
        let format = match reasoning_end {
            Some(end) => after_reasoning(end, format),
            None => format,
        };
        let compact = constraint.is_some_and(|constraint| constraint.compact_json);
        let spacing = if compact { Spacing::Compact } else { Spacing::Bounded };
        match self.compiler.compile(&GrammarSource { format, spacing }) {
            Ok(grammar) => Ok(Some(grammar)),
            Err(error) => Err(grammar_error(field, error)),
        }
    }

    /// Calls and nothing else.
    fn forced_calls(&self, chat: &ChatPrompt) -> Result<Format, BackendError> {
        let wanted = |tool: &&Json| match &chat.tool_choice {
            ToolChoice::Function(name) => name_of(tool) == name,
            _ => true,
        };
        let calls: Vec<Format> = chat.tools.iter().filter(wanted).map(|tool| self.call(tool, schema_of(tool)).into()).collect();
        if calls.is_empty() {
            return Err(invalid("tool_choice", "names a tool that is not offered"));
        }
        let single = chat.single_tool_call || matches!(chat.tool_choice, ToolChoice::Function(_));
        let max_calls = calls.len().min(MAX_CALLS);
        let item = Box::new(Format::AnyOf(calls));
        let (separator, max) = match self.frame.separator.filter(|_| !single) {
            Some(separator) => (separator.to_string(), max_calls),
            None => (String::new(), 1),
        };
        let calls = Format::Repeat { item, separator, min: 1, max: Some(max) };
        Ok(match (self.frame.open, self.frame.close) {
            ("", "") => calls,
            (open, close) => Format::Sequence(vec![Format::Text(open.into()), calls, Format::Text(close.into())]),
        })
    }

    /// Free text whose calls are calls of offered tools, with arguments that fit where a tool is strict.
    fn strict_calls(&self, chat: &ChatPrompt) -> Format {
        let schema = |tool: &Json| if is_strict(tool) { schema_of(tool) } else { json!({"type": "object"}) };
        let whole = |call: Tagged| Tagged {
            begin: format!("{}{}", self.frame.open, call.begin),
            end: format!("{}{}", call.end, self.frame.close),
            ..call
        };
        let tags = chat.tools.iter().map(|tool| whole(self.call(tool, schema(tool)))).collect();
        let stop_after_first = chat.single_tool_call || self.frame.separator.is_none();
        Format::Triggered { triggers: vec![self.frame.trigger.into()], tags, at_least_one: false, stop_after_first }
    }

    fn call(&self, tool: &Json, schema: Json) -> Tagged {
        Tagged { begin: self.frame.head(name_of(tool)), content: Format::JsonSchema(schema), end: self.frame.end.into() }
    }
}

/// Free reasoning up to its end tag, then the answer.
fn after_reasoning(end: &str, answer: Format) -> Format {
    let line_ends = ["\n\n", "\n", ""].map(|text| Format::Text(text.into()));
    Format::Sequence(vec![Format::AnyText, Format::Text(end.into()), Format::AnyOf(line_ends.into()), answer])
}

fn format_of(constraint: &Constraint) -> Result<Format, BackendError> {
    Ok(match &constraint.form {
        ConstraintForm::JsonObject => Format::JsonSchema(json!({"type": "object"})),
        ConstraintForm::JsonSchema { schema, .. } => Format::JsonSchema(schema.clone()),
        ConstraintForm::Regex(regex) => Format::Regex(regex.clone()),
        ConstraintForm::Choice(choices) => Format::Choice(choices.clone()),
        ConstraintForm::Grammar(grammar) => Format::Grammar(grammar.clone()),
        ConstraintForm::StructuralTag(tag) => {
            format_of_structural_tag(tag).map_err(|error| invalid(&constraint.field, &error.to_string()))?
        }
    })
}

fn name_of(tool: &Json) -> &str {
    tool["function"]["name"].as_str().unwrap_or_default()
}

/// The schema of a tool's arguments, which are an object whatever it says.
fn schema_of(tool: &Json) -> Json {
    let mut schema = match &tool["function"]["parameters"] {
        Value::Object(map) => map.clone(),
        _ => serde_json::Map::new(),
    };
    schema.entry("type").or_insert_with(|| "object".into());
    if !schema.contains_key("properties") && schema.len() == 1 {
        schema.insert("properties".into(), json!({}));
    }
    Value::Object(schema)
}

fn is_strict(tool: &Json) -> bool {
    tool["function"]["strict"] == true
}

fn invalid(field: &str, message: &str) -> BackendError {
    BackendError::InvalidRequest { param: Some(field.into()), message: format!("{field}: {message}") }
}

fn grammar_error(field: &str, error: GrammarError) -> BackendError {
    match error {
        GrammarError::Invalid(message) => invalid(field, &message),
        GrammarError::Busy => BackendError::Overloaded { message: error.to_string(), retry_after_s: RETRY_AFTER_S },
    }
}
