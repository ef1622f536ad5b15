//! `ToolDialect`: how a family of models writes its calls of tools. Told by the chat template, or by configuration.
//!
//! The server's parser has a table a dialect (`server/tools/dialects.rs`), forced calls a frame (`vllm_local/frames.rs`).

/// A way of writing calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ToolDialect {
    /// `<tool_call>{"name": .., "arguments": ..}</tool_call>`: Hermes, Qwen2.5, Qwen3, and where nothing else is known.
    #[default]
    Hermes,
    /// `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`.
    Qwen3Coder,
    /// `{"name": .., "parameters": ..}`, bare or behind `<|python_tag|>`.
    Llama3Json,
    /// `[NAME(KEY=VALUE), ..]`.
    Pythonic,
    /// `[TOOL_CALLS]`, then an array of calls, or `NAME[ARGS]{..}`.
    Mistral,
    /// `<｜tool▁calls▁begin｜>..`: V3, R1, V3.1.
    DeepSeek,
    /// `<|channel|>commentary to=functions.NAME ..`: GPT-OSS.
    Harmony,
    /// `{"name": .., "arguments": ..}` without marks.
    Json,
}

impl ToolDialect {
    /// All of them.
    pub const ALL: [ToolDialect; 8] = [
        ToolDialect::Hermes,
        ToolDialect::Qwen3Coder,
        ToolDialect::Llama3Json,
        ToolDialect::Pythonic,
        ToolDialect::Mistral,
        ToolDialect::DeepSeek,
        ToolDialect::Harmony,
        ToolDialect::Json,
    ];
    /// Their names, as configuration lists them.
    pub const NAMES: &str = "hermes, qwen3_coder, llama3_json, pythonic, mistral, deepseek, harmony, json";

    /// Name in configuration and in `/v1/models/{id}`.
    pub fn as_str(self) -> &'static str {
        match self {
            ToolDialect::Hermes => "hermes",
            ToolDialect::Qwen3Coder => "qwen3_coder",
            ToolDialect::Llama3Json => "llama3_json",
            ToolDialect::Pythonic => "pythonic",
            ToolDialect::Mistral => "mistral",
            ToolDialect::DeepSeek => "deepseek",
            ToolDialect::Harmony => "harmony",
            ToolDialect::Json => "json",
        }
    }

    /// The dialect of a name.
    pub fn parse(name: &str) -> Option<ToolDialect> {
        ToolDialect::ALL.into_iter().find(|dialect| dialect.as_str() == name)
    }

    /// The dialect that a chat template teaches: of the first row all of whose texts it has; Hermes where no row fits.
    pub fn of_template(source: &str) -> ToolDialect {
        let fits = |row: &&(&[&str], ToolDialect)| row.0.iter().all(|text| source.contains(text));
        TEMPLATES.iter().find(fits).map_or(ToolDialect::Hermes, |row| row.1)
    }

    /// Texts of its frames that a tokeniser may hold as special tokens: they must reach the parser.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            ToolDialect::Hermes | ToolDialect::Json | ToolDialect::Qwen3Coder => &["<tool_call>", "</tool_call>"],
            ToolDialect::Llama3Json => &["<|python_tag|>"],
            ToolDialect::Pythonic => &["<|python_tag|>", "<|python_start|>", "<|python_end|>", "<|tool_call_start|>", "<|tool_call_end|>"],
            ToolDialect::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            ToolDialect::DeepSeek => {
                &["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"]
            }
            ToolDialect::Harmony => &["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"],
        }
    }
}

/// What templates have, and the dialect they teach.
const TEMPLATES: &[(&[&str], ToolDialect)] = &[
    (&["<|channel|>", "<|message|>", "commentary"], ToolDialect::Harmony),
    (&["<｜tool▁call▁begin｜>"], ToolDialect::DeepSeek),
    (&["<function=", "<parameter="], ToolDialect::Qwen3Coder),
    (&["<tool_call>"], ToolDialect::Hermes),
    (&["[TOOL_CALLS]"], ToolDialect::Mistral),
    (&["[func_name1(params_name1="], ToolDialect::Pythonic),
    (&["<|tool_call_start|>"], ToolDialect::Pythonic),
    (&["\"parameters\": dictionary of argument name"], ToolDialect::Llama3Json),
    (&["<|python_tag|>"], ToolDialect::Llama3Json),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_listed() {
        for dialect in ToolDialect::ALL {
            assert_eq!(ToolDialect::parse(dialect.as_str()), Some(dialect));
        }
        assert_eq!(ToolDialect::NAMES.split(", ").collect::<Vec<_>>(), ToolDialect::ALL.map(ToolDialect::as_str));
        assert_eq!(ToolDialect::parse("Hermes"), None);
    }

    #[test]
    fn templates_tell_their_dialect() {
        let cases = [
            ("{{ '<tool_call>\\n' + call | tojson }}", "hermes"),
            ("<tool_call>\\n<function={{ name }}>\\n<parameter={{ key }}>", "qwen3_coder"),
            ("Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}", "llama3_json"),
            ("{{- '<|python_tag|>' + call.name }}", "llama3_json"),
            ("in the format [func_name1(params_name1=params_value1, ...), func_name2(params)]", "pythonic"),
            ("{{- '[TOOL_CALLS] [' }}", "mistral"),
            ("{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>'}}", "deepseek"),
            ("<|start|>assistant<|channel|>commentary to=functions.{{ name }} <|message|>", "harmony"),
            ("{{ message.content }}", "hermes"),
        ];
        for (source, name) in cases {
            assert_eq!(ToolDialect::of_template(source).as_str(), name, "{source}");
        }
    }
}
