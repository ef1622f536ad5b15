//! Configuration as a user meets it: which source wins, and what a wrong value says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pagoda_backends::ToolDialect;
use pagoda_backends::config::Config;
use pagoda_backends::options::OPTIONS;
use pagoda_backends::registry::{BackendKind, ModelSource, ModelType};
use pagoda_backends::settings::{ConfigError, Sources};

fn resolve(cli: &[(&'static str, &str)], env: &[(&str, &str)], file: Option<&str>) -> Result<Config, ConfigError> {
    let cli: BTreeMap<&'static str, String> = cli.iter().map(|(key, value)| (*key, value.to_string())).collect();
    let env: BTreeMap<String, String> = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let file = file.map(|text| (PathBuf::from("pagoda.toml"), text.to_string()));
    Config::resolve(&Sources { cli: &cli, env: &|name| env.get(name).cloned(), file })
}

#[test]
fn stronger_sources_win() {
    let port = |cli: &[(&'static str, &str)], env: &[(&str, &str)], file: Option<&str>| {
        let config = resolve(cli, env, file).expect("config");
        let origin = config.settings.iter().find(|setting| setting.spec.key == "port").map(|setting| setting.origin.to_string());
        (config.server.port, origin.unwrap_or_default())
    };
    let (cli, env, file) = (&[("port", "1")][..], &[("PORT", "2")][..], Some("port = 3"));
    assert_eq!(port(cli, env, file), (1, "command line".into()));
    assert_eq!(port(&[], env, file), (2, "environment variable PORT".into()));
    assert_eq!(port(&[], &[("PORT", "")], file), (3, "pagoda.toml".into()));
    assert_eq!(port(&[], &[], Some("host = \"::1\"")), (8000, "default".into()));
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = resolve(&[], &[], None).expect("defaults");
    assert_eq!((config.server.host.as_str(), config.server.port), ("127.0.0.1", 8000));
    assert!(config.server.api_keys.is_empty() && config.backend.is_none() && config.models.is_empty());
    let native = &config.native;
    assert_eq!((native.max_model_len, native.max_num_seqs, native.max_num_batched_tokens), (None, None, None));
    assert_eq!((native.block_size, native.max_waiting, native.tensor_parallel_size), (16, 1024, 1));
    assert!(native.prefix_caching && native.step_ahead && native.cuda_graphs);
    assert!(!native.restart_on_failure && !native.deterministic);
    assert!((native.memory_utilization - 0.9).abs() < 1e-6);
    assert_eq!(config.vllm_remote.timeout.as_secs(), 120);
}

#[test]
fn the_documented_variables_are_read() {
    let env = [
        ("LLM_BACKEND", "vllm_remote"),
        ("HF_DEVICE", "cuda"),
        ("HF_QUANTIZATION", "bitsandbytes"),
        ("HF_LOAD_4BIT", "true"),
        ("HF_FLASH_ATTENTION", "1"),
        ("VLLM_TENSOR_PARALLEL_SIZE", "2"),
        ("VLLM_GPU_MEMORY_UTILIZATION", "0.5"),
        ("VLLM_QUANTIZATION", "awq"),
        ("VLLM_MAX_MODEL_LEN", "4096"),
        ("VLLM_PREFIX_CACHING", "false"),
        ("VLLM_BATCH_INVARIANT", "1"),
        ("VLLM_REMOTE_URL", "http://127.0.0.1:9"),
        ("VLLM_REMOTE_API_KEY", "k1"),
        ("VLLM_REMOTE_MODEL", "m"),
        ("VLLM_REMOTE_TIMEOUT", "1.5"),
        ("REMOTE_OPENAI_URL", "http://127.0.0.1:8"),
        ("REMOTE_OPENAI_API_KEY", "k2"),
        ("REMOTE_OPENAI_MODEL", "n"),
        ("REMOTE_OPENAI_TIMEOUT", "7"),
        ("API_KEY", "sesame1, sesame2"),
        ("HOST", "0.0.0.0"),
        ("PORT", "9000"),
    ];
    let config = resolve(&[], &env, None).expect("config");
    assert_eq!(config.backend, Some(BackendKind::VllmRemote));
    assert_eq!((config.huggingface.device.as_str(), config.huggingface.quantization.as_deref()), ("cuda", Some("bitsandbytes")));
    assert!(config.huggingface.load_4bit && config.huggingface.flash_attention && !config.native.prefix_caching);
    assert_eq!((config.native.tensor_parallel_size, config.native.max_model_len), (2, Some(4096)));
    assert!(config.native.deterministic);
    assert_eq!(config.native.quantization.as_deref(), Some("awq"));
    assert_eq!(config.vllm_remote.url.as_deref(), Some("http://127.0.0.1:9"));
    assert_eq!((config.vllm_remote.timeout.as_millis(), config.vllm_remote.model.as_deref()), (1500, Some("m")));
    assert_eq!((config.remote_openai.api_key.as_deref(), config.remote_openai.model.as_deref()), (Some("k2"), Some("n")));
    assert_eq!(config.remote_openai.timeout.as_secs(), 7);
    let shown = format!("{config:?}");
    assert!(!shown.contains("\"k1\"") && !shown.contains("\"k2\""), "a key in {shown}");
    let shown = format!("{shown} {:?} {:?}", config.server, config.vllm_remote);
    assert!(!shown.contains("sesame") && !shown.contains("k1") && shown.contains("num_api_keys: 2"), "a key in {shown}");
    let keys = config.server.api_keys.join("|");
    assert_eq!((keys.as_str(), config.server.host.as_str(), config.server.port), ("sesame1|sesame2", "0.0.0.0", 9000));
}

#[test]
fn wrong_values_name_option_value_and_range() {
    let check = |cli: &[(&'static str, &str)], env: &[(&str, &str)], file: Option<&str>, expected: &str| {
        let message = resolve(cli, env, file).expect_err(expected).to_string();
        assert_eq!(message, expected);
        assert!(!message.contains('\n'));
    };
    check(&[("port", "x")], &[], None, "--port: `x` (command line): expected a whole number from 0 to 65535");
    check(&[], &[("PORT", "70000")], None, "--port: `70000` (environment variable PORT): expected a whole number from 0 to 65535");
    check(&[], &[], Some("port = -1"), "--port: `-1` (pagoda.toml): expected a whole number from 0 to 65535");
    check(&[("host", "nowhere")], &[], None, "--host: `nowhere` (command line): expected an IP address such as 127.0.0.1 or 0.0.0.0");
    let kinds = "expected one of huggingface, vllm_local, vllm_remote, remote_openai";
    check(&[], &[("LLM_BACKEND", "vllm")], None, &format!("--backend: `vllm` (environment variable LLM_BACKEND): {kinds}"));
    check(
        &[],
        &[("VLLM_PREFIX_CACHING", "maybe")],
        None,
        "--no-prefix-caching: `maybe` (environment variable VLLM_PREFIX_CACHING): expected true or false",
    );
    check(&[], &[], Some("prot = 1"), "pagoda.toml: unknown option `prot`; `pagoda doctor` lists the options");
    let message = resolve(&[], &[], Some("port = 1\nport = = 2")).expect_err("syntax").to_string();
    assert!(message.starts_with("pagoda.toml: line 2: ") && !message.contains('\n'), "{message}");
}

#[test]
fn models_are_read_and_checked() {
    let file = r#"
        [[models]]
        name = "small"
        hub_id = "org/small"
        aliases = ["s", "gpt-4o-mini"]
        context_length = 2048
        quantize_4bit = true
        tool_call_parser = "mistral"
        backend_type = "vllm_local"
        [[models]]
        name = "vectors"
        path = "/models/e5"
        type = "embedding"
    "#;
    let models = resolve(&[], &[], Some(file)).expect("config").models;
    assert_eq!(models[0].source, ModelSource::Hub("org/small".into()));
    assert_eq!((models[0].context_length, models[0].quantize_4bit, models[0].aliases.len()), (Some(2048), true, 2));
    assert_eq!((models[0].backend_type, models[0].model_type), (Some(BackendKind::VllmLocal), None));
    assert_eq!((models[0].tool_dialect, models[1].tool_dialect), (Some(ToolDialect::Mistral), None));
    assert_eq!((models[1].source.clone(), models[1].model_type), (ModelSource::Path("/models/e5".into()), Some(ModelType::Embedding)));

    let check = |entry: &str, expected: &str| {
        let message = resolve(&[], &[], Some(&format!("[[models]]\n{entry}"))).expect_err(entry).to_string();
        assert!(message.starts_with(expected), "{entry}: {message}");
    };
    check("hub_id = \"a/b\"", "models[0].name: missing");
    check("name = \"x\"", "models[0].hub_id: give exactly one of hub_id and path");
    check("name = \"x\"\npath = \"p\"\ntype = \"chat\"", "models[0].type: `chat`: expected causal_lm, embedding, reranker");
    check("name = \"x\"\npath = \"p\"\nbackend_type = \"tgi\"", "models[0].backend_type: `tgi`: expected huggingface");
    check("name = \"x\"\npath = \"p\"\ntool_call_parser = \"x\"", "models[0].tool_call_parser: `x`: expected auto, hermes, qwen3_coder");
    check("name = \"x\"\npath = \"p\"\ncontext_length = 0", "models[0].context_length: `0`");
    check("name = \"x\"\npath = \"p\"\nfoo = 1", "models[0].(key): `foo` is unknown");
    check("name = \"x\"\npath = \"p\"\naliases = [\"x\"]", "models[0].name: `x` is used twice");
}

/// docs/configuration.md has a row for every option, as the table of options says it.
#[test]
fn the_page_lists_every_option() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md")).expect("docs/configuration.md");
    let rows: Vec<String> = OPTIONS
        .iter()
        .map(|spec| {
            let env = spec.env.map_or_else(String::new, |env| format!("`{env}`"));
            let default = spec.default.unwrap_or("");
            format!("| `{}` | {env} | {} | {default} | {} |", spec.key, spec.expected(), spec.help)
        })
        .collect();
    let missing: Vec<&String> = rows.iter().filter(|row| !page.lines().any(|line| line == *row)).collect();
    assert!(
        missing.is_empty(),
        "rows that docs/configuration.md lacks:\n{}",
        missing.iter().map(|row| format!("{row}\n")).collect::<String>()
    );
    let num_rows = page.lines().take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| `")).count();
    assert_eq!(num_rows, rows.len(), "the page has rows that are no options");
}
