//! `ChannelSplitter`: GPT-OSS' messages (the harmony format), told apart by their channels.
//!
//! ```text
//! <|channel|>analysis<|message|>REASONING<|end|><|start|>assistant<|channel|>final<|message|>ANSWER<|return|>
//! <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{..}<|call|>
//! ```
//! Analysis is reasoning; final, and commentary to the user, are the answer. A message to somebody else (a call) stays in the answer as it is
//! written: the server's parser reads it.

use crate::Part;

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
/// What ends a message; the last two begin the next one.
const ENDS: [&str; 5] = ["<|end|>", "<|return|>", "<|call|>", START, CHANNEL];
/// How a header may begin.
const HEADERS: [&str; 4] = [START, CHANNEL, "to=", "assistant"];
/// Longest header, bytes.
const MAX_HEADER: usize = 512;

/// Splits by channels.
#[derive(Clone, Debug)]
pub struct ChannelSplitter {
    held: String,
    position: Position,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// At the header of a message.
    Header,
    /// In a message of this kind.
    Body(Kind),
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Answer,
    /// To a tool.
    Call,
}

impl Kind {
    /// By what stands before `<|message|>`.
    fn of_header(header: &str) -> Kind {
        let channel = header.split_once(CHANNEL).map_or("", |(_, rest)| rest).trim_start();
        if header.contains("to=") {
            Kind::Call
        } else if channel.starts_with("analysis") {
            Kind::Reasoning
        } else {
            Kind::Answer
        }
    }
}

impl ChannelSplitter {
    pub(crate) fn after(prompt: &str, prefill: Option<&str>) -> ChannelSplitter {
        let position = match prompt.trim_end().strip_suffix(MESSAGE) {
            _ if prefill.is_some() => Position::Body(Kind::Answer),
            Some(before) => Position::Body(Kind::of_header(&before[before.rfind(START).unwrap_or(0)..])),
            None => Position::Header,
        };
        ChannelSplitter { held: String::new(), position }
    }

    pub(crate) fn is_reasoning(&self) -> bool {
        self.position == Position::Body(Kind::Reasoning)
    }

    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let held = std::mem::take(&mut self.held);
        push(&mut parts, if self.is_reasoning() { Kind::Reasoning } else { Kind::Answer }, &held);
        parts
    }

    /// Decides something; false: more text is needed.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.position {
            Position::Header => self.take_header(parts),
            Position::Body(kind) => self.take_body(kind, parts),
        }
    }

    fn take_header(&mut self, parts: &mut Vec<Part>) -> bool {
        let text = self.held.trim_start();
        if text.is_empty() || text.len() < START.len() && HEADERS.iter().any(|mark| mark.starts_with(text)) {
            return false;
        }
        let message = self.held.find(MESSAGE).filter(|&at| at <= MAX_HEADER);
        let Some(at) = message.filter(|_| HEADERS.iter().any(|mark| text.starts_with(mark))) else {
            let may_come = self.held.len() <= MAX_HEADER + MESSAGE.len()
                && HEADERS.iter().any(|mark| text.starts_with(mark) || mark.starts_with(text));
            if !may_come {
                self.position = Position::Body(Kind::Answer);
                // A mark that begins no message is text.
                let mark = HEADERS.iter().find(|mark| text.starts_with(**mark)).map_or(0, |mark| self.held.len() - text.len() + mark.len());
                push(parts, Kind::Answer, &self.held[..mark]);
                self.held.drain(..mark);
            }
            return !may_come;
        };
        let kind = Kind::of_header(&self.held[..at]);
        if kind == Kind::Call {
            push(parts, Kind::Answer, &self.held[..at + MESSAGE.len()]);
        }
        self.held.drain(..at + MESSAGE.len());
        self.position = Position::Body(kind);
        true
    }

    /// A message up to its end, or up to what may become it.
    fn take_body(&mut self, kind: Kind, parts: &mut Vec<Part>) -> bool {
        let mark_at = |at: usize| Some((at, *ENDS.iter().find(|mark| self.held[at..].starts_with(**mark))?));
        let end = self.held.match_indices('<').find_map(|(at, _)| mark_at(at));
        let Some((at, mark)) = end else {
            let held =
                self.held.rfind('<').filter(|&at| ENDS.iter().any(|mark| mark.starts_with(&self.held[at..]))).unwrap_or(self.held.len());
            push(parts, kind, &self.held[..held]);
            self.held.drain(..held);
            return false;
        };
        push(parts, kind, &self.held[..at]);
        let mark_len = if matches!(mark, START | CHANNEL) { 0 } else { mark.len() };
        if kind == Kind::Call {
            push(parts, kind, &mark[..mark_len]);
        }
        self.held.drain(..at + mark_len);
        self.position = Position::Header;
        true
    }
}

/// Adds to the last part of its kind.
fn push(parts: &mut Vec<Part>, kind: Kind, text: &str) {
    match (parts.last_mut(), kind) {
        _ if text.is_empty() => {}
        (Some(Part::Reasoning(last)), Kind::Reasoning) => last.push_str(text),
        (Some(Part::Text(last)), Kind::Answer | Kind::Call) => last.push_str(text),
        (_, Kind::Reasoning) => parts.push(Part::Reasoning(text.to_owned())),
        (_, Kind::Answer | Kind::Call) => parts.push(Part::Text(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole text in pieces of every size gives the same; reasoning in brackets.
    fn check(prompt: &str, prefill: Option<&str>, text: &str, expected: &str) {
        let chars: Vec<char> = text.chars().collect();
        for len in 1..=chars.len().max(1) {
            let mut splitter = ChannelSplitter::after(prompt, prefill);
            let mut parts: Vec<Part> = Vec::new();
            let pieces = chars.chunks(len).map(|piece| piece.iter().collect::<String>());
            let mut all: Vec<Part> = pieces.flat_map(|piece| splitter.push(&piece)).collect();
            all.extend(splitter.finish());
            for part in all {
                match part {
                    Part::Reasoning(text) => push(&mut parts, Kind::Reasoning, &text),
                    Part::Text(text) => push(&mut parts, Kind::Answer, &text),
                }
            }
            let shown = |part: &Part| match part {
                Part::Reasoning(text) => format!("[{text}]"),
                Part::Text(text) => text.clone(),
            };
            assert_eq!(parts.iter().map(shown).collect::<String>(), expected, "{text:?} in pieces of {len}");
        }
    }

    #[test]
    fn channels() {
        let start = "<|start|>assistant";
        check(
            start,
            None,
            "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>final<|message|>Four.",
            "[Let me see.]Four.",
        );
        check(start, None, "<|channel|>final<|message|>a < b <|x|> c<|return|>", "a < b <|x|> c");
        check(start, None, "Plain <answer>", "Plain <answer>");
        check(start, None, "<|channel|>commentary<|message|>I look.<|end|>", "I look.");
        let call = "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>";
        check(start, None, &format!("<|channel|>analysis<|message|>x<|end|>{call}"), &format!("[x]{call}"));
        let call = " to=functions.f<|channel|>commentary json<|message|>{}";
        check(start, None, call, call);
        check(start, None, "<|channel|>analysis<|message|>a<|channel|>final<|message|>b", "[a]b");
        check(start, None, "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>", "[ab]");
        check(start, None, "<|channel|>analysis", "<|channel|>analysis");
        check(start, None, "<|channel|>analysis<|message|>cut <|en", "[cut <|en]");
        check(start, None, "", "");
        check("<|start|>assistant<|channel|>analysis<|message|>", None, "a<|end|>b", "[a]b");
        check("<|start|>assistant<|channel|>final<|message|>The", Some("The"), " answer", " answer");
        let long = format!("<|channel|>{}", "x".repeat(600));
        check(start, None, &long, &long);
    }
}
