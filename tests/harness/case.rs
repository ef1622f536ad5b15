//! Golden files: prompts with the greedy tokens and logprobs that Hugging Face transformers computed in f32 (see docs in each field).

use std::path::Path;

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

/// Reads tests/data/golden/NAME.json. A test binary that was taken to another machine finds it by the variable that cargo sets.
pub fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let repo = std::env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").to_string());
    let path = Path::new(&repo).join("tests/data/golden").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
