//! `ReasoningSplitter`: a model's reasoning and its answer, told apart by the tags or channels that its chat template uses.
//!
//! In tags, reasoning stands at the beginning of an answer, or the prompt has opened it already. A tag anywhere else is text: answers about
//! tags stay whole. Line ends next to the tags belong to them, as in the templates that render reasoning back.

use crate::channels::ChannelSplitter;

/// Tags around a model's reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningTags {
    /// Opens it.
    pub start: &'static str,
    /// Closes it.
    pub end: &'static str,
}

/// Tags by family; the first pair that a template has counts.
static FAMILIES: [ReasoningTags; 4] = [
    // Qwen3, QwQ, DeepSeek-R1 and later, GLM-4.5, SmolLM3, Hunyuan, MiniMax, Nemotron.
    ReasoningTags { start: "<think>", end: "</think>" },
    // Seed-OSS.
    ReasoningTags { start: "<seed:think>", end: "</seed:think>" },
    // Magistral.
    ReasoningTags { start: "[THINK]", end: "[/THINK]" },
    // Kimi-VL-Thinking.
    ReasoningTags { start: "◁think▷", end: "◁/think▷" },
];

/// How a model marks its reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningStyle {
    /// One of these tags around it.
    Tags(&'static [ReasoningTags]),
    /// GPT-OSS: every message has a channel.
    Channels,
}

impl ReasoningStyle {
    /// Any family's tags, where the template is not known.
    pub const ANY_TAGS: ReasoningStyle = ReasoningStyle::Tags(&FAMILIES);

    /// The style of a chat template; None: its model does not reason.
    pub fn of_template(source: &str) -> Option<ReasoningStyle> {
        if source.contains("<|channel|>") && source.contains("<|message|>") {
            return Some(ReasoningStyle::Channels);
        }
        let idx = FAMILIES.iter().position(|tags| source.contains(tags.start) && source.contains(tags.end))?;
        Some(ReasoningStyle::Tags(&FAMILIES[idx..=idx]))
    }

    /// Texts that tell reasoning from the answer; a tokeniser may hold them as special tokens.
    pub fn marks(self) -> Vec<&'static str> {
        match self {
            ReasoningStyle::Tags(families) => families.iter().flat_map(|tags| [tags.start, tags.end]).collect(),
            ReasoningStyle::Channels => crate::ToolDialect::Harmony.marks().to_vec(),
        }
    }
}

/// A piece of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Of the model's reasoning.
    Reasoning(String),
    /// Of its answer.
    Text(String),
}

/// Splits the text of one output.
#[derive(Clone, Debug)]
pub enum ReasoningSplitter {
    /// By tags.
    Tags(TagSplitter),
    /// By channels.
    Channels(ChannelSplitter),
}

impl ReasoningSplitter {
    /// For an answer that follows a rendered prompt. `prefill`: beginning of the answer that stands in the prompt already.
    pub fn after(style: ReasoningStyle, prompt: &str, prefill: Option<&str>) -> ReasoningSplitter {
        match style {
            ReasoningStyle::Tags(families) => ReasoningSplitter::Tags(TagSplitter::after(families, prompt, prefill)),
            ReasoningStyle::Channels => ReasoningSplitter::Channels(ChannelSplitter::after(prompt, prefill)),
        }
    }

    /// Whether what comes next is reasoning, as far as is known.
    pub fn is_reasoning(&self) -> bool {
        match self {
            ReasoningSplitter::Tags(splitter) => splitter.is_reasoning(),
            ReasoningSplitter::Channels(splitter) => splitter.is_reasoning(),
        }
    }

    /// What ends the reasoning that the prompt opened; None: it opened none.
    pub fn open_end(&self) -> Option<&'static str> {
        match self {
            ReasoningSplitter::Tags(splitter) => splitter.is_reasoning().then_some(splitter.tags.end),
            ReasoningSplitter::Channels(_) => None,
        }
    }

    /// Takes the next piece; gives what is decided.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        match self {
            ReasoningSplitter::Tags(splitter) => splitter.push(text).into(),
            ReasoningSplitter::Channels(splitter) => splitter.push(text),
        }
    }

    /// The output is over; gives what was held.
    pub fn finish(&mut self) -> Vec<Part> {
        match self {
            ReasoningSplitter::Tags(splitter) => splitter.finish().into(),
            ReasoningSplitter::Channels(splitter) => splitter.finish(),
        }
    }
}

/// What a piece of text came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Split {
    reasoning: String,
    /// Comes after the reasoning.
    text: String,
}

impl From<Split> for Vec<Part> {
    fn from(split: Split) -> Vec<Part> {
        let mut parts = Vec::new();
        if !split.reasoning.is_empty() {
            parts.push(Part::Reasoning(split.reasoning));
        }
        if !split.text.is_empty() {
            parts.push(Part::Text(split.text));
        }
        parts
    }
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

/// Splits by tags.
#[derive(Clone, Debug)]
pub struct TagSplitter {
    /// Tags that may open the reasoning.
    families: &'static [ReasoningTags],
    /// Those that count, the first ones until any stand there.
    tags: ReasoningTags,
    position: Position,
    /// Not decided yet.
    held: String,
}

impl TagSplitter {
    fn after(families: &'static [ReasoningTags], prompt: &str, prefill: Option<&str>) -> TagSplitter {
        let tags = families[0];
        let opened = |text: &str| text.rfind(tags.start).is_some_and(|start| text.rfind(tags.end).is_none_or(|end| end < start));
        let position = match prefill {
            _ if prompt.trim_end().ends_with(tags.start) => Position::Opened,
            Some(text) if opened(text) => Position::Reasoning,
            Some(_) => Position::Answer,
            None if prompt.trim_end().ends_with(tags.end) => Position::Closed,
            None => Position::Start,
        };
        TagSplitter { families, tags, position, held: String::new() }
    }

    fn is_reasoning(&self) -> bool {
        matches!(self.position, Position::Opened | Position::Reasoning)
    }

    fn push(&mut self, text: &str) -> Split {
        let mut split = Split::default();
        if self.position == Position::Answer {
            split.text.push_str(text);
            return split;
        }
        self.held.push_str(text);
        while self.advance(&mut split) {}
        split
    }

    fn finish(&mut self) -> Split {
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
        if let Some(tags) = self.families.iter().find(|tags| text.starts_with(tags.start)) {
            self.held = text[tags.start.len()..].to_owned();
            self.tags = *tags;
            self.position = Position::Opened;
            return true;
        }
        if self.families.iter().any(|tags| tags.start.starts_with(text)) {
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

    /// The whole text in pieces of every size gives the same, also where any family's tags may come.
    fn check(prompt: &str, prefill: Option<&str>, text: &str, reasoning: &str, answer: &str) {
        check_style(ReasoningStyle::Tags(&FAMILIES[..1]), prompt, prefill, text, reasoning, answer);
        check_style(ReasoningStyle::ANY_TAGS, prompt, prefill, text, reasoning, answer);
    }

    fn check_style(style: ReasoningStyle, prompt: &str, prefill: Option<&str>, text: &str, reasoning: &str, answer: &str) {
        let chars: Vec<char> = text.chars().collect();
        for len in 1..=chars.len().max(1) {
            let mut splitter = ReasoningSplitter::after(style, prompt, prefill);
            let mut whole = Split::default();
            let pieces = chars.chunks(len).map(|piece| piece.iter().collect::<String>());
            let mut parts: Vec<Part> = pieces.flat_map(|piece| splitter.push(&piece)).collect();
            parts.extend(splitter.finish());
            for part in parts {
                match part {
                    Part::Reasoning(text) => {
                        assert!(whole.text.is_empty(), "reasoning after the answer began: {text:?}");
                        whole.reasoning.push_str(&text);
                    }
                    Part::Text(text) => whole.text.push_str(&text),
                }
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
    fn other_families() {
        check_style(ReasoningStyle::ANY_TAGS, "", None, "[THINK]a</think>[/THINK]b", "a</think>", "b");
        check_style(ReasoningStyle::ANY_TAGS, "", None, "<seed:think>a</seed:think>b", "a", "b");
        check_style(ReasoningStyle::ANY_TAGS, "", None, "<seed:thin", "", "<seed:thin");
    }

    #[test]
    fn tags_of_templates() {
        let of = |source| match ReasoningStyle::of_template(source) {
            Some(ReasoningStyle::Tags(families)) => Some(families[0].start),
            Some(ReasoningStyle::Channels) => Some("channels"),
            None => None,
        };
        assert_eq!(of("<|start|>assistant<|channel|>analysis<|message|>"), Some("channels"));
        assert_eq!(of("{{ '<think>' + m.reasoning_content + '</think>' }}"), Some("<think>"));
        assert_eq!(of("{{ '[THINK]' }}{{ '[/THINK]' }}"), Some("[THINK]"));
        assert_eq!(of("{{ m.content }}"), None);
    }
}
