//! The dialects of tool calls, one table each: the marks a family of models writes around its calls, and what stands between them.
//!
//! A row says what opens at a mark; the readers (`named`, `xml`, `python`, and the parser's own values in tags) know the rest.

use pagoda_backends::ToolDialect;

use super::call::Trust;
use super::named::NamedForm;
use super::scan::note;

/// What a start mark opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opens {
    /// JSON values up to an end mark.
    Values(Trust),
    /// `<function=NAME>` with its parameters.
    Function,
    /// A name, then its arguments as JSON.
    Named(NamedForm),
    /// A list of Python calls, or JSON values.
    Python,
}

/// One dialect.
pub(super) struct Dialect {
    /// Marks at which a call may begin.
    pub(super) starts: &'static [(&'static str, Opens)],
    /// Marks that end a call; dropped right behind one.
    pub(super) ends: &'static [&'static str],
    /// First characters of all marks.
    firsts: &'static [char],
    /// Calls may stand at the start of a line and in fences without any mark, where they are strict JSON and fit.
    pub(super) bare: bool,
    /// The same of a list of Python calls.
    pub(super) bare_python: bool,
    /// A semicolon may stand between two calls.
    pub(super) semicolons: bool,
}

const NOTHING: Dialect = Dialect { starts: &[], ends: &[], firsts: &['<'], bare: true, bare_python: false, semicolons: false };

/// Hermes, Qwen2.5, Qwen3; also what stands in for a dialect that is not known.
const HERMES: Dialect = Dialect {
    starts: &[("<tool_call>", Opens::Values(Trust::Tag)), ("<tools>", Opens::Values(Trust::ToolsTag))],
    ends: &["</tool_call>", "</tools>"],
    ..NOTHING
};

/// Qwen3-Coder: parameters as XML elements, and Hermes' JSON beside it.
const QWEN3_CODER: Dialect = Dialect {
    starts: &[("<tool_call>", Opens::Values(Trust::Tag)), ("<tools>", Opens::Values(Trust::ToolsTag)), ("<function=", Opens::Function)],
    ..HERMES
};

/// Llama 3.1 and later: a bare object, or one behind `<|python_tag|>`; several are parted by semicolons.
const LLAMA3_JSON: Dialect = Dialect {
    starts: &[("<tool_call>", Opens::Values(Trust::Tag)), ("<tools>", Opens::Values(Trust::ToolsTag)), ("<|python_tag|>", Opens::Python)],
    semicolons: true,
    ..HERMES
};

/// Llama 3.2, Llama 4, LFM2 and others: a list of Python calls.
const PYTHONIC: Dialect = Dialect {
    starts: &[("<|python_tag|>", Opens::Python), ("<|python_start|>", Opens::Python), ("<|tool_call_start|>", Opens::Python)],
    ends: &["<|python_end|>", "<|tool_call_end|>"],
    bare_python: true,
    semicolons: true,
    ..NOTHING
};

/// Mistral: an array of calls behind the mark, or since the eleventh tokeniser the name and `[ARGS]`.
const MISTRAL: Dialect = Dialect { starts: &[("[TOOL_CALLS]", Opens::Named(NamedForm::Mistral))], firsts: &['['], bare: false, ..NOTHING };

/// DeepSeek V3, R1 and V3.1; bars and blanks of the marks are full-width ones.
const DEEPSEEK: Dialect = Dialect {
    starts: &[("<｜tool▁calls▁begin｜>", Opens::Named(NamedForm::DeepSeek)), ("<｜tool▁call▁begin｜>", Opens::Named(NamedForm::DeepSeek))],
    ends: &["<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
    bare: false,
    ..NOTHING
};

/// GPT-OSS: a message to `functions.NAME`; its recipient stands before or behind its channel.
const HARMONY: Dialect = Dialect {
    starts: &[
        ("<|start|>", Opens::Named(NamedForm::Harmony)),
        ("<|channel|>", Opens::Named(NamedForm::Harmony)),
        ("to=functions.", Opens::Named(NamedForm::Harmony)),
    ],
    ends: &["<|call|>", "<|end|>"],
    firsts: &['<', 't'],
    bare: false,
    ..NOTHING
};

/// A mark, or what may become one.
#[derive(Clone, Copy)]
pub(super) enum Found {
    Start(usize, Opens),
    End(usize),
    Part,
    Nothing,
}

impl Dialect {
    /// The table of a dialect.
    pub(super) fn of(dialect: ToolDialect) -> &'static Dialect {
        match dialect {
            ToolDialect::Hermes | ToolDialect::Json => &HERMES,
            ToolDialect::Qwen3Coder => &QWEN3_CODER,
            ToolDialect::Llama3Json => &LLAMA3_JSON,
            ToolDialect::Pythonic => &PYTHONIC,
            ToolDialect::Mistral => &MISTRAL,
            ToolDialect::DeepSeek => &DEEPSEEK,
            ToolDialect::Harmony => &HARMONY,
        }
    }

    /// Whether a mark may begin with this character.
    pub(super) fn may_begin(&self, c: char) -> bool {
        self.firsts.contains(&c)
    }

    /// The mark at the beginning of `rest`.
    pub(super) fn mark_at(&self, rest: &str) -> Found {
        note(self.starts.len() + self.ends.len());
        if let Some(&(mark, opens)) = self.starts.iter().find(|(mark, _)| rest.starts_with(mark)) {
            return Found::Start(mark.len(), opens);
        }
        if let Some(mark) = self.ends.iter().find(|mark| rest.starts_with(**mark)) {
            return Found::End(mark.len());
        }
        let partial = self.starts.iter().map(|(mark, _)| mark).chain(self.ends).any(|mark| mark.starts_with(rest));
        if partial { Found::Part } else { Found::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_characters_are_those_of_the_marks() {
        for dialect in ToolDialect::ALL {
            let table = Dialect::of(dialect);
            let marks = table.starts.iter().map(|(mark, _)| *mark).chain(table.ends.iter().copied());
            assert!(marks.into_iter().all(|mark| mark.starts_with(table.firsts)), "{dialect:?}");
        }
    }
}
