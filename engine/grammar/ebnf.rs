//! EBNF in the form that llama.cpp calls GBNF and vLLM's users write (`root ::= "a" [0-9]+ | rule*`), as Lark text.
//!
//! A grammar without recursion is one regular expression, and so one terminal. In any other every character is a terminal of its own: then
//! it does not matter that the lexer takes the longest match.

use std::collections::HashMap;
use std::fmt::Write;

use super::lark::quoted;
use super::source::{GrammarError, invalid};

/// Nodes that rules may be written out to.
const MAX_NODES: usize = 20_000;
/// Groups inside groups, and rules inside rules of a regular grammar.
const MAX_DEPTH: usize = 100;

#[derive(Clone, Debug)]
enum Node {
    Text(String),
    /// A class or `.` as a regular expression of one character.
    Class(String),
    Rule(String),
    Sequence(Vec<Node>),
    AnyOf(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

/// Converts a whole grammar, whose rule `root` is the beginning.
///
/// # Errors
/// The first thing that is not understood, with its line; a rule that is not defined; no `root`.
pub(super) fn to_lark(text: &str) -> Result<String, GrammarError> {
    let rules = Parser { chars: text.chars().collect(), at: 0 }.rules()?;
    if !rules.contains_key("root") {
        return Err(invalid("the EBNF grammar has no rule `root`"));
    }
    let mut regex = Regex { rules: &rules, open: Vec::new(), num_nodes: 0 };
    match regex.write(&Node::Rule("root".into())) {
        Ok(Some(regex)) => Ok(format!("start: /{}/\n", llguidance::regex_to_lark(&regex, ""))),
        Ok(None) => lark_rules(&rules),
        Err(error) => Err(error),
    }
}

/// Writes a grammar without recursion as one regular expression.
struct Regex<'a> {
    rules: &'a HashMap<String, Node>,
    open: Vec<String>,
    num_nodes: usize,
}

impl Regex<'_> {
    /// None: the grammar is recursive, or too large for one expression.
    fn write(&mut self, node: &Node) -> Result<Option<String>, GrammarError> {
        self.num_nodes += 1;
        if self.num_nodes > MAX_NODES {
            return Ok(None);
        }
        Ok(Some(match node {
            Node::Text(text) => text.chars().map(escaped).collect(),
            Node::Class(class) => class.clone(),
            Node::Rule(name) => {
                let Some(rule) = self.rules.get(name) else {
                    return Err(invalid(format!("the EBNF grammar has no rule `{name}`")));
                };
                if self.open.len() > MAX_DEPTH || self.open.contains(name) {
                    return Ok(None);
                }
                self.open.push(name.clone());
                let written = self.write(rule)?;
                self.open.pop();
                let Some(written) = written else { return Ok(None) };
                format!("(?:{written})")
            }
            Node::Sequence(parts) => {
                let Some(parts) = self.all(parts)? else { return Ok(None) };
                parts.concat()
            }
            Node::AnyOf(options) => {
                let Some(options) = self.all(options)? else { return Ok(None) };
                format!("(?:{})", options.join("|"))
            }
            Node::Repeat(inner, min, max) => {
                let Some(inner) = self.write(inner)? else { return Ok(None) };
                format!("(?:{inner}){}", counts(*min, *max))
            }
        }))
    }

    fn all(&mut self, nodes: &[Node]) -> Result<Option<Vec<String>>, GrammarError> {
        nodes.iter().map(|node| self.write(node)).collect()
    }
}

fn counts(min: u32, max: Option<u32>) -> String {
    max.map_or_else(|| format!("{{{min},}}"), |max| format!("{{{min},{max}}}"))
}

/// A character in a regular expression.
fn escaped(c: char) -> String {
    if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\x{{{:x}}}", c as u32) }
}

fn lark_rules(rules: &HashMap<String, Node>) -> Result<String, GrammarError> {
    let mut names: Vec<&String> = rules.keys().collect();
    names.sort();
    let index: HashMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let mut lark = format!("start: e{}\n", index["root"]);
    for (i, name) in names.iter().enumerate() {
        writeln!(lark, "e{i}: {}", lark_node(&rules[name.as_str()], &index)?).expect("writing to a string");
    }
    Ok(lark)
}

fn lark_node(node: &Node, index: &HashMap<&str, usize>) -> Result<String, GrammarError> {
    let all = |nodes: &[Node]| nodes.iter().map(|node| lark_node(node, index)).collect::<Result<Vec<_>, _>>();
    Ok(match node {
        Node::Text(text) if text.is_empty() => quoted(""),
        Node::Text(text) => text.chars().map(|c| quoted(&c.to_string())).collect::<Vec<_>>().join(" "),
        Node::Class(class) => format!("/{}/", llguidance::regex_to_lark(class, "")),
        Node::Rule(name) => match index.get(name.as_str()) {
            Some(i) => format!("e{i}"),
            None => return Err(invalid(format!("the EBNF grammar has no rule `{name}`"))),
        },
        Node::Sequence(parts) if parts.is_empty() => quoted(""),
        Node::Sequence(parts) => all(parts)?.join(" "),
        Node::AnyOf(options) => format!("({})", all(options)?.join(" | ")),
        Node::Repeat(_, _, Some(0)) => quoted(""),
        Node::Repeat(inner, min, max) => format!("({}){}", lark_node(inner, index)?, counts(*min, *max)),
    })
}

struct Parser {
    chars: Vec<char>,
    at: usize,
}

impl Parser {
    fn rules(mut self) -> Result<HashMap<String, Node>, GrammarError> {
        let mut rules = HashMap::new();
        self.skip();
        while self.at < self.chars.len() {
            let name = self.name().ok_or_else(|| self.error("expected the name of a rule"))?;
            self.skip();
            if !self.take_text("::=") {
                return Err(self.error("expected `::=`"));
            }
            self.skip();
            let node = self.options(0)?;
            if rules.insert(name.clone(), node).is_some() {
                return Err(self.error(&format!("rule `{name}` is defined twice")));
            }
            self.skip();
        }
        Ok(rules)
    }

    fn options(&mut self, depth: usize) -> Result<Node, GrammarError> {
        if depth > MAX_DEPTH {
            return Err(self.error("groups nest too deep"));
        }
        let mut options = vec![self.sequence(depth)?];
        loop {
            let before = self.at;
            self.skip();
            if !self.take('|') {
                self.at = before;
                break;
            }
            self.skip();
            options.push(self.sequence(depth)?);
        }
        Ok(if options.len() == 1 { options.remove(0) } else { Node::AnyOf(options) })
    }

    /// Ends at `|`, `)`, a new rule, or what is no part of one. In a group line breaks mean nothing.
    fn sequence(&mut self, depth: usize) -> Result<Node, GrammarError> {
        let mut parts = Vec::new();
        loop {
            self.skip();
            if self.starts_rule() {
                break;
            }
            let Some(part) = self.atom(depth)? else { break };
            let part = self.repeated(part)?;
            parts.push(part);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Node::Sequence(parts) })
    }

    fn atom(&mut self, depth: usize) -> Result<Option<Node>, GrammarError> {
        match self.peek() {
            Some('"') => self.text().map(Some),
            Some('[') => self.class().map(Some),
            Some('.') => {
                self.at += 1;
                Ok(Some(Node::Class("[^\\n]".into())))
            }
            Some('(') => {
                self.at += 1;
                let inner = self.options(depth + 1)?;
                self.skip();
                if self.take(')') { Ok(Some(inner)) } else { Err(self.error("expected `)`")) }
            }
            None | Some('|' | ')') => Ok(None),
            Some(_) => match self.name() {
                Some(name) => Ok(Some(Node::Rule(name))),
                None => Err(self.error("expected a text, a class, a group or a rule")),
            },
        }
    }

    fn repeated(&mut self, mut node: Node) -> Result<Node, GrammarError> {
        loop {
            let (min, max) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.at += 1;
                    let min = self.number().unwrap_or(0);
                    let max = if self.take(',') { self.number() } else { Some(min) };
                    if self.peek() != Some('}') || max.is_some_and(|max| max < min) {
                        return Err(self.error("expected a count such as {2}, {2,} or {2,4}"));
                    }
                    (min, max)
                }
                _ => return Ok(node),
            };
            self.at += 1;
            node = Node::Repeat(Box::new(node), min, max);
        }
    }

    fn text(&mut self) -> Result<Node, GrammarError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error("a text has no end")),
                Some('"') => {
                    self.at += 1;
                    return Ok(Node::Text(text));
                }
                Some(_) => text.push(self.character()?),
            }
        }
    }

    fn class(&mut self) -> Result<Node, GrammarError> {
        self.at += 1;
        let mut class = String::from(if self.take('^') { "[^" } else { "[" });
        let empty = class.len();
        loop {
            match self.peek() {
                None => return Err(self.error("a class has no end")),
                Some(']') if class.len() > empty => {
                    self.at += 1;
                    class.push(']');
                    return Ok(Node::Class(class));
                }
                Some(_) => class.push_str(&escaped(self.character()?)),
            }
            if self.peek() == Some('-') && self.chars.get(self.at + 1).is_some_and(|&c| c != ']') {
                self.at += 1;
                class.push('-');
                class.push_str(&escaped(self.character()?));
            }
        }
    }

    /// One character, escaped or not.
    fn character(&mut self) -> Result<char, GrammarError> {
        let c = self.chars[self.at];
        self.at += 1;
        if c != '\\' {
            return Ok(c);
        }
        let escape = self.peek().ok_or_else(|| self.error("an escape has no end"))?;
        self.at += 1;
        let digits = match escape {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => return Ok(other),
        };
        let end = (self.at + digits).min(self.chars.len());
        let code: String = self.chars[self.at..end].iter().collect();
        self.at = end;
        let code = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
        code.ok_or_else(|| self.error("an escape names no character"))
    }

    fn number(&mut self) -> Option<u32> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect::<String>().parse().ok()
    }

    fn name(&mut self) -> Option<String> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '-') {
            self.at += 1;
        }
        (self.at > start).then(|| self.chars[start..self.at].iter().collect())
    }

    /// Whether `name ::=` stands here.
    fn starts_rule(&mut self) -> bool {
        let before = self.at;
        let found = self.name().is_some() && {
            self.skip();
            self.chars[self.at..].starts_with(&[':', ':', '='])
        };
        self.at = before;
        found
    }

    /// Skips white space and comments.
    fn skip(&mut self) {
        while let Some(c) = self.peek() {
            match c {
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                c if c.is_whitespace() => self.at += 1,
                _ => return,
            }
        }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        self.at += usize::from(found);
        found
    }

    fn take_text(&mut self, text: &str) -> bool {
        text.chars().all(|c| self.take(c))
    }

    fn error(&self, message: &str) -> GrammarError {
        let line = 1 + self.chars[..self.at.min(self.chars.len())].iter().filter(|&&c| c == '\n').count();
        invalid(format!("EBNF grammar, line {line}: {message}"))
    }
}
