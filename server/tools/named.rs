//! Calls that are a name and then a JSON object: DeepSeek's, Mistral's and Harmony's. Mistral's arrays of calls too.
//!
//! ```text
//! <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n{..}\n```<｜tool▁call▁end｜>   DeepSeek V3, R1
//! <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{..}<｜tool▁call▁end｜>                        DeepSeek V3.1
//! [TOOL_CALLS]NAME[ARGS]{..}   [TOOL_CALLS]NAME[CALL_ID]ID[ARGS]{..}   [TOOL_CALLS][{"name": NAME, "arguments": {..}}, ..]
//! <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{..}<|call|>
//! ```

use super::call::{ToolCall, Trust, region_calls};
use super::extent::{Extent, Progress};
use super::offered::OfferedTools;
use super::parser::{FENCE, TextEnd};
use super::reader::Reading;
use super::scan::{Scanned, find_byte, mark_at, note, skip_space};

/// Longest text from the mark to the arguments.
const MAX_HEAD: usize = 384;

/// Whose way of naming it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NamedForm {
    DeepSeek,
    Mistral,
    Harmony,
}

impl NamedForm {
    /// The name in `head`, the text before the arguments, its mark included. None: there is more in it than a call's.
    fn name(self, head: &str) -> Option<&str> {
        match self {
            NamedForm::DeepSeek => {
                let (opening, call) = head.rsplit_once("<｜tool▁call▁begin｜>")?;
                if !matches!(opening.trim_end(), "" | "<｜tool▁calls▁begin｜>") {
                    return None;
                }
                let (before, after) = call.split_once("<｜tool▁sep｜>")?;
                match after.trim() {
                    "" | "```json" => Some(before.trim()),
                    named => Some(named.strip_suffix("```json").unwrap_or(named).trim()),
                }
            }
            NamedForm::Mistral => {
                let named = head.strip_prefix("[TOOL_CALLS]")?.trim_end();
                let named = named.strip_suffix("[ARGS]").unwrap_or(named);
                let name = named.split_once("[CALL_ID]").map_or(named, |(name, _)| name).trim();
                (!named.contains("[TOOL_CALLS]")).then_some(name)
            }
            NamedForm::Harmony => {
                let head = head.trim_end().strip_suffix("<|message|>")?;
                // One message has one header.
                if head.rfind("<|start|>").is_some_and(|at| at > 0)
                    || ["<|message|>", "<|end|>", "<|call|>"].iter().any(|m| head.contains(m))
                {
                    return None;
                }
                let (_, to) = head.split_once("to=functions.")?;
                Some(to.split([' ', '<']).next().unwrap_or(to))
            }
        }
    }
}

/// How far a look has come.
pub(super) struct NamedScan {
    form: NamedForm,
    /// Bytes of the mark.
    mark: usize,
    at: usize,
    step: Step,
}

enum Step {
    /// Behind the mark.
    Begin,
    /// Up to the arguments.
    Head,
    /// In the arguments, which begin at `from`.
    Arguments { from: usize, extent: Extent },
    /// Behind arguments that stand in a fence.
    Fence { from: usize, to: usize },
    /// In an array: before an item, or behind the last one when `comma`.
    Item { comma: bool },
    /// In an item that begins at `from`.
    Value { from: usize, extent: Extent, in_array: bool },
}

impl NamedScan {
    /// Behind a mark of `mark` bytes.
    pub(super) fn new(form: NamedForm, mark: usize) -> NamedScan {
        let step = if form == NamedForm::Mistral { Step::Begin } else { Step::Head };
        NamedScan { form, mark, at: mark, step }
    }

    pub(super) fn look(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>) -> Reading {
        loop {
            let reading = match &mut self.step {
                Step::Begin => self.look_begin(held, end),
                Step::Head => self.look_head(held, end),
                Step::Arguments { .. } => self.look_arguments(held, tools, end),
                Step::Fence { from, to } => {
                    let (from, to) = (*from, *to);
                    self.look_fence(held, tools, end, (from, to))
                }
                Step::Item { comma } => {
                    let comma = *comma;
                    self.look_item(held, end, comma)
                }
                Step::Value { .. } => self.look_value(held, tools, end),
            };
            if let Some(reading) = reading {
                return reading;
            }
        }
    }

    /// Needs more, or at the end is no call.
    fn open(&self, held: &str, end: Option<TextEnd>) -> Option<Reading> {
        Some(if end.is_none() { Reading::More } else { Reading::Text(held.len()) })
    }

    fn look_begin(&mut self, held: &str, end: Option<TextEnd>) -> Option<Reading> {
        if !skip_space(held, &mut self.at) {
            return self.open(held, end);
        }
        self.step = match held.as_bytes()[self.at] {
            b'[' => {
                self.at += 1;
                Step::Item { comma: false }
            }
            b'{' => Step::Value { from: self.at, extent: Extent::new(true), in_array: false },
            _ => Step::Head,
        };
        None
    }

    fn look_head(&mut self, held: &str, end: Option<TextEnd>) -> Option<Reading> {
        match find_byte(held, &mut self.at, b'{', MAX_HEAD) {
            Scanned::Found(from) if self.form.name(&held[..from]).is_some() => {
                self.step = Step::Arguments { from, extent: Extent::new(true) };
                None
            }
            Scanned::More if end.is_none() => Some(Reading::More),
            _ => Some(Reading::Text(self.mark)),
        }
    }

    fn look_arguments(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>) -> Option<Reading> {
        let Step::Arguments { from, extent } = &mut self.step else { return None };
        let from = *from;
        match done(held, &mut self.at, extent) {
            true if held[..from].trim_end().ends_with("```json") => {
                self.step = Step::Fence { from, to: self.at };
                None
            }
            true => Some(self.call(held, tools, (from, self.at), self.at)),
            false if end == Some(TextEnd::Complete) => Some(self.call(held, tools, (from, held.len()), held.len())),
            false => self.open(held, end),
        }
    }

    /// Behind the arguments: the closing fence is a part of the frame.
    fn look_fence(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>, arguments: (usize, usize)) -> Option<Reading> {
        let is_more = skip_space(held, &mut self.at);
        Some(match mark_at(held, self.at, &[FENCE]) {
            Scanned::Found(_) => self.call(held, tools, arguments, self.at + FENCE.len()),
            Scanned::More if end.is_none() => Reading::More,
            Scanned::More if !is_more => self.call(held, tools, arguments, held.len()),
            _ => self.call(held, tools, arguments, arguments.1),
        })
    }

    /// The call whose arguments stand at `arguments`, and all its text; small faults of the JSON are mended.
    fn call(&self, held: &str, tools: &OfferedTools, arguments: (usize, usize), len: usize) -> Reading {
        note(len);
        let tool = self.form.name(&held[..arguments.0]).and_then(|name| tools.find(name));
        let call = tool.and_then(|tool| ToolCall::from_text(&tool.name, &held[arguments.0..arguments.1], TextEnd::Complete));
        call.map_or(Reading::Text(len), |call| Reading::Calls(vec![call], len))
    }

    /// In an array, whose calls come one by one.
    fn look_item(&mut self, held: &str, end: Option<TextEnd>, comma: bool) -> Option<Reading> {
        if !skip_space(held, &mut self.at) {
            // What is left between items is a part of the frame.
            return if end.is_some() && comma { Some(Reading::Calls(Vec::new(), held.len())) } else { self.open(held, end) };
        }
        match (held.as_bytes()[self.at], comma) {
            (b']', true) => Some(Reading::Calls(Vec::new(), self.at + 1)),
            (b',', true) => {
                self.at += 1;
                self.step = Step::Item { comma: false };
                None
            }
            (b'{', false) => {
                self.step = Step::Value { from: self.at, extent: Extent::new(true), in_array: true };
                None
            }
            _ => Some(Reading::Text(self.at)),
        }
    }

    fn look_value(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>) -> Option<Reading> {
        let Step::Value { from, extent, in_array } = &mut self.step else { return None };
        let (from, in_array) = (*from, *in_array);
        if !done(held, &mut self.at, extent) {
            if end != Some(TextEnd::Complete) {
                return self.open(held, end);
            }
            self.at = held.len();
        }
        note(self.at - from);
        let region = region_calls(&held[from..self.at], tools, Trust::Tag, false).filter(|region| region.rest.is_empty());
        Some(match region {
            Some(region) if in_array => {
                let len = std::mem::replace(&mut self.at, 0);
                self.step = Step::Item { comma: true };
                Reading::CallsOn(region.calls, len)
            }
            Some(region) => Reading::Calls(region.calls, self.at),
            None => Reading::Text(self.at),
        })
    }
}

/// Moves `at` behind the value, if it ends.
fn done(held: &str, at: &mut usize, extent: &mut Extent) -> bool {
    let found = held.as_bytes()[*at..].iter().position(|&byte| extent.push(byte) == Progress::Done);
    *at = found.map_or(held.len(), |len| *at + len + 1);
    found.is_some()
}
