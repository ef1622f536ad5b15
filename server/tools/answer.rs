//! What a request says about tools, and the parser of its answers.

use pagoda_backends::{ChatPrompt, ToolChoice, ToolDialect};

use super::parser::joined;
use super::{OfferedTools, Piece, TextEnd, ToolParser};

/// How the answers of a request may call tools.
#[derive(Clone, Debug, Default)]
pub struct ToolUse {
    /// Tools that may be called; none when the request forbids calls.
    pub offered: OfferedTools,
    /// At most one call an answer.
    pub single: bool,
    /// How the model writes calls.
    pub dialect: ToolDialect,
}

impl ToolUse {
    /// What the answers to a prompt may call. A forced choice of one tool is one call.
    pub(crate) fn of_prompt(prompt: &ChatPrompt) -> ToolUse {
        let single = prompt.single_tool_call || matches!(prompt.tool_choice, ToolChoice::Function(_));
        match prompt.tool_choice {
            ToolChoice::None => ToolUse::default(),
            _ => ToolUse { offered: OfferedTools::of_functions(&prompt.tools), single, dialect: ToolDialect::default() },
        }
    }
}

/// Parses the text of one answer.
pub struct AnswerParser {
    /// None when nothing can be a call: text passes as it comes.
    parser: Option<ToolParser>,
    single: bool,
    num_calls: usize,
}

impl AnswerParser {
    /// A parser for one answer of a request.
    pub fn new(tools: &ToolUse) -> AnswerParser {
        let parser = (!tools.offered.is_empty()).then(|| ToolParser::new(tools.offered.clone(), tools.dialect));
        AnswerParser { parser, single: tools.single, num_calls: 0 }
    }

    /// A whole answer: its pieces, neighbouring texts as one, and whether it calls.
    pub(crate) fn parse(tools: &ToolUse, text: &str, end: TextEnd) -> (Vec<Piece>, bool) {
        let mut parser = AnswerParser::new(tools);
        let mut pieces = parser.feed(text);
        pieces.extend(parser.finish(end));
        (joined(pieces), parser.called())
    }

    /// Takes the next text; gives what is decided.
    pub fn feed(&mut self, text: &str) -> Vec<Piece> {
        match &mut self.parser {
            Some(parser) => {
                let pieces = parser.feed(text);
                self.counted(pieces)
            }
            None if text.is_empty() => Vec::new(),
            None => vec![Piece::Text(text.to_owned())],
        }
    }

    /// The text is over.
    pub fn finish(&mut self, end: TextEnd) -> Vec<Piece> {
        let pieces = self.parser.as_mut().map(|parser| parser.finish(end)).unwrap_or_default();
        self.counted(pieces)
    }

    /// Whether a call came.
    pub fn called(&self) -> bool {
        self.num_calls > 0
    }

    /// Leaves out what follows the only call that is allowed.
    fn counted(&mut self, mut pieces: Vec<Piece>) -> Vec<Piece> {
        pieces.retain(|piece| {
            let done = self.single && self.num_calls > 0;
            self.num_calls += usize::from(!done && matches!(piece, Piece::Call(_)));
            !done
        });
        pieces
    }
}
