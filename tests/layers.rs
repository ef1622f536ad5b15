//! Which crate may know which: arrows point one way, and some names stay out of some layers. Read from the manifests.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// (crate, crates of ours it may name). A crate that is not here fails the test.
const ARROWS: &[(&str, &[&str])] = &[
    ("pagoda-scheduler", &[]),
    ("pagoda-kernels", &[]),
    ("pagoda-engine", &["pagoda-scheduler", "pagoda-kernels"]),
    ("pagoda-backends", &["pagoda-engine"]),
    ("pagoda-server", &["pagoda-backends"]),
    ("pagoda", &["pagoda-server", "pagoda-backends", "pagoda-engine", "pagoda-scheduler", "pagoda-kernels"]),
];

/// (crate, what it must not depend on, why). `*` is everything. Test-only dependencies are free.
const BANNED: &[(&str, &[&str], &str)] = &[
    ("pagoda-scheduler", &["*"], "pure: no IO, clock, threads, randomness or serde"),
    ("pagoda-kernels", &["tokio", "serde", "serde_json", "rayon", "hyper", "axum"], "FFI and launch configuration alone"),
    ("pagoda-engine", &["hyper", "hyper-util", "axum", "tokio", "tower", "http", "ureq"], "knows no wire and no network"),
    ("pagoda-engine", &["cudarc"], "CUDA stays in kernels; the CUDA device speaks to that"),
    ("pagoda-backends", &["axum", "cudarc"], "serves nobody and launches nothing"),
    ("pagoda-server", &["cudarc", "memmap2", "tokenizers", "pagoda-engine", "pagoda-scheduler"], "speaks to backends alone"),
];

/// Dependencies of every member: (crate, dependency), without test-only ones.
fn edges() -> Vec<(String, String)> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo writes JSON");
    let text = |value: &Value| value.as_str().expect("a string").to_string();
    let packages = metadata["packages"].as_array().expect("packages");
    let of = |package: &Value| {
        let dependencies = package["dependencies"].as_array().expect("dependencies").iter();
        dependencies.filter(|d| d["kind"].is_null()).map(|d| (text(&package["name"]), text(&d["name"]))).collect::<Vec<_>>()
    };
    let named: BTreeSet<String> = packages.iter().map(|p| text(&p["name"])).collect();
    let expected: BTreeSet<String> = ARROWS.iter().map(|row| row.0.to_string()).collect();
    assert_eq!(named, expected, "the crates of the workspace and the rows of ARROWS");
    packages.iter().flat_map(of).collect()
}

#[test]
fn arrows_point_one_way() {
    for (from, to) in edges().iter().filter(|(_, to)| to.starts_with("pagoda")) {
        let allowed = ARROWS.iter().find(|row| row.0 == from).expect("a row for each crate").1;
        assert!(allowed.contains(&to.as_str()), "{from} must not depend on {to}; allowed: {allowed:?}");
    }
}

#[test]
fn names_stay_out_of_layers() {
    for (from, to) in edges() {
        for (layer, banned, why) in BANNED.iter().filter(|row| row.0 == from) {
            assert!(!banned.contains(&"*") && !banned.contains(&to.as_str()), "{layer} must not use {to}: {why}");
        }
    }
}

/// `forbid` cannot be taken back further in, unlike the workspace's `deny`.
#[test]
fn pure_layers_forbid_unsafe_code() {
    for layer in ["scheduler", "server", "backends"] {
        let path = format!("{}/{layer}/lib.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(text.contains("#![forbid(unsafe_code)]"), "{layer}/lib.rs: expected #![forbid(unsafe_code)]");
    }
}
