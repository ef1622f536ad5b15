//! The repo's style as far as a machine can see it: sizes, heads, words, prints, unwraps. One test a rule; waivers in one table.

#[path = "tidy/functions.rs"]
mod functions;
#[path = "tidy/source.rs"]
mod source;

use source::{Source, is_word, repo_sources};

const MAX_FILE_LINES: usize = 400;
const MAX_FUNCTION_LINES: usize = 70;

/// (rule, path, reason). A waiver that nothing needs any more fails the test of its rule.
const WAIVERS: &[(&str, &str, &str)] = &[("file_lines", "kernels/sys.rs", "made by bindgen")];

/// (line counted from 1, what is wrong).
type Finding = (usize, String);

/// Runs `check` over all files that `applies` picks and reports everything at once.
fn enforce(rule: &str, applies: impl Fn(&Source) -> bool, check: impl Fn(&Source) -> Vec<Finding>) {
    let mut report = Vec::new();
    let mut used = Vec::new();
    for source in repo_sources().iter().filter(|s| applies(s)) {
        let findings = check(source);
        match WAIVERS.iter().find(|w| w.0 == rule && w.1 == source.path) {
            Some(waiver) if !findings.is_empty() => used.push(waiver),
            _ => report.extend(findings.iter().map(|(line, what)| format!("{}:{line}: {what}", source.path))),
        }
    }
    let unused = WAIVERS.iter().filter(|w| w.0 == rule && !used.contains(w));
    report.extend(unused.map(|w| format!("{}: the waiver of {rule} is not needed", w.1)));
    assert!(report.is_empty(), "{rule}:\n{}", report.join("\n"));
}

fn is_source(s: &Source) -> bool {
    matches!(s.extension(), "rs" | "cu" | "cuh" | "h" | "py" | "sh" | "")
}

fn is_rust(s: &Source) -> bool {
    s.extension() == "rs"
}

fn is_example(s: &Source) -> bool {
    s.path.split('/').any(|part| part == "examples")
}

/// Lines of product code that contain one of `needles`.
fn code_with(source: &Source, needles: &[&str]) -> Vec<Finding> {
    let hits = source.product_code().filter_map(|(i, line)| {
        let needle = needles.iter().find(|n| contains_word_start(line, n))?;
        Some((i + 1, format!("`{needle}`")))
    });
    hits.collect()
}

/// `needle` occurs in `line` and is not the tail of a longer identifier.
fn contains_word_start(line: &str, needle: &str) -> bool {
    line.match_indices(needle).any(|(at, _)| !needle.starts_with(is_word) || !line[..at].ends_with(is_word))
}

/// Lines of the raw text that contain one of `needles`.
fn text_with(source: &Source, needles: &[&str]) -> Vec<Finding> {
    let hits = source.lines.iter().enumerate().filter_map(|(i, line)| {
        let needle = needles.iter().find(|n| contains_word_start(line, n))?;
        Some((i + 1, format!("`{needle}`")))
    });
    hits.collect()
}

#[test]
fn files_have_at_most_400_lines() {
    enforce("file_lines", is_source, |s| match s.lines.len() {
        n if n > MAX_FILE_LINES => vec![(n, format!("{n} lines, at most {MAX_FILE_LINES}"))],
        _ => Vec::new(),
    });
}

#[test]
fn functions_have_at_most_70_lines() {
    enforce(
        "function_lines",
        |s| matches!(s.extension(), "rs" | "cu" | "cuh"),
        |s| {
            let long = functions::functions(s).into_iter().filter(|f| f.num_lines > MAX_FUNCTION_LINES);
            long.map(|f| (f.start + 1, format!("`{}` has {} lines, at most {MAX_FUNCTION_LINES}", f.name, f.num_lines))).collect()
        },
    );
}

#[test]
fn rust_files_begin_with_their_purpose() {
    enforce("head", is_rust, |s| match s.lines.first() {
        Some(first) if first.starts_with("//! ") && first.len() > 20 => Vec::new(),
        _ => vec![(1, "expected `//! purpose` in the first line".to_string())],
    });
}

#[test]
fn nothing_is_left_to_do() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    enforce("left_to_do", |_| true, |s| text_with(s, &words));
}

#[test]
fn only_the_command_line_prints() {
    let prints = |s: &Source| !(s.path.starts_with("cli/") || is_example(s) || s.path == "main.rs" || s.path == "build.rs");
    enforce("prints", |s| is_rust(s) && prints(s), |s| code_with(s, &["println!", "print!", "eprintln!", "eprint!", "dbg!"]));
}

#[test]
fn product_code_does_not_unwrap() {
    enforce("unwrap", |s| is_rust(s) && !is_example(s), |s| code_with(s, &[".unwrap()", "unwrap_unchecked"]));
}

#[test]
fn only_the_edge_reads_the_environment() {
    let below = |s: &Source| ["scheduler/", "kernels/", "engine/", "backends/", "lib.rs"].iter().any(|d| s.path.starts_with(d));
    enforce("environment", |s| is_rust(s) && below(s), |s| code_with(s, &["env::var", "env::vars", "env::set_var"]));
}

#[test]
fn names_say_what_they_hold() {
    let vague = ["mgr", "utils", "helpers", "misc"];
    enforce("vague_names", is_source, |s| {
        let named = s.path.split(['/', '.', '_']).filter(|part| vague.contains(part)).map(|part| (1, format!("file name part `{part}`")));
        let used = s.code.iter().enumerate().flat_map(|(i, line)| {
            let words = line.split(|c: char| !c.is_alphanumeric());
            words.filter(|w| vague.contains(w)).map(move |w| (i + 1, format!("name part `{w}`"))).collect::<Vec<_>>()
        });
        // The rule has to spell the words it looks for.
        named.chain(used).filter(|_| s.path != "tests/tidy.rs").collect()
    });
}

#[test]
fn no_package_registry_is_named() {
    let hosts = [
        concat!("crates", ".io"),
        concat!("pypi", ".org"),
        concat!("python", "hosted.org"),
        concat!("npm", "js.com"),
        concat!("npm", "js.org"),
        concat!("deb", "ian.org"),
        concat!("ubuntu", ".com"),
    ];
    enforce("registry_hosts", |_| true, |s| text_with(s, &hosts));
}

#[test]
fn lines_end_where_they_end() {
    enforce(
        "trailing_space",
        |_| true,
        |s| {
            let ends = |(i, line): (usize, &String)| (line.trim_end() != line).then(|| (i + 1, "white space at the end".to_string()));
            s.lines.iter().enumerate().filter_map(ends).collect()
        },
    );
}

#[test]
fn the_scanner_sees_code_and_nothing_else() {
    let cases = [
        ("let a = \"x.unwrap() {\"; // {", "leta=;"),
        ("a r#\"\"{\"# }", "a}"),
        ("let c = '{'; let l: &'a str = '\\'';", "letc=;letl:&'astr=;"),
        ("/* { */ } r#fn", "}r#fn"),
    ];
    for (text, expected) in cases {
        let blanked = source::blank(text);
        assert_eq!(blanked.chars().filter(|c| *c != ' ').collect::<String>(), expected, "{text}");
        assert_eq!(blanked.chars().count(), text.chars().count(), "{text}");
    }
    let source = Source::new("engine/x.rs", "fn a() {\n    b()\n}\n#[cfg(test)]\nmod tests {\n    fn c() {}\n}\n");
    assert_eq!(source.test_start, 3);
    let found = functions::functions(&source);
    assert_eq!(found.iter().map(|f| (f.name.as_str(), f.num_lines)).collect::<Vec<_>>(), [("a", 3), ("c", 1)]);
}

#[test]
fn the_rules_notice_faults() {
    let source = Source::new("engine/x.rs", "fn a() { b.unwrap(); println!(\"{}\", 1); std::env::var(\"X\"); eprintln!(); }\n");
    assert_eq!(code_with(&source, &[".unwrap()"]).len(), 1);
    assert_eq!(code_with(&source, &["println!"]).len(), 1);
    assert_eq!(code_with(&source, &["env::var"]).len(), 1);
    assert_eq!(code_with(&source, &["ln!"]).len(), 0);
    let long = format!("fn long() {{\n{}}}\n", "    x();\n".repeat(MAX_FUNCTION_LINES));
    assert_eq!(functions::functions(&Source::new("a.rs", &long))[0].num_lines, MAX_FUNCTION_LINES + 2);
}
