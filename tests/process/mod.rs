//! The binary as a process of its own: how to start it, what it must say when it fails, and a server that is stopped in the end.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use pagoda_engine::testing::write_tiny;
use tempfile::TempDir;

/// The binary in an environment of its own: an empty cache, no network, no variables of the caller.
pub fn pagoda(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pagoda"));
    command.args(arguments).env_clear().env("HOME", home).env("HF_ENDPOINT", "http://127.0.0.1:9").env("PATH", "/no/such/folder");
    command.stdin(Stdio::null());
    command
}

/// A folder of its own.
pub fn home() -> TempDir {
    tempfile::tempdir().expect("folder")
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Fails with `code` and one line that contains all `parts`.
pub fn check_failure(output: &Output, code: i32, parts: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("pagoda: ")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    for part in parts {
        assert!(lines[0].contains(part), "`{part}` in `{}`", lines[0]);
    }
}

/// The command fails with `code` and says all `parts` in one line.
pub fn fails(arguments: &[&str], code: i32, parts: &[&str]) {
    let home = home();
    let output = pagoda(home.path(), arguments).output().expect("runs");
    check_failure(&output, code, parts);
    assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
}

/// A served tiny model; killed when dropped.
pub struct Served {
    /// The process.
    pub child: Child,
    /// host:port.
    pub address: String,
    /// What it said on stdout until it was ready.
    pub lines: Vec<String>,
    /// File of its stderr.
    pub stderr: PathBuf,
    _folder: TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves a tiny model with further arguments.
pub fn serve(extra: &[&str]) -> Served {
    serve_with(extra, |_| {})
}

/// Serves a tiny model whose folder `prepare` may change before.
pub fn serve_with(extra: &[&str], prepare: impl Fn(&Path)) -> Served {
    let folder = home();
    let tiny: PathBuf = write_tiny(folder.path(), "llama", 1);
    prepare(&tiny);
    serve_model(folder, &tiny, extra)
}

/// Serves the model at `path`, under the tiny one's name; `folder` is its home.
pub fn serve_model(folder: TempDir, path: &Path, extra: &[&str]) -> Served {
    let path = path.display().to_string();
    let mut arguments = vec!["serve", "--port", "0", "--served-model-name", "tiny,alias", &path];
    arguments.extend(extra);
    start(folder, &arguments)
}

/// Runs `pagoda` with `arguments`, which serve something, until it is ready.
pub fn start(folder: TempDir, arguments: &[&str]) -> Served {
    let stderr = folder.path().join("stderr");
    let errors = fs::File::create(&stderr).expect("a file");
    let mut child = pagoda(folder.path(), arguments).stdout(Stdio::piped()).stderr(errors).spawn().expect("runs");
    let mut reader = BufReader::new(child.stdout.take().expect("stdout"));
    let mut lines = Vec::new();
    let mut line = String::new();
    while reader.read_line(&mut line).expect("stdout") > 0 {
        lines.push(std::mem::take(&mut line).trim_end().to_string());
        let is_last = if arguments.contains(&"--try") { "serving; Ctrl-C ends" } else { "  curl " };
        if lines.last().is_some_and(|line| line.starts_with(is_last)) {
            break;
        }
    }
    assert!(!lines.is_empty(), "{}", fs::read_to_string(&stderr).unwrap_or_default());
    let address = lines[0].rsplit("http://").next().expect("address").to_string();
    Served { child, address, lines, stderr, _folder: folder }
}
