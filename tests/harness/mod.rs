//! What golden and invariance tests share: recorded cases, the rules of comparison, and a driver of an engine in this process.
#![allow(dead_code, clippy::print_stdout)]

pub mod case;
pub mod compare;
pub mod drive;
pub mod forced;
pub mod gpu;

use std::path::Path;

use pagoda_engine::loader::{DeviceChoice, EngineOptions, LoadedModel, load};

use case::Suite;
use compare::{Precision, compare};

/// Loads a checkpoint with `options`.
pub fn engine(path: &Path, options: &EngineOptions) -> LoadedModel {
    load(path, options, &mut |_| {}).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Small enough that many tests may run side by side.
pub fn small_options() -> EngineOptions {
    EngineOptions { kv_cache_bytes: Some(32 << 20), threads: Some(1), ..EngineOptions::default() }
}

/// Runs all cases of suite `name` at once on the CPU and compares each.
pub fn check_suite(name: &str, path: &Path, options: &EngineOptions, precision: Precision) {
    let suite: Suite = case::read(name);
    let model = engine(path, &EngineOptions { device: DeviceChoice::Cpu, ..options.clone() });
    let answers = drive::run_together(&model.handle, suite.cases.iter().map(|c| drive::greedy(&c.prompt_ids, c.greedy.len())));
    let mut worst = 0.0f32;
    let mut faults = Vec::new();
    for (case, answer) in suite.cases.iter().zip(&answers) {
        match compare(case, answer, precision) {
            Ok(difference) => worst = worst.max(difference),
            Err(fault) => faults.push(format!("{} {}: {fault}", suite.suite, case.id)),
        }
    }
    println!("{name}: {} cases on {}, logprobs within {worst}, faults {}", answers.len(), model.device, faults.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
