//! A source file as tidy's rules see it: its lines, and the same lines with comments and literals blanked out.

use std::path::{Path, PathBuf};

/// Folders without sources of ours, wherever they are.
const SKIPPED_DIRS: [&str; 8] = ["target", ".git", ".cuda", ".carry", ".venv", "__pycache__", "node_modules", "data"];
/// Files that others write.
const SKIPPED_FILES: [&str; 1] = ["Cargo.lock"];
const TEXT_EXTENSIONS: [&str; 14] = ["rs", "cu", "cuh", "h", "py", "sh", "toml", "md", "yml", "yaml", "jinja", "html", "js", "css"];

/// One text file of the repo.
pub struct Source {
    /// Relative to the root, with `/`.
    pub path: String,
    /// As they are.
    pub lines: Vec<String>,
    /// Without comments, strings and character literals (Rust, CUDA and C); otherwise the same as `lines`.
    pub code: Vec<String>,
    /// Line at which test code starts: 0 in a test file, the number of lines where there is none.
    pub test_start: usize,
}

impl Source {
    /// From its text.
    pub fn new(path: &str, text: &str) -> Source {
        let lines: Vec<String> = text.lines().map(str::to_string).collect();
        let code = if is_c_like(path) { blank(text).lines().map(str::to_string).collect() } else { lines.clone() };
        let test_start = if is_test_path(path) { 0 } else { test_module(&code).unwrap_or(lines.len()) };
        Source { path: path.to_string(), lines, code, test_start }
    }

    /// File name extension, empty without one.
    pub fn extension(&self) -> &str {
        Path::new(&self.path).extension().and_then(|x| x.to_str()).unwrap_or("")
    }

    /// Lines of product code with their indices.
    pub fn product_code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.iter().map(String::as_str).enumerate().take(self.test_start)
    }
}

fn is_c_like(path: &str) -> bool {
    [".rs", ".cu", ".cuh", ".h"].iter().any(|end| path.ends_with(end))
}

fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| ["tests", "tests.rs", "benches", "fuzz"].contains(&part))
}

/// The line of `#[cfg(test)]` above a module with a body.
fn test_module(code: &[String]) -> Option<usize> {
    let starts_module = |i: usize| code.get(i + 1).is_some_and(|l| l.trim_start().starts_with("mod ") && l.trim_end().ends_with('{'));
    (0..code.len()).find(|&i| code[i].trim() == "#[cfg(test)]" && starts_module(i))
}

/// Replaces comments and literals by spaces, keeping lines and columns (in characters).
pub fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = token_end(&chars, i);
        let keep = end == i;
        let end = end.max(i + 1);
        for &c in &chars[i..end] {
            out.push(if keep || c == '\n' { c } else { ' ' });
        }
        i = end;
    }
    out
}

/// End of the comment or literal that starts at `i`; `i` when none does.
fn token_end(chars: &[char], i: usize) -> usize {
    let at = |k: usize| chars.get(k).copied().unwrap_or('\0');
    match (at(i), at(i + 1)) {
        ('/', '/') => find(chars, i, |k| at(k) == '\n'),
        ('/', '*') => find(chars, i + 2, |k| at(k) == '*' && at(k + 1) == '/') + 2,
        ('r', '"' | '#') if i == 0 || !is_word(at(i - 1)) || at(i - 1) == 'b' => raw_string_end(chars, i),
        ('"', _) => quoted_end(chars, i, '"'),
        ('\'', '\\') => quoted_end(chars, i, '\''),
        ('\'', _) if at(i + 2) == '\'' => i + 3,
        _ => i,
    }
    .min(chars.len())
}

fn raw_string_end(chars: &[char], i: usize) -> usize {
    let hashes = chars[i + 1..].iter().take_while(|c| **c == '#').count();
    let open = i + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return i; // a raw identifier
    }
    let closes = |k: usize| chars[k] == '"' && chars[k + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    find(chars, open + 1, closes) + 1 + hashes
}

fn quoted_end(chars: &[char], i: usize, quote: char) -> usize {
    let mut k = i + 1;
    while k < chars.len() && chars[k] != quote {
        k += if chars[k] == '\\' { 2 } else { 1 };
    }
    k + 1
}

fn find(chars: &[char], from: usize, stop: impl Fn(usize) -> bool) -> usize {
    (from..chars.len()).find(|&k| stop(k)).unwrap_or(chars.len())
}

/// Part of an identifier.
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// All text files of the repo, sorted by path.
pub fn repo_sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    walk(root, &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let relative = path.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{relative}: {e}"));
        Source::new(&relative, &text)
    };
    let sources: Vec<Source> = paths.iter().map(read).collect();
    assert!(sources.len() > 40, "only {} files found below {}", sources.len(), root.display());
    sources
}

fn walk(dir: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("readable directory entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("").to_string();
        let extension = path.extension().and_then(|x| x.to_str()).unwrap_or("");
        if path.is_dir() {
            if !SKIPPED_DIRS.contains(&name.as_str()) {
                walk(&path, paths);
            }
        } else if TEXT_EXTENSIONS.contains(&extension) && !SKIPPED_FILES.contains(&name.as_str()) || is_script(dir, extension) {
            paths.push(path);
        }
    }
}

/// Scripts without an extension: `.ci/run`, `scripts/*`.
fn is_script(dir: &Path, extension: &str) -> bool {
    extension.is_empty() && dir.file_name().is_some_and(|d| d == ".ci" || d == "scripts")
}
