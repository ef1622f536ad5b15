//! Qwen3-Coder's calls: a function with its parameters as elements, whose text has the types of the tool's schema.
//!
//! ```text
//! <tool_call>
//! <function=NAME>
//! <parameter=KEY>
//! VALUE
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//! A value may hold anything: it ends at the first `</parameter>` behind which another parameter or the end of the function follows. Where
//! a model forgets that mark, the value ends at a line that begins with another of the tool's parameters, or with the end of the call.

use serde_json::Map;

use super::call::{ToolCall, Trust};
use super::offered::OfferedTools;
use super::parser::TextEnd;
use super::reader::Reading;
use super::scan::{Scanned, find_byte, mark_at, note, skip_space};
use super::typed::typed;

pub(super) const FUNCTION: &str = "<function=";
const PARAMETER_END: &str = "</parameter>";
/// What may follow a function's head or a parameter.
const NEXT: [&str; 3] = ["<parameter=", "</function>", "</tool_call>"];
/// Longest name of a function or a parameter.
const MAX_NAME: usize = 256;

/// How far a look has come.
pub(super) struct XmlScan {
    /// Bytes before `<function=`: a start tag and white space.
    outer: usize,
    trust: Trust,
    at: usize,
    step: Step,
    /// Where its name stands.
    name: (usize, usize),
    /// Where the keys and values of its parameters stand.
    parameters: Vec<((usize, usize), (usize, usize))>,
}

#[derive(Clone, Copy)]
enum Step {
    /// In the function's name.
    Name,
    /// Before a parameter or the end.
    Between,
    /// In the key that begins at `from`.
    Key { from: usize },
    /// In the value that begins at `from`.
    Value { key: (usize, usize), from: usize },
    /// Behind a `</parameter>` at `to`, which may be a part of the value.
    After { key: (usize, usize), from: usize, to: usize },
    /// The same of what follows a value, which ends without a mark of its own: in the name of the next parameter.
    NextKey { key: (usize, usize), from: usize, to: usize },
    /// Behind the function's end.
    FunctionEnd { key: (usize, usize), from: usize, to: usize },
}

impl XmlScan {
    /// At `<function=`, `outer` bytes behind the beginning of the held text.
    pub(super) fn new(outer: usize, trust: Trust) -> XmlScan {
        let at = outer + FUNCTION.len();
        XmlScan { outer, trust, at, step: Step::Name, name: (at, at), parameters: Vec::new() }
    }

    pub(super) fn look(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>) -> Reading {
        loop {
            let reading = match self.step {
                Step::Name => self.look_name(held, end),
                Step::Between => self.look_between(held, tools, end),
                Step::Key { from } => self.look_key(held, end, from),
                Step::Value { key, from } => self.look_value(held, end, key, from),
                Step::After { key, from, to } => self.look_after(held, end, key, (from, to)),
                Step::NextKey { key, from, to } => self.look_next_key(held, tools, end, key, (from, to)),
                Step::FunctionEnd { key, from, to } => self.look_function_end(held, tools, end, key, (from, to)),
            };
            if let Some(reading) = reading {
                return reading;
            }
        }
    }

    /// No function after all: the text up to `at`, where something else stands, or up to its name.
    fn no_call(&self, at: usize) -> Option<Reading> {
        Some(Reading::Text(if self.parameters.is_empty() { self.outer + FUNCTION.len() } else { at }))
    }

    fn look_name(&mut self, held: &str, end: Option<TextEnd>) -> Option<Reading> {
        match find_byte(held, &mut self.at, b'>', self.name.0 + MAX_NAME) {
            Scanned::Found(to) if !held[self.name.0..to].contains(['<', '\n']) => {
                self.name.1 = to;
                self.at += 1;
                self.step = Step::Between;
                None
            }
            Scanned::More if end.is_none() => Some(Reading::More),
            _ => self.no_call(self.name.0),
        }
    }

    fn look_between(&mut self, held: &str, tools: &OfferedTools, end: Option<TextEnd>) -> Option<Reading> {
        let is_more = skip_space(held, &mut self.at);
        match mark_at(held, self.at, &NEXT) {
            Scanned::Found(0) => {
                self.at += NEXT[0].len();
                self.step = Step::Key { from: self.at };
                None
            }
            Scanned::Found(next) => Some(self.call(held, tools, self.at + NEXT[next].len())),
            Scanned::More if end.is_none() => Some(Reading::More),
            // A model that ends here has said all that belongs to the call.
            Scanned::More if !is_more && end == Some(TextEnd::Complete) => Some(self.call(held, tools, held.len())),
            _ => self.no_call(self.at),
        }
    }

    fn look_key(&mut self, held: &str, end: Option<TextEnd>, from: usize) -> Option<Reading> {
        match find_byte(held, &mut self.at, b'>', from + MAX_NAME) {
            Scanned::Found(to) if !held[from..to].contains(['<', '\n']) => {
                self.at += 1;
                self.step = Step::Value { key: (from, to), from: self.at };
                None
            }
            Scanned::More if end.is_none() => Some(Reading::More),
            _ => self.no_call(from),
        }
    }

    fn look_value(&mut self, held: &str, end: Option<TextEnd>, key: (usize, usize), from: usize) -> Option<Reading> {
        match find_byte(held, &mut self.at, b'<', usize::MAX) {
            Scanned::Found(_) => {}
            _ if end.is_none() => return Some(Reading::More),
            // All of the rest was its value.
            _ => return Some(Reading::Text(held.len())),
        }
        let (to, marks) = (self.at, [PARAMETER_END, NEXT[0], NEXT[1]]);
        let starts_line = held[from..to].ends_with('\n');
        match mark_at(held, to, &marks) {
            Scanned::Found(0) => self.step = Step::After { key, from, to },
            Scanned::Found(1) if starts_line => self.step = Step::NextKey { key, from, to },
            Scanned::Found(2) if starts_line => self.step = Step::FunctionEnd { key, from, to },
            Scanned::More if end.is_none() => return Some(Reading::More),
            _ => {
                self.at += 1;
                return None;
            }
        }
        self.at += match self.step {
            Step::After { .. } => PARAMETER_END.len(),
            Step::NextKey { .. } => NEXT[0].len(),
            _ => NEXT[1].len(),
        };
        None
    }

    /// A parameter that the tool has and that was not given yet ends one whose own end is missing; anything else is a part of the value.
    fn look_next_key(
        &mut self,
        held: &str,
        tools: &OfferedTools,
        end: Option<TextEnd>,
        key: (usize, usize),
        value: (usize, usize),
    ) -> Option<Reading> {
        let from = value.1 + NEXT[0].len();
        let found = find_byte(held, &mut self.at, b'>', from + MAX_NAME);
        if found == Scanned::More && end.is_none() {
            return Some(Reading::More);
        }
        let name = |(from, to): (usize, usize)| held[from..to].trim();
        let is_new = |to: &usize| {
            let next = name((from, *to));
            let known = tools.find(name(self.name)).is_some_and(|tool| tool.parameter(next).is_some());
            known && next != name(key) && self.parameters.iter().all(|(given, _)| name(*given) != next)
        };
        let next = if let Scanned::Found(to) = found { Some(to).filter(is_new) } else { None };
        match next {
            Some(to) => {
                self.parameters.push((key, value));
                self.at = to + 1;
                self.step = Step::Value { key: (from, to), from: self.at };
            }
            None => self.go_on(key, value),
        }
        None
    }

    /// The function ends a parameter whose own end is missing, where nothing but the call's end follows.
    fn look_function_end(
        &mut self,
        held: &str,
        tools: &OfferedTools,
        end: Option<TextEnd>,
        key: (usize, usize),
        value: (usize, usize),
    ) -> Option<Reading> {
        let is_more = skip_space(held, &mut self.at);
        let len = match mark_at(held, self.at, &NEXT[2..]) {
            Scanned::Found(_) => self.at + NEXT[2].len(),
            Scanned::More if end.is_none() => return Some(Reading::More),
            Scanned::More if !is_more && end == Some(TextEnd::Complete) => held.len(),
            _ => {
                self.go_on(key, value);
                return None;
            }
        };
        self.parameters.push((key, value));
        Some(self.call(held, tools, len))
    }

    /// What looked like the end of a value is a part of it.
    fn go_on(&mut self, key: (usize, usize), value: (usize, usize)) {
        self.at = value.1 + 1;
        self.step = Step::Value { key, from: value.0 };
    }

    fn look_after(&mut self, held: &str, end: Option<TextEnd>, key: (usize, usize), value: (usize, usize)) -> Option<Reading> {
        let is_more = skip_space(held, &mut self.at);
        let ends = match mark_at(held, self.at, &NEXT) {
            Scanned::Found(_) => true,
            Scanned::More if end.is_none() => return Some(Reading::More),
            Scanned::More => !is_more,
            Scanned::Nothing => false,
        };
        if ends {
            self.parameters.push((key, value));
            self.step = Step::Between;
        } else {
            self.go_on(key, value);
        }
        None
    }

    /// The call, and all its text.
    fn call(&self, held: &str, tools: &OfferedTools, len: usize) -> Reading {
        note(len);
        let called = || {
            let tool = tools.find(&held[self.name.0..self.name.1])?;
            let mut arguments = Map::new();
            for &(key, value) in &self.parameters {
                let key = held[key.0..key.1].trim();
                arguments.insert(key.to_owned(), typed(value_text(&held[value.0..value.1]), tool.parameter(key), &tool.schema));
            }
            let fits = self.trust == Trust::Tag || tool.accepts(&arguments);
            fits.then(|| ToolCall { name: tool.name.clone(), arguments })
        };
        called().map_or(Reading::Text(len), |call: ToolCall| Reading::Calls(vec![call], len))
    }
}

/// The value without the line ends that its frame puts around it.
fn value_text(text: &str) -> &str {
    let text = text.strip_prefix("\r\n").or(text.strip_prefix('\n')).unwrap_or(text);
    text.strip_suffix("\r\n").or(text.strip_suffix('\n')).unwrap_or(text)
}

/// A value as an argument, for tests of types.
#[cfg(test)]
pub(super) fn argument(text: &str, schema: &serde_json::Value) -> serde_json::Value {
    typed(value_text(text), Some(schema), schema)
}
