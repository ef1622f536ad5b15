//! `ReasoningSplitter`: a model's reasoning and its answer, told apart by the tags that its chat template uses.
//!
//! Reasoning stands at the beginning of an answer, or the prompt has opened it already. A tag anywhere else is text: answers about tags
//! stay whole. Line ends next to the tags belong to them, as in the templates that render reasoning back.

/// Tags around a model's reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningTags {
    /// Opens it.
    pub start: &'static str,
    /// Closes it.
    pub end: &'static str,
}

/// Tags by family; the first pair that a template has counts.
const FAMILIES: [ReasoningTags; 4] = [
    // Qwen3, QwQ, DeepSeek-R1 and later, GLM-4.5, SmolLM3, Hunyuan, MiniMax, Nemotron.
    ReasoningTags { start: "<think>", end: "</think>" },
    // Seed-OSS.
    ReasoningTags { start: "<seed:think>", end: "</seed:think>" },
    // Magistral.
    ReasoningTags { start: "[THINK]", end: "[/THINK]" },
    // Kimi-VL-Thinking.
    ReasoningTags { start: "◁think▷", end: "◁/think▷" },
];

impl ReasoningTags {
    /// The tags of a chat template; None: its model does not reason.
    pub fn of_template(source: &str) -> Option<ReasoningTags> {
        FAMILIES.into_iter().find(|tags| source.contains(tags.start) && source.contains(tags.end))
    }
}

/// What a piece of text came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Reasoning.
    pub reasoning: String,
    /// Answer; comes after the reasoning.
    pub text: String,
}

/// Where an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Nothing but white space yet.
    Start,
    /// After the start tag, nothing but line ends yet.
    Opened,
    Reasoning,
    /// After the end tag, nothing but line ends yet.
    Closed,
    Answer,
}

/// Splits the text of one output.
#[derive(Clone, Debug)]
pub struct ReasoningSplitter {
    tags: ReasoningTags,
    position: Position,
    /// Not decided yet.
    held: String,
}

impl ReasoningSplitter {
    /// For an answer that follows a rendered prompt. `prefill`: beginning of the answer that stands in the prompt already.
    pub fn after(tags: ReasoningTags, prompt: &str, prefill: Option<&str>) -> ReasoningSplitter {
        let opened = |text: &str| text.rfind(tags.start).is_some_and(|start| text.rfind(tags.end).is_none_or(|end| end < start));
        let position = match prefill {
            _ if prompt.trim_end().ends_with(tags.start) => Position::Opened,
            Some(text) if opened(text) => Position::Reasoning,
            Some(_) => Position::Answer,
            None if prompt.trim_end().ends_with(tags.end) => Position::Closed,
            None => Position::Start,
        };
        ReasoningSplitter { tags, position, held: String::new() }
    }

    /// Whether what comes next is reasoning, as far as is known.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.position, Position::Opened | Position::Reasoning)
    }

    /// Takes the next piece; gives what is decided.
    pub fn push(&mut self, text: &str) -> Split {
        let mut split = Split::default();
        if self.position == Position::Answer {
            split.text.push_str(text);
            return split;
        }
        self.held.push_str(text);
        while self.advance(&mut split) {}
        split
    }

    /// The output is over; gives what was held.
    pub fn finish(&mut self) -> Split {
        let held = std::mem::take(&mut self.held);
        match self.position {
            Position::Opened | Position::Reasoning => Split { reasoning: held.trim_end_matches('\n').into(), text: String::new() },
            Position::Start | Position::Closed | Position::Answer => Split { reasoning: String::new(), text: held },
        }
    }

    /// Decides something; false: more text is needed.
    fn advance(&mut self, split: &mut Split) -> bool {
        match self.position {
            Position::Start => self.look_for_start(),
            Position::Opened | Position::Closed => {
                let len = self.held.len() - self.held.trim_start_matches('\n').len();
                self.held.drain(..len);
                if self.held.is_empty() {
                    return false;
                }
                self.position = if self.position == Position::Opened { Position::Reasoning } else { Position::Answer };
                true
            }
            Position::Reasoning => self.take_reasoning(split),
            Position::Answer => {
                split.text.push_str(&std::mem::take(&mut self.held));
                false
            }
        }
    }

    fn look_for_start(&mut self) -> bool {
        let text = self.held.trim_start();
        if let Some(rest) = text.strip_prefix(self.tags.start) {
            self.held = rest.to_owned();
            self.position = Position::Opened;
            return true;
        }
        if self.tags.start.starts_with(text) {
            return false;
        }
        self.position = Position::Answer;
        true
    }

    /// Reasoning up to the end tag, or up to what may become it.
    fn take_reasoning(&mut self, split: &mut Split) -> bool {
        if let Some(at) = self.held.find(self.tags.end) {
            split.reasoning.push_str(self.held[..at].trim_end_matches('\n'));
            self.held.drain(..at + self.tags.end.len());
            self.position = Position::Closed;
            return true;
        }
        let mut partial = (1..self.tags.end.len()).rev().filter(|len| self.tags.end.is_char_boundary(*len));
        let kept = partial.find(|len| self.held.ends_with(&self.tags.end[..*len])).unwrap_or(0);
        let decided = self.held[..self.held.len() - kept].trim_end_matches('\n').len();
        split.reasoning.extend(self.held.drain(..decided));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THINK: ReasoningTags = FAMILIES[0];

    /// The whole text in pieces of every size gives the same.
    fn check(prompt: &str, prefill: Option<&str>, text: &str, reasoning: &str, answer: &str) {
        let chars: Vec<char> = text.chars().collect();
        for len in 1..=chars.len().max(1) {
            let mut splitter = ReasoningSplitter::after(THINK, prompt, prefill);
            let mut whole = Split::default();
            let pieces = chars.chunks(len).map(|piece| piece.iter().collect::<String>());
            let mut splits: Vec<Split> = pieces.map(|piece| splitter.push(&piece)).collect();
            splits.push(splitter.finish());
            let mut answering = false;
            for split in splits {
                assert!(!answering || split.reasoning.is_empty(), "reasoning after the answer began: {text:?}");
                answering |= !split.text.is_empty();
                whole.reasoning.push_str(&split.reasoning);
                whole.text.push_str(&split.text);
            }
            assert_eq!((whole.reasoning.as_str(), whole.text.as_str()), (reasoning, answer), "{text:?} in pieces of {len}");
        }
    }

    #[test]
    fn splits() {
        check("assistant\n", None, "<think>\nLet me see.\n\nYes.\n</think>\n\nFour.", "Let me see.\n\nYes.", "Four.");
        check("assistant\n", None, "\n <think>a</think>b", "a", "b");
        check("assistant\n", None, "<think>\n\n</think>\n\nb", "", "b");
        check("assistant\n<think>\n", None, "a < b </thin </think>\nb", "a < b </thin ", "b");
        check("assistant\n<think>\n", None, "cut of", "cut of", "");
        check("assistant\n<think>\n", None, "cut </thi", "cut </thi", "");
        check("assistant\n<think>\n\n</think>\n\n", None, "\nFour.", "", "Four.");
        check("assistant\n<think>\n\n</think>\n\n", None, "<think> is a tag.", "", "<think> is a tag.");
        check("assistant\n", None, "The tag <think>a</think> opens.", "", "The tag <think>a</think> opens.");
        check("assistant\n", None, "  plain\n", "", "  plain\n");
        check("assistant\n", None, "<thin", "", "<thin");
        check("assistant\n", None, "", "", "");
        check("assistant\n<think>\nso", Some("<think>\nso"), " far</think>b", " far", "b");
        check("assistant\n<think>\nx\n</think>\n\nThe", Some("<think>\nx\n</think>\n\nThe"), " answer", "", " answer");
        check("user: <think>\nassistant: The", Some("The"), " answer</think>", "", " answer</think>");
    }

    #[test]
    fn tags_of_templates() {
        let of = |source| ReasoningTags::of_template(source).map(|tags| tags.start);
        assert_eq!(of("{{ '<think>' + m.reasoning_content + '</think>' }}"), Some("<think>"));
        assert_eq!(of("{{ '[THINK]' }}{{ '[/THINK]' }}"), Some("[THINK]"));
        assert_eq!(of("{{ m.content }}"), None);
    }
}
