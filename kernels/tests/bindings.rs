//! The committed bindings equal what bindgen makes of the header. Needs libclang, so it runs only with the feature `bindgen`:
//! `cargo test -p pagoda-kernels --features bindgen --test bindings`. With PAGODA_BLESS=1 it rewrites sys.rs instead.
#![cfg(feature = "bindgen")]

/// What sys.rs says above the generated part.
const HEAD: &str = "\
//! Declarations of include/pagoda.h, made by bindgen (feature `bindgen`) and committed, so that a build needs no libclang.
//! Not edited by hand: tests/bindings.rs compares it with a fresh one and, with PAGODA_BLESS=1, rewrites it.
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals)]

";

#[test]
fn committed_bindings_are_those_of_the_header() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/sys.rs");
    let made = include_str!(concat!(env!("OUT_DIR"), "/sys.rs"));
    let expected = format!("{HEAD}{}", rustfmt(made));
    if std::env::var_os("PAGODA_BLESS").is_some() {
        std::fs::write(path, &expected).expect("sys.rs is writable");
        return;
    }
    let committed = std::fs::read_to_string(path).expect("sys.rs");
    let first = committed.lines().zip(expected.lines()).position(|(a, b)| a != b).map_or(0, |line| line + 1);
    assert!(
        committed == expected,
        "sys.rs is not what bindgen makes of include/pagoda.h (first difference in line {first}); PAGODA_BLESS=1"
    );
}

/// Formats with the repo's own settings, as `cargo fmt` will.
fn rustfmt(source: &str) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../rustfmt.toml");
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path", config])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("rustfmt is a component of the toolchain");
    child.stdin.take().expect("piped").write_all(source.as_bytes()).expect("rustfmt reads");
    let out = child.wait_with_output().expect("rustfmt ends");
    assert!(out.status.success(), "rustfmt failed");
    String::from_utf8(out.stdout).expect("rustfmt writes UTF-8")
}
