//! From a `GrammarSource` to one Lark text, which is what llguidance compiles and what the cache of grammars knows them by.

use std::fmt::Write;

use llguidance::regex_to_lark;
use serde_json::{Value, json};

use super::ebnf;
use super::schema;
use super::source::{Format, GrammarError, GrammarSource, Spacing, Tagged, invalid};

/// Bytes of a Lark text: schemas of many tools, long choices.
const MAX_BYTES: usize = 512 << 10;
/// Formats inside formats.
const MAX_DEPTH: usize = 32;
/// Brackets inside brackets of a grammar or regular expression: parsers recurse.
const MAX_NESTING: usize = 100;
/// White space of `Spacing::Bounded`.
const BOUNDED_SPACE: &str = r" |\n {0,20}";
/// Any text.
const ANY_TEXT: &str = r"/(.|\n)*/";

/// A grammar as Lark text.
pub(super) struct LarkText {
    pub(super) text: String,
    /// It is JSON with a fixed frame, which a `JsonGuard` can follow.
    pub(super) is_json: bool,
}

/// Writes the Lark text.
///
/// # Errors
/// What is wrong with the source, naming the keyword or the part.
pub(super) fn lark_of(source: &GrammarSource) -> Result<LarkText, GrammarError> {
    let mut writer = Writer { rules: String::new(), num_rules: 0, spacing: source.spacing, is_json: true };
    let text = match &source.format {
        Format::Grammar(text) => {
            writer.is_json = false;
            lark_of_grammar(text)?
        }
        format => {
            let start = writer.expression(format, MAX_DEPTH)?;
            format!("start: {start}\n{}", writer.rules)
        }
    };
    if text.len() > MAX_BYTES {
        return Err(invalid(format!("the grammar has {} bytes, at most {MAX_BYTES} are allowed", text.len())));
    }
    Ok(LarkText { text, is_json: writer.is_json })
}

/// Lark as it is; EBNF converted.
fn lark_of_grammar(text: &str) -> Result<String, GrammarError> {
    if text.trim().is_empty() {
        return Err(invalid("the grammar is empty"));
    }
    check_nesting(text, "the grammar")?;
    if text.len() > MAX_BYTES {
        return Err(invalid(format!("the grammar has {} bytes, at most {MAX_BYTES} are allowed", text.len())));
    }
    if text.contains("::=") { ebnf::to_lark(text) } else { Ok(text.to_string()) }
}

fn check_nesting(text: &str, what: &str) -> Result<(), GrammarError> {
    let mut depth = 0usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            return Err(invalid(format!("{what} nests brackets deeper than {MAX_NESTING}")));
        }
    }
    Ok(())
}

struct Writer {
    rules: String,
    num_rules: usize,
    spacing: Spacing,
    is_json: bool,
}

impl Writer {
    /// A new rule; returns its name.
    fn rule(&mut self, attributes: &str, body: &str) -> String {
        let name = format!("r{}", self.num_rules);
        self.num_rules += 1;
        writeln!(self.rules, "{name}{attributes}: {body}").expect("writing to a string");
        name
    }

    /// An expression that can stand in a rule; adds the rules that it needs.
    fn expression(&mut self, format: &Format, depth: usize) -> Result<String, GrammarError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(invalid(format!("formats nest deeper than {MAX_DEPTH}")));
        };
        match format {
            Format::Text(text) => {
                self.is_json &= has_whole_strings(text);
                Ok(quoted(text))
            }
            Format::Choice(choices) => self.choice(choices),
            Format::JsonSchema(schema) => self.json(schema),
            Format::Regex(regex) => self.regex(regex),
            Format::Grammar(text) => {
                self.is_json = false;
                let body = lark_of_grammar(text)?;
                Ok(self.rule("", &format!("%lark {{\n{body}\n}}")))
            }
            Format::AnyText => {
                self.is_json = false;
                Ok(self.rule("", ANY_TEXT))
            }
            Format::Sequence(parts) => self.sequence(parts, depth),
            Format::AnyOf(formats) if formats.is_empty() => Err(invalid("a choice between formats has none")),
            Format::AnyOf(formats) => {
                let options = formats.iter().map(|format| self.expression(format, depth)).collect::<Result<Vec<_>, _>>()?;
                let options: Vec<String> = options.iter().map(|option| self.rule("", option)).collect();
                Ok(self.rule("", &options.join(" | ")))
            }
            Format::Repeat { item, separator, min, max } => self.repeat(item, separator, (*min, *max), depth),
            Format::Triggered { triggers, tags, at_least_one, stop_after_first } => {
                self.triggered(triggers, tags, (*at_least_one, *stop_after_first), depth)
            }
        }
    }

    fn choice(&mut self, choices: &[String]) -> Result<String, GrammarError> {
        self.is_json = false;
        if choices.is_empty() || choices.iter().any(String::is_empty) {
            return Err(invalid("a choice needs at least one text, none of them empty"));
        }
        // One terminal: choices that begin alike are told apart by what follows.
        let name = format!("C{}", self.num_rules);
        self.num_rules += 1;
        let options: Vec<String> = choices.iter().map(|choice| quoted(choice)).collect();
        writeln!(self.rules, "{name}: {}", options.join(" | ")).expect("writing to a string");
        Ok(name)
    }

    fn json(&mut self, schema: &Value) -> Result<String, GrammarError> {
        let mut schema = schema::enforceable(schema)?;
        let options = match self.spacing {
            Spacing::Bounded => json!({"whitespace_flexible": true, "whitespace_pattern": BOUNDED_SPACE}),
            Spacing::Compact => json!({"whitespace_flexible": false}),
        };
        if let Value::Object(map) = &mut schema {
            map.insert("x-guidance".into(), options);
        }
        Ok(self.rule("", &format!("%json {schema}")))
    }

    fn regex(&mut self, regex: &str) -> Result<String, GrammarError> {
        self.is_json = false;
        if regex.is_empty() {
            return Err(invalid("the regular expression is empty"));
        }
        check_nesting(regex, "the regular expression")?;
        let body = regex_to_lark(regex.strip_prefix('^').unwrap_or(regex), "");
        Ok(self.rule("", &format!("/{}/", without_end_anchor(&body))))
    }

    /// Free text ends where the text behind it begins: the two make one lazy rule.
    fn sequence(&mut self, parts: &[Format], depth: usize) -> Result<String, GrammarError> {
        let mut written = Vec::with_capacity(parts.len());
        let mut parts = flattened(parts).into_iter().filter(|part| !matches!(part, Format::Text(text) if text.is_empty())).peekable();
        while let Some(part) = parts.next() {
            let end = match (part, parts.peek()) {
                (Format::AnyText, Some(Format::Text(end))) => end,
                (Format::AnyText, Some(_)) => return Err(invalid("free text must be followed by fixed text, or by nothing")),
                _ => {
                    written.push(self.expression(part, depth)?);
                    continue;
                }
            };
            self.is_json = false;
            written.push(self.rule("[lazy]", &format!("{ANY_TEXT} {}", quoted(end))));
            parts.next();
        }
        Ok(if written.is_empty() { quoted("") } else { self.rule("", &written.join(" ")) })
    }

    fn repeat(&mut self, item: &Format, separator: &str, (min, max): (usize, Option<usize>), depth: usize) -> Result<String, GrammarError> {
        if max.is_some_and(|max| max < min || max == 0) {
            return Err(invalid(format!("something is to be repeated at least {min} and at most {} times", max.unwrap_or(0))));
        }
        self.is_json &= has_whole_strings(separator);
        let item = self.expression(item, depth)?;
        let item = self.rule("", &item);
        if max == Some(1) {
            return Ok(if min == 0 { self.rule("", &format!("{item}?")) } else { item });
        }
        let more_max = max.map_or(String::new(), |max| (max - 1).to_string());
        let more = self.rule("", &format!("{} {item}", quoted(separator)));
        let some = self.rule("", &format!("{item} {more}{{{},{more_max}}}", min.saturating_sub(1)));
        Ok(if min == 0 { self.rule("", &format!("{some}?")) } else { some })
    }

    fn triggered(
        &mut self,
        triggers: &[String],
        tags: &[Tagged],
        (at_least_one, stop_after_first): (bool, bool),
        depth: usize,
    ) -> Result<String, GrammarError> {
        self.is_json = false;
        if triggers.is_empty() || triggers.iter().any(String::is_empty) || tags.is_empty() {
            return Err(invalid("triggers and tags need at least one entry, no trigger is empty"));
        }
        let mut branches = Vec::new();
        for trigger in triggers {
            let mut options = Vec::new();
            for tag in tags.iter().filter(|tag| tag.begin.starts_with(trigger.as_str())) {
                let rest = Tagged { begin: tag.begin[trigger.len()..].to_string(), ..tag.clone() };
                let rest = self.expression(&rest.into(), depth)?;
                options.push(self.rule("", &rest));
            }
            if options.is_empty() {
                return Err(invalid(format!("no tag begins with the trigger {trigger:?}")));
            }
            let text = self.rule("[lazy]", &format!("{ANY_TEXT} {}", quoted(trigger)));
            branches.push(self.rule("", &format!("{text} ({})", options.join(" | "))));
        }
        if let Some(tag) = tags.iter().find(|tag| !triggers.iter().any(|trigger| tag.begin.starts_with(trigger.as_str()))) {
            return Err(invalid(format!("the tag {:?} begins with no trigger", tag.begin)));
        }
        let tagged = self.rule("", &branches.join(" | "));
        let rest = self.rule("", ANY_TEXT);
        Ok(match (at_least_one, stop_after_first) {
            (true, true) => tagged,
            (true, false) => self.rule("", &format!("{tagged}+ {rest}")),
            (false, true) => self.rule("", &format!("{tagged} | {rest}")),
            (false, false) => self.rule("", &format!("{tagged}* {rest}")),
        })
    }
}

/// Sequences in sequences as one.
fn flattened(parts: &[Format]) -> Vec<&Format> {
    let mut flat = Vec::with_capacity(parts.len());
    for part in parts {
        match part {
            Format::Sequence(inner) => flat.extend(flattened(inner)),
            other => flat.push(other),
        }
    }
    flat
}

/// A Lark string: JSON's, without a raw delete character.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// Whether every JSON string that begins in the text ends in it.
fn has_whole_strings(text: &str) -> bool {
    let (mut inside, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            _ => {}
        }
    }
    !inside
}

/// The whole text is matched: `$` at the end says nothing more.
fn without_end_anchor(regex: &str) -> &str {
    match regex.strip_suffix('$') {
        Some(rest) if (rest.len() - rest.trim_end_matches('\\').len()).is_multiple_of(2) => rest,
        _ => regex,
    }
}
