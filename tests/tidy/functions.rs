//! Finds functions and their lengths by counting braces in blanked code: enough for sources that a formatter has been over.

use crate::source::{Source, is_word};

/// A function with a body.
pub struct Function {
    /// Its name.
    pub name: String,
    /// Index of its first line (of the signature, not of docs and attributes).
    pub start: usize,
    /// Lines from there to the closing brace.
    pub num_lines: usize,
}

/// Functions of a Rust or CUDA file, nested ones too.
pub fn functions(source: &Source) -> Vec<Function> {
    let is_cuda = source.extension() != "rs";
    let name_of = |line: &str| if is_cuda { cuda_name(line) } else { rust_name(line) };
    let mut found = Vec::new();
    let mut next = 0;
    for (start, line) in source.code.iter().enumerate() {
        if start < next {
            continue;
        }
        let Some(name) = name_of(line) else { continue };
        let Some(end) = body_end(&source.code[start..]) else { continue };
        found.push(Function { name, start, num_lines: end + 1 });
        if is_cuda {
            next = start + end + 1; // calls inside a body look like signatures
        }
    }
    found
}

/// The name behind `fn` when the line starts an item: only qualifiers come before.
fn rust_name(line: &str) -> Option<String> {
    let (before, after) = line.split_once("fn ")?;
    let qualifiers = ["pub", "crate", "super", "const", "async", "unsafe", "extern", "default", "in"];
    let only_qualifiers = before.split(|c: char| !is_word(c)).all(|word| word.is_empty() || qualifiers.contains(&word));
    let name: String = after.chars().take_while(|c| is_word(*c)).collect();
    (only_qualifiers && !name.is_empty()).then_some(name)
}

/// The word before the first parenthesis of a line that opens a block and is no statement.
fn cuda_name(line: &str) -> Option<String> {
    let signature = line.split_once('(')?.0;
    let words: Vec<&str> = signature.split(|c: char| !is_word(c)).filter(|w| !w.is_empty()).collect();
    let control = ["if", "for", "while", "switch", "return", "else", "do", "static_assert", "define", "case"];
    let is_statement = words.iter().any(|w| control.contains(w)) || signature.contains(['=', '.', '#']);
    (words.len() >= 2 && !is_statement).then(|| words[words.len() - 1].to_string())
}

/// Index of the line that closes the first block; None when a `;` comes before any `{`.
fn body_end(lines: &[String]) -> Option<usize> {
    let mut depth = 0usize;
    let mut brackets = 0i32;
    for (i, line) in lines.iter().enumerate() {
        for c in line.chars() {
            match c {
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets -= 1,
                '{' => depth += 1,
                '}' if depth <= 1 => return (depth == 1).then_some(i),
                '}' => depth -= 1,
                ';' if depth == 0 && brackets == 0 => return None,
                _ => {}
            }
        }
    }
    None
}
