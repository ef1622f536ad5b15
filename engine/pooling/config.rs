//! What a folder says about pooling: config.json's architecture and the files of sentence-transformers (modules.json, the pooling module's
//! config.json, sentence_bert_config.json, config_sentence_transformers.json).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::device::encoder::Pooling;
use crate::error::Result;
use crate::models::encoder_families::is_encoder;
use crate::models::families::is_known_decoder;
use crate::models::limits::MAX_CONTEXT;
use crate::weights::json::{Fields, checkpoint_error, kind, read_object, read_optional, read_text};

/// What a pooling model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolingKind {
    /// Makes vectors of texts.
    Embedding,
    /// Scores documents against a query.
    Reranker,
}

/// How a model's hidden states become its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolingConfig {
    /// What it is for.
    pub kind: PoolingKind,
    /// Of a sequence's rows; a reranker's head has its own.
    pub pooling: Pooling,
    /// Folders of the layers between the pooled row and the vector, in their order.
    pub dense: Vec<PathBuf>,
    /// Vectors are divided by their length.
    pub normalize: bool,
    /// Text put in front of inputs, by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt of inputs for which none is named.
    pub default_prompt: Option<String>,
    /// Longest sequence that the checkpoint was made for, where its files say.
    pub max_seq_len: Option<usize>,
}

/// Endings of the names of decoders' architectures.
const CAUSAL: &str = "ForCausalLM";
const BARE: &str = "Model";
const CLASSIFIER: &str = "ForSequenceClassification";
/// Most entries of a list of modules or prompts.
const MAX_ENTRIES: usize = 256;

/// What the model of a folder or file is for, as its files say; None: it generates text.
///
/// # Errors
/// A file is damaged.
pub fn detect(path: &Path) -> Result<Option<PoolingKind>> {
    let config = path.join("config.json");
    let Some(map) = (if path.is_dir() { read_optional(&config)? } else { None }) else { return Ok(None) };
    let architecture = architecture(&Fields::new(&config, map))?.unwrap_or_default();
    if is_encoder(&architecture) {
        return Ok(Some(if architecture.ends_with(CLASSIFIER) { PoolingKind::Reranker } else { PoolingKind::Embedding }));
    }
    let is_bare = architecture.ends_with(BARE) && is_known_decoder(&architecture);
    if !architecture.ends_with(CAUSAL) && !is_bare {
        return Ok(None);
    }
    let is_cross_encoder = match sentence_transformers(path)? {
        Some(fields) => fields.opt_text("model_type")? == Some("CrossEncoder"),
        None => false,
    };
    Ok(match (is_cross_encoder, is_bare || path.join("modules.json").is_file()) {
        (true, _) => Some(PoolingKind::Reranker),
        (false, true) => Some(PoolingKind::Embedding),
        (false, false) => None,
    })
}

/// The first architecture of a config.json.
pub(super) fn architecture(fields: &Fields) -> Result<Option<String>> {
    let list = fields.opt_list("architectures", 16)?.unwrap_or_default();
    Ok(list.first().and_then(Value::as_str).map(str::to_owned))
}

impl PoolingConfig {
    /// Reads the files of `folder`. `fallback`: how rows are pooled where no file says.
    ///
    /// # Errors
    /// A file is damaged, or asks for a module that is not known.
    pub fn read(folder: &Path, kind: PoolingKind, fallback: Pooling) -> Result<PoolingConfig> {
        let modules = Modules::read(folder)?;
        let pooling = match &modules.pooling {
            Some(file) => read_pooling(file)?.unwrap_or(fallback),
            None => fallback,
        };
        let (prompts, default_prompt) = read_prompts(folder)?;
        let Modules { dense, normalize, .. } = modules;
        Ok(PoolingConfig { kind, pooling, dense, normalize, prompts, default_prompt, max_seq_len: read_max_len(folder)? })
    }
}

/// What modules.json lists behind the transformer.
struct Modules {
    /// The pooling module's config.json.
    pooling: Option<PathBuf>,
    dense: Vec<PathBuf>,
    normalize: bool,
}

impl Modules {
    fn read(folder: &Path) -> Result<Modules> {
        let path = folder.join("modules.json");
        if !path.exists() {
            let pooling = folder.join("1_Pooling").join("config.json");
            return Ok(Modules { pooling: pooling.is_file().then_some(pooling), dense: Vec::new(), normalize: true });
        }
        let bad = |reason: String| checkpoint_error(&path, reason);
        let list: Value = serde_json::from_str(&read_text(&path)?).map_err(|error| bad(format!("is not valid JSON: {error}")))?;
        let Some(list) = list.as_array().filter(|list| list.len() <= MAX_ENTRIES) else {
            return Err(bad(format!("holds {}, expected a list of at most {MAX_ENTRIES} modules", kind(&list))));
        };
        let mut modules = Modules { pooling: None, dense: Vec::new(), normalize: false };
        for (idx, module) in list.iter().enumerate() {
            let text = |key: &str| module.get(key).and_then(Value::as_str);
            let name = text("type").and_then(|name| name.rsplit('.').next()).unwrap_or_default();
            let place = text("path").unwrap_or_default();
            if Path::new(place).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                return Err(bad(format!("`[{idx}].path` is `{place}`, expected a folder below this one")));
            }
            match name {
                "Transformer" => {}
                "Pooling" => modules.pooling = Some(folder.join(place).join("config.json")),
                "Dense" if modules.pooling.is_none() || modules.normalize => {
                    return Err(bad(format!("`[{idx}].type` is `Dense`, expected it between Pooling and Normalize")));
                }
                "Dense" => modules.dense.push(folder.join(place)),
                "Normalize" => modules.normalize = true,
                other => return Err(bad(format!("`[{idx}].type` is `{other}`, expected Transformer, Pooling, Dense or Normalize"))),
            }
        }
        Ok(modules)
    }
}

fn read_pooling(path: &Path) -> Result<Option<Pooling>> {
    let fields = Fields::new(path, read_object(path)?);
    if fields.opt_flag("include_prompt")? == Some(false) {
        return Err(fields.error("include_prompt", "is false, which is not supported"));
    }
    let by_name = |name: &str| match name {
        "cls" => Some(Pooling::Cls),
        "lasttoken" => Some(Pooling::Last),
        "mean" => Some(Pooling::Mean),
        "max" => Some(Pooling::Max),
        "mean_sqrt_len_tokens" => Some(Pooling::MeanSqrtLen),
        "weightedmean" => Some(Pooling::WeightedMean),
        _ => None,
    };
    if let Some(name) = fields.opt_text("pooling_mode")? {
        let known = "cls, lasttoken, mean, max, mean_sqrt_len_tokens, weightedmean";
        return by_name(name).map(Some).ok_or_else(|| fields.error("pooling_mode", format_args!("is `{name}`, expected one of {known}")));
    }
    let switches = [
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_lasttoken", Pooling::Last),
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_max_tokens", Pooling::Max),
        ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
        ("pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
    ];
    let mut chosen = None;
    for (key, pooling) in switches {
        if fields.opt_flag(key)? == Some(true) && chosen.replace(pooling).is_some() {
            return Err(fields.error(key, "is true beside another mode, expected one"));
        }
    }
    Ok(chosen)
}

fn sentence_transformers(folder: &Path) -> Result<Option<Fields>> {
    let path = folder.join("config_sentence_transformers.json");
    Ok(read_optional(&path)?.map(|map| Fields::new(&path, map)))
}

fn read_prompts(folder: &Path) -> Result<(BTreeMap<String, String>, Option<String>)> {
    let mut prompts = BTreeMap::new();
    let Some(fields) = sentence_transformers(folder)? else { return Ok((prompts, None)) };
    if let Some(map) = fields.opt_object("prompts")? {
        for name in map.keys(MAX_ENTRIES)? {
            if let Some(prompt) = map.opt_text(&name)? {
                prompts.insert(name.clone(), prompt.to_owned());
            }
        }
    }
    let default = fields.opt_text("default_prompt_name")?.map(str::to_owned);
    if let Some(name) = default.as_ref().filter(|name| !prompts.contains_key(*name)) {
        return Err(fields.error("default_prompt_name", format_args!("is `{name}`, which is no key of `prompts`")));
    }
    Ok((prompts, default))
}

/// The smallest length that any of the files gives.
fn read_max_len(folder: &Path) -> Result<Option<usize>> {
    let mut shortest: Option<usize> = None;
    for name in ["sentence_bert_config.json", "tokenizer_config.json"] {
        let path = folder.join(name);
        let Some(map) = read_optional(&path)? else { continue };
        let key = if name == "tokenizer_config.json" { "model_max_length" } else { "max_seq_length" };
        // Tokenisers without a limit write 1e30.
        let len = map.get(key).and_then(Value::as_f64).filter(|len| *len >= 1.0 && *len <= MAX_CONTEXT as f64).map(|len| len as usize);
        shortest = match (shortest, len) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    Ok(shortest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        folder
    }

    const MODULES: &str = r#"[{"idx":0,"path":"","type":"sentence_transformers.models.Transformer"},
        {"idx":1,"path":"1_Pooling","type":"sentence_transformers.models.Pooling"},
        {"idx":2,"path":"2_Normalize","type":"sentence_transformers.models.Normalize"}]"#;

    fn read(files: &[(&str, &str)]) -> Result<PoolingConfig> {
        PoolingConfig::read(folder(files).path(), PoolingKind::Embedding, Pooling::Mean)
    }

    #[test]
    fn modules_pooling_prompts_and_length_are_read() {
        let prompts = r#"{"prompts":{"query":"Q: ","document":""},"default_prompt_name":"query"}"#;
        let config = read(&[
            ("modules.json", MODULES),
            ("1_Pooling/config.json", r#"{"pooling_mode_cls_token":false,"pooling_mode_lasttoken":true}"#),
            ("sentence_bert_config.json", r#"{"max_seq_length":256}"#),
            ("tokenizer_config.json", r#"{"model_max_length":512}"#),
            ("config_sentence_transformers.json", prompts),
        ])
        .expect("reads");
        assert_eq!((config.pooling, config.normalize, config.max_seq_len), (Pooling::Last, true, Some(256)));
        assert_eq!((config.prompts["query"].as_str(), config.default_prompt.as_deref()), ("Q: ", Some("query")));
    }

    #[test]
    fn without_files_vectors_are_normalised_and_pooled_as_usual() {
        let config = read(&[("tokenizer_config.json", r#"{"model_max_length":1e30}"#)]).expect("reads");
        assert_eq!((config.pooling, config.normalize, config.max_seq_len), (Pooling::Mean, true, None));
        let plain = read(&[("modules.json", r#"[{"path":"","type":"x.Transformer"}]"#)]).expect("reads");
        assert!(!plain.normalize, "modules.json lists no Normalize");
        let newer = read(&[("1_Pooling/config.json", r#"{"pooling_mode":"cls"}"#)]).expect("reads");
        assert_eq!(newer.pooling, Pooling::Cls);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (files, expected) in [
            (vec![("modules.json", r#"[{"path":"2_Dense","type":"a.Dense"}]"#)], "`[0].type` is `Dense`, expected it between"),
            (vec![("modules.json", r#"[{"path":"2_CNN","type":"a.CNN"}]"#)], "`[0].type` is `CNN`"),
            (vec![("modules.json", r#"[{"path":"../x","type":"a.Pooling"}]"#)], "`[0].path` is `../x`"),
            (vec![("modules.json", "{}")], "holds an object"),
            (vec![("1_Pooling/config.json", r#"{"pooling_mode":"sum"}"#)], "`pooling_mode` is `sum`"),
            (vec![("1_Pooling/config.json", r#"{"include_prompt":false}"#)], "include_prompt"),
            (
                vec![("1_Pooling/config.json", r#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":true}"#)],
                "`pooling_mode_mean_tokens` is true beside another mode",
            ),
            (vec![("config_sentence_transformers.json", r#"{"default_prompt_name":"x"}"#)], "`default_prompt_name` is `x`"),
        ] {
            let message = read(&files).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn kinds_are_detected_by_architecture_and_files() {
        let check = |files: &[(&str, &str)], expected: Option<PoolingKind>| {
            assert_eq!(detect(folder(files).path()).expect("reads"), expected, "{files:?}");
        };
        check(&[("config.json", r#"{"architectures":["BertModel"]}"#)], Some(PoolingKind::Embedding));
        check(&[("config.json", r#"{"architectures":["XLMRobertaForSequenceClassification"]}"#)], Some(PoolingKind::Reranker));
        check(&[("config.json", r#"{"architectures":["ModernBertForMaskedLM"]}"#)], Some(PoolingKind::Embedding));
        let decoder = ("config.json", r#"{"architectures":["Qwen3ForCausalLM"]}"#);
        check(&[decoder], None);
        check(&[decoder, ("modules.json", "[]")], Some(PoolingKind::Embedding));
        let cross = ("config_sentence_transformers.json", r#"{"model_type":"CrossEncoder"}"#);
        check(&[decoder, ("modules.json", "[]"), cross], Some(PoolingKind::Reranker));
        check(&[("config.json", r#"{"architectures":["Qwen3Model"]}"#)], Some(PoolingKind::Embedding));
        check(&[("config.json", r#"{"architectures":["T5Model"]}"#)], None);
        check(&[], None);
    }
}
