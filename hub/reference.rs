//! What a user may write for MODEL, parsed: a path, a hub id with an optional file, an alias, or nothing.

use std::path::{Path, PathBuf};

use super::HubError;

/// The model that runs when none is named.
pub const DEFAULT_MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// The model of embeddings that a Python package holds as well.
pub const EMBEDDING_MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// Short names of hub ids.
pub const ALIASES: &[(&str, &str)] = &[
    ("smollm2", DEFAULT_MODEL),
    ("smollm2-135m", DEFAULT_MODEL),
    ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    ("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct"),
    ("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct"),
    ("qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct"),
    ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct"),
    ("qwen2.5-14b", "Qwen/Qwen2.5-14B-Instruct"),
    ("qwen2.5-32b", "Qwen/Qwen2.5-32B-Instruct"),
    ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
    ("qwen3-1.7b", "Qwen/Qwen3-1.7B"),
    ("qwen3-4b", "Qwen/Qwen3-4B"),
    ("qwen3-8b", "Qwen/Qwen3-8B"),
    ("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B"),
    ("llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct"),
    ("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct"),
    ("llama3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"),
    ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3"),
    ("mixtral-8x7b", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    ("phi3-mini", "microsoft/Phi-3-mini-4k-instruct"),
    ("gemma2-2b", "google/gemma-2-2b-it"),
    ("gemma3-1b", "google/gemma-3-1b-it"),
    ("all-minilm-l6-v2", EMBEDDING_MODEL),
    ("all-minilm", EMBEDDING_MODEL),
    ("bge-small-en", "BAAI/bge-small-en-v1.5"),
    ("multilingual-e5-small", "intfloat/multilingual-e5-small"),
    ("gte-modernbert", "Alibaba-NLP/gte-modernbert-base"),
    ("qwen3-embedding-0.6b", "Qwen/Qwen3-Embedding-0.6B"),
    ("ms-marco-minilm-l6-v2", "cross-encoder/ms-marco-MiniLM-L6-v2"),
    ("bge-reranker-v2-m3", "BAAI/bge-reranker-v2-m3"),
    ("qwen3-reranker-0.6b", "Qwen/Qwen3-Reranker-0.6B"),
];

/// A parsed MODEL argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Nothing given.
    Default,
    /// A folder or file that exists.
    Path(PathBuf),
    /// A repository of the hub.
    Hub {
        /// `org/name`.
        id: String,
        /// After a colon: which .gguf of the repository (a file name or a part of it such as `Q4_K_M`).
        file: Option<String>,
    },
}

impl Reference {
    /// Reads what the user wrote. What exists as a path is one; names win over nothing else.
    ///
    /// # Errors
    /// `NoSuchPath` for what can only be a path, `UnknownModel` for the rest.
    pub fn parse(model: Option<&str>) -> Result<Reference, HubError> {
        let Some(model) = model.map(str::trim) else { return Ok(Reference::Default) };
        let path = Path::new(model);
        if !model.is_empty() && path.exists() {
            return Ok(Reference::Path(path.to_path_buf()));
        }
        let path_like = model.starts_with(['/', '.', '~']) || model.ends_with(".gguf") && !model.contains(':') || model.ends_with('/');
        if path_like {
            return Err(HubError::NoSuchPath(path.to_path_buf()));
        }
        if let Some((_, id)) = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(model)) {
            return Ok(Reference::Hub { id: (*id).into(), file: None });
        }
        let (id, file) = match model.split_once(':') {
            Some((id, file)) => (id, Some(file)),
            None => (model, None),
        };
        let valid = id.split('/').count() == 2 && id.split('/').all(is_name) && file.is_none_or(is_name);
        match valid {
            true => Ok(Reference::Hub { id: id.into(), file: file.map(str::to_string) }),
            false => Err(HubError::UnknownModel { model: model.into(), aliases: alias_list() }),
        }
    }

    pub(super) fn hub(id: &str) -> (String, Option<String>) {
        (id.to_string(), None)
    }
}

/// A part of a hub id that is also safe as a part of a path.
fn is_name(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !part.is_empty() && part.len() <= 96 && !part.starts_with('.') && !part.contains("..") && part.bytes().all(allowed)
}

fn alias_list() -> String {
    let names: Vec<&str> = ALIASES.iter().map(|(alias, _)| *alias).step_by(4).collect();
    format!("{}; all: `pagoda pull --help`", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub_id(id: &str, file: Option<&str>) -> Reference {
        Reference::Hub { id: id.into(), file: file.map(str::to_string) }
    }

    #[test]
    fn names_are_parsed() {
        let check = |input: &str, expected: Reference| assert_eq!(Reference::parse(Some(input)).expect(input), expected);
        assert_eq!(Reference::parse(None).expect("default"), Reference::Default);
        check("smollm2", hub_id(DEFAULT_MODEL, None));
        check("Qwen2.5-0.5B", hub_id("Qwen/Qwen2.5-0.5B-Instruct", None));
        check("org/name", hub_id("org/name", None));
        check("org/name-GGUF:Q4_K_M", hub_id("org/name-GGUF", Some("Q4_K_M")));
        check("org/name:model-Q8_0.gguf", hub_id("org/name", Some("model-Q8_0.gguf")));
    }

    #[test]
    fn bad_names_are_refused() {
        let message = |input: &str| Reference::parse(Some(input)).expect_err(input).to_string();
        for input in ["", "nonsense", "a/b/c", "a//b", "org/../x", "org/na me", "org/name:", "org/name:../x", "org/..", "-/é"] {
            assert!(message(input).starts_with("unknown model"), "{input}: {}", message(input));
        }
        for input in ["/no/such", "./no", "no-such.gguf", "~/x", "nosuch/"] {
            assert!(message(input).starts_with("no such model file or folder"), "{input}: {}", message(input));
        }
    }

    #[test]
    fn aliases_are_unique_and_parse_as_hub_ids() {
        let mut names: Vec<_> = ALIASES.iter().map(|(alias, _)| *alias).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALIASES.len());
        for (_, id) in ALIASES {
            assert!(id.split('/').count() == 2 && id.split('/').all(is_name), "{id}");
        }
    }
}
