//! Lists of Python calls: `[f(a=1), g(b="x")]`, with keyword arguments that are literals. Nothing is evaluated.

use serde_json::Map;

use super::call::ToolCall;
use super::extent::{Extent, Progress};
use super::lenient_json;
use super::offered::OfferedTools;
use super::parser::TextEnd;
use super::reader::Reading;
use super::scan::{note, skip_space};

/// Longest name of a tool.
const MAX_NAME: usize = 256;

/// How far a look has come.
pub(super) struct PythonScan {
    /// Bytes of the mark; 0: a list without a mark.
    mark: usize,
    at: usize,
    step: Step,
}

enum Step {
    /// Before the list.
    Begin,
    /// Before the first name.
    Inside { list: usize },
    /// In the first name, which begins at `from`.
    Name { list: usize, from: usize },
    /// In the list, from its bracket at `list`.
    List { list: usize, extent: Extent },
    /// Behind a list without a mark: nothing else may stand on its line.
    After { end: usize },
}

impl PythonScan {
    /// Behind a mark of `mark` bytes.
    pub(super) fn marked(mark: usize) -> PythonScan {
        PythonScan { mark, at: mark, step: Step::Begin }
    }

    /// At a bracket that starts a line.
    pub(super) fn bare() -> PythonScan {
        PythonScan { mark: 0, at: 0, step: Step::Begin }
    }

    pub(super) fn look(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>) -> Reading {
        loop {
            let reading = match &mut self.step {
                Step::Begin => self.look_begin(held, end),
                Step::Inside { list } => {
                    let list = *list;
                    self.look_inside(held, end, list)
                }
                Step::Name { list, from } => {
                    let (list, from) = (*list, *from);
                    self.look_name(held, tools, end, (list, from))
                }
                Step::List { .. } => self.look_list(held, tools, end),
                Step::After { end: list_end } => {
                    let list_end = *list_end;
                    Some(self.look_after(held, tools, end, list_end))
                }
            };
            if let Some(reading) = reading {
                return reading;
            }
        }
    }

    /// Needs more, or at the end is something else.
    fn open(&self, end: Option<TextEnd>) -> Option<Reading> {
        Some(if end.is_none() { Reading::More } else { Reading::Values(self.mark) })
    }

    fn look_begin(&mut self, held: &str, end: Option<TextEnd>) -> Option<Reading> {
        if !skip_space(held, &mut self.at) {
            return self.open(end);
        }
        if held.as_bytes()[self.at] != b'[' {
            return Some(Reading::Values(self.mark));
        }
        self.step = Step::Inside { list: self.at };
        self.at += 1;
        None
    }

    fn look_inside(&mut self, held: &str, end: Option<TextEnd>, list: usize) -> Option<Reading> {
        if !skip_space(held, &mut self.at) {
            return self.open(end);
        }
        self.step = Step::Name { list, from: self.at };
        None
    }

    /// Only a list whose first name is a tool's is worth waiting for.
    fn look_name(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>, (list, from): (usize, usize)) -> Option<Reading> {
        let rest = &held[self.at..];
        let len = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        note(len + 1);
        self.at += len;
        let name = &held[from..self.at];
        if name.len() > MAX_NAME {
            return Some(Reading::Values(self.mark));
        }
        if self.at == held.len() && end.is_none() {
            return Some(Reading::More);
        }
        if !held[self.at..].starts_with('(') || tools.find(name).is_none() {
            return Some(Reading::Values(self.mark));
        }
        self.at = list;
        self.step = Step::List { list, extent: Extent::new(true) };
        None
    }

    fn look_list(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>) -> Option<Reading> {
        let Step::List { list, extent } = &mut self.step else { return None };
        let list = *list;
        let done = held.as_bytes()[self.at..].iter().position(|&byte| extent.push(byte) == Progress::Done && byte == b']');
        let Some(len) = done else {
            self.at = held.len();
            return Some(if end.is_none() { Reading::More } else { Reading::Text(held.len()) });
        };
        self.at += len + 1;
        if self.mark == 0 {
            self.step = Step::After { end: self.at };
            return None;
        }
        note(self.at - list);
        let calls = python_calls(&held[list..self.at], tools, false);
        Some(calls.map_or(Reading::Text(self.at), |calls| Reading::Calls(calls, self.at)))
    }

    fn look_after(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>, list_end: usize) -> Reading {
        let rest = &held[self.at..];
        let blank = rest.find(|c: char| !matches!(c, ' ' | '\t' | '\r')).unwrap_or(rest.len());
        note(blank + 1);
        self.at += blank;
        let rest = &held[self.at..];
        if end.is_none() && matches!(rest, "" | "<") {
            return Reading::More;
        }
        // The end of the line, of the text, or an end mark.
        let alone = rest.is_empty() || rest.starts_with('\n') || rest.starts_with("<|");
        note(list_end);
        let calls = alone.then(|| python_calls(&held[..list_end], tools, true)).flatten();
        calls.map_or(Reading::Text(list_end), |calls| Reading::Calls(calls, list_end))
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// The calls of a whole list; `must_fit`: their arguments have to fit the tools' schemas. None: anything in it is something else.
fn python_calls(text: &str, tools: &OfferedTools, must_fit: bool) -> Option<Vec<ToolCall>> {
    let mut list = Cursor { text, at: 0 };
    let mut calls = Vec::new();
    list.eat('[')?;
    while list.eat(']').is_none() {
        let tool = tools.find(list.name()?)?;
        let mut arguments = Map::new();
        list.eat('(')?;
        while list.eat(')').is_none() {
            let key = list.name()?.to_owned();
            list.eat('=')?;
            let value = list.value()?;
            if arguments.insert(key, value).is_some() || (list.eat(',').is_none() && !list.is_at(')')) {
                return None;
            }
        }
        if must_fit && !tool.accepts(&arguments) {
            return None;
        }
        calls.push(ToolCall { name: tool.name.clone(), arguments });
        if list.eat(',').is_none() && !list.is_at(']') {
            return None;
        }
    }
    (list.at == text.len() && !calls.is_empty()).then_some(calls)
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn is_at(&mut self, c: char) -> bool {
        skip_space(self.text, &mut self.at);
        self.text[self.at..].starts_with(c)
    }

    fn eat(&mut self, c: char) -> Option<()> {
        let found = self.is_at(c);
        self.at += if found { c.len_utf8() } else { 0 };
        found.then_some(())
    }

    fn name(&mut self) -> Option<&'a str> {
        skip_space(self.text, &mut self.at);
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        self.at += len;
        (len > 0).then(|| &rest[..len])
    }

    fn value(&mut self) -> Option<serde_json::Value> {
        skip_space(self.text, &mut self.at);
        let parsed = lenient_json::parse_prefix(&self.text[self.at..])?;
        self.at += parsed.len;
        Some(parsed.value)
    }
}
