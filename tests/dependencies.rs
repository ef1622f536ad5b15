//! Licences, bans and duplicate versions of everything we build, against the tables of deny.toml. Reads Cargo's own index of what is
//! already downloaded; asks no network.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

fn root() -> &'static str {
    env!("CARGO_MANIFEST_DIR")
}

/// All packages of the lock file that this host builds.
fn packages() -> Vec<Package> {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", &host, "--manifest-path"])
        .arg(format!("{}/Cargo.toml", root()))
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo writes JSON");
    let text = |value: &Value| value.as_str().map(str::to_string);
    let package = |p: &Value| Package {
        name: text(&p["name"]).expect("name"),
        version: text(&p["version"]).expect("version"),
        license: text(&p["license"]),
        source: text(&p["source"]),
    };
    metadata["packages"].as_array().expect("packages").iter().map(package).collect()
}

fn deny() -> toml::Table {
    let text = std::fs::read_to_string(format!("{}/deny.toml", root())).expect("deny.toml");
    text.parse().expect("deny.toml is TOML")
}

/// (name, reason) of a list of tables.
fn rows(list: &toml::Value) -> Vec<(String, String)> {
    let text = |row: &toml::Value, key: &str| row.get(key).and_then(|v| v.as_str()).unwrap_or("").to_string();
    list.as_array().expect("a list").iter().map(|row| (text(row, "name"), text(row, "reason"))).collect()
}

/// Whether an SPDX expression can be satisfied with allowed licences. `/` is the old way to write OR.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut tokens = expression.split_whitespace().peekable();
    let answer = any_of(&mut tokens, allowed);
    answer && tokens.next().is_none()
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(tokens: &mut Tokens<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut answer = all_of(tokens, allowed);
    while tokens.next_if_eq(&"OR").is_some() {
        answer |= all_of(tokens, allowed);
    }
    answer
}

fn all_of(tokens: &mut Tokens<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut answer = one(tokens, allowed);
    while tokens.next_if_eq(&"AND").is_some() {
        answer &= one(tokens, allowed);
    }
    answer
}

fn one(tokens: &mut Tokens<'_>, allowed: &BTreeSet<String>) -> bool {
    if tokens.next_if_eq(&"(").is_some() {
        let answer = any_of(tokens, allowed);
        return tokens.next() == Some(")") && answer;
    }
    let mut licence = tokens.next().unwrap_or("").to_string();
    if tokens.next_if_eq(&"WITH").is_some() {
        licence = format!("{licence} WITH {}", tokens.next().unwrap_or(""));
    }
    allowed.contains(&licence)
}

#[test]
fn licences_are_permissive() {
    let deny = deny();
    let list = deny["licenses"]["allow"].as_array().expect("licenses.allow");
    let allowed: BTreeSet<String> = list.iter().map(|v| v.as_str().expect("a string").to_string()).collect();
    for package in packages() {
        let licence = package.license.as_deref().unwrap_or("none");
        assert!(satisfied(licence, &allowed), "{} {} has licence `{licence}`; allowed: {allowed:?}", package.name, package.version);
    }
}

#[test]
fn banned_crates_stay_out() {
    let banned: BTreeMap<String, String> = rows(&deny()["bans"]["deny"]).into_iter().collect();
    for package in packages() {
        if let Some(reason) = banned.get(&package.name) {
            panic!("{} {} is banned: {reason}", package.name, package.version);
        }
    }
}

#[test]
fn duplicates_are_known() {
    let known = rows(&deny()["bans"]["skip"]);
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        versions.entry(package.name).or_default().insert(package.version);
    }
    for (name, versions) in versions.iter().filter(|(_, v)| v.len() > 1) {
        assert!(
            known.iter().any(|(k, _)| k == name),
            "{name} is built in versions {versions:?}; unify them, or give the reason in deny.toml"
        );
    }
    for (name, reason) in &known {
        assert!(!reason.is_empty(), "deny.toml: no reason for {name}");
        assert!(versions.get(name).is_some_and(|v| v.len() > 1), "deny.toml: {name} has one version only, drop its row");
    }
}

#[test]
fn sources_are_the_registry_and_this_repo() {
    for package in packages() {
        let ours = package.source.is_none();
        let registry = package.source.as_deref().is_some_and(|s| s.starts_with("registry+"));
        assert!(ours || registry, "{} comes from {:?}", package.name, package.source);
    }
}

#[test]
fn licence_expressions_are_read() {
    let allowed: BTreeSet<String> = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(String::from).into();
    let cases = [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("none", false),
        ("", false),
    ];
    for (expression, expected) in cases {
        assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
    }
}
