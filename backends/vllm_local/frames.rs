//! `CallFrame`: what stands around the name and the arguments of a forced call, in the model's own dialect.
//!
//! Two dialects borrow a frame that their parser reads as well, since arguments inside it can be held to any schema: Qwen3-Coder
//! Hermes' JSON instead of XML parameters, pythonic models Llama's JSON instead of keyword arguments.

use serde_json::Value;

use crate::ToolDialect;

/// How calls are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallFrame {
    /// Before all calls.
    pub(super) open: &'static str,
    /// Before the name of each.
    begin: &'static str,
    /// The name is a JSON string.
    quoted: bool,
    /// Between name and arguments.
    middle: &'static str,
    /// Behind the arguments.
    pub(super) end: &'static str,
    /// Between two calls; None: one call an answer.
    pub(super) separator: Option<&'static str>,
    /// Behind all calls.
    pub(super) close: &'static str,
    /// How free text goes over into calls.
    pub(super) trigger: &'static str,
}

const HERMES: CallFrame = CallFrame {
    open: "",
    begin: "<tool_call>\n{\"name\": ",
    quoted: true,
    middle: ", \"arguments\": ",
    end: "}\n</tool_call>",
    separator: Some("\n"),
    close: "",
    trigger: "<tool_call>",
};
/// One bare object.
const JSON: CallFrame = CallFrame { begin: "{\"name\": ", end: "}", separator: None, trigger: "{\"name\": ", ..HERMES };
const LLAMA: CallFrame = CallFrame { middle: ", \"parameters\": ", ..JSON };
const MISTRAL_ARRAY: CallFrame = CallFrame { open: "[TOOL_CALLS][", separator: Some(", "), close: "]", trigger: "[TOOL_CALLS]", ..JSON };
/// Since the eleventh tokeniser.
const MISTRAL: CallFrame =
    CallFrame { begin: "[TOOL_CALLS]", quoted: false, middle: "[ARGS]", end: "", separator: Some(""), trigger: "[TOOL_CALLS]", ..HERMES };
const DEEPSEEK_V3: CallFrame = CallFrame {
    open: "<｜tool▁calls▁begin｜>",
    begin: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    quoted: false,
    middle: "\n```json\n",
    end: "\n```<｜tool▁call▁end｜>",
    separator: Some("\n"),
    close: "<｜tool▁calls▁end｜>",
    trigger: "<｜tool▁calls▁begin｜>",
};
const DEEPSEEK_V31: CallFrame =
    CallFrame {
        begin: "<｜tool▁call▁begin｜>", middle: "<｜tool▁sep｜>", end: "<｜tool▁call▁end｜>", separator: Some(""), ..DEEPSEEK_V3
    };
/// The end token closes it.
const HARMONY: CallFrame = CallFrame {
    open: "",
    begin: "<|channel|>commentary to=functions.",
    quoted: false,
    middle: " <|constrain|>json<|message|>",
    end: "",
    separator: None,
    close: "",
    trigger: "<|channel|>commentary to=",
};

impl CallFrame {
    /// The frame of a dialect; where a family has two, the one that its template writes.
    pub(super) fn of(dialect: ToolDialect, template: &str) -> CallFrame {
        match dialect {
            ToolDialect::Hermes | ToolDialect::Qwen3Coder => HERMES,
            ToolDialect::Json => JSON,
            ToolDialect::Llama3Json | ToolDialect::Pythonic => LLAMA,
            ToolDialect::Mistral if template.contains("[ARGS]") => MISTRAL,
            ToolDialect::Mistral => MISTRAL_ARRAY,
            ToolDialect::DeepSeek if template.contains("```json") => DEEPSEEK_V3,
            ToolDialect::DeepSeek => DEEPSEEK_V31,
            ToolDialect::Harmony => HARMONY,
        }
    }

    /// All that stands before the arguments of a call.
    pub(super) fn head(&self, name: &str) -> String {
        let name = if self.quoted { Value::from(name).to_string() } else { name.to_owned() };
        format!("{}{name}{}", self.begin, self.middle)
    }
}
