//! Golden files: prompts with the greedy tokens and logprobs that Hugging Face transformers computed in f32 (see docs in each field).

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One file of tests/data/golden.
#[derive(Deserialize)]
pub struct Suite {
    /// Its name.
    pub suite: String,
    /// Prompts with answers.
    pub cases: Vec<Case>,
}

/// One prompt with its answer.
#[derive(Clone, Deserialize)]
pub struct Case {
    /// Name within the suite.
    pub id: String,
    /// The prompt.
    pub prompt_ids: Vec<u32>,
    /// Greedy tokens; EOS does not end them.
    pub greedy: Vec<u32>,
    /// Top-1 minus top-2 logprob at each step.
    pub gap: Vec<f32>,
    /// The five best (token, logprob) of the first steps.
    pub top5: Vec<Vec<(u32, f32)>>,
    /// What rounding every module's output to bf16 does to the logprobs above, at most.
    #[serde(default)]
    pub bf16_dlogprob: Option<f32>,
    /// Steps at which that rounding changes the best token.
    #[serde(default)]
    pub bf16_flips: Vec<usize>,
}

/// The folder tests/data: of this checkout, or where `PAGODA_TEST_DATA` says, for test binaries that were taken to another machine.
pub fn data_folder() -> PathBuf {
    std::env::var_os("PAGODA_TEST_DATA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"), PathBuf::from)
}

/// Reads tests/data/golden/NAME.json.
pub fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = data_folder().join("golden").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
