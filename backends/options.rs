//! The table of options: one row each, with its name in files, on the command line and in the environment, its range and default.
//!
//! The command line, the configuration file, `pagoda doctor` and `docs/configuration.md` all follow this table.

/// What values an option takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A whole number in a closed range.
    Count(u64, u64),
    /// A number in a closed range.
    Number(f64, f64),
    /// true or false.
    Switch,
    /// One of some words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
}

/// Which part of pagoda an option belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Choice of model and backend.
    Backend,
    /// The HTTP server.
    Server,
    /// Logging.
    Log,
    /// pagoda's own engine.
    Engine,
    /// The huggingface backend.
    HuggingFace,
    /// The vllm_remote backend.
    VllmRemote,
    /// The remote_openai backend.
    RemoteOpenai,
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Name in the configuration file; the flag is the same with dashes.
    pub key: &'static str,
    /// Environment variable.
    pub env: Option<&'static str>,
    /// Values.
    pub kind: Kind,
    /// Default as text; None: chosen by pagoda or off, as `help` says.
    pub default: Option<&'static str>,
    /// Where it belongs.
    pub group: Group,
    /// Its value is never shown.
    pub secret: bool,
    /// One line.
    pub help: &'static str,
}

impl OptionSpec {
    /// `--the-key`, or `--no-the-key` for a switch that is on by default.
    pub fn flag(&self) -> String {
        let no = if self.kind == Kind::Switch && self.default == Some("true") { "no-" } else { "" };
        format!("--{no}{}", self.key.replace('_', "-"))
    }

    /// Checks a value; the error says what is allowed.
    ///
    /// # Errors
    /// The allowed values in words.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let good = match self.kind {
            Kind::Count(min, max) => value.parse::<u64>().is_ok_and(|value| (min..=max).contains(&value)),
            Kind::Number(min, max) => value.parse::<f64>().is_ok_and(|value| (min..=max).contains(&value)),
            Kind::Switch => parse_switch(value).is_some(),
            Kind::Choice(words) => words.contains(&value),
            Kind::Text => true,
        };
        if good { Ok(()) } else { Err(self.expected()) }
    }

    /// The allowed values in words.
    pub fn expected(&self) -> String {
        match self.kind {
            Kind::Count(min, u64::MAX) => format!("a whole number, at least {min}"),
            Kind::Count(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Number(min, max) => format!("a number from {min} to {max}"),
            Kind::Switch => "true or false".into(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::Text => "text".into(),
        }
    }
}

/// true/false, 1/0, yes/no, on/off.
pub fn parse_switch(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// The row of a key.
pub fn spec(key: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|spec| spec.key == key)
}

const fn row(
    group: Group,
    key: &'static str,
    env: Option<&'static str>,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> OptionSpec {
    OptionSpec { key, env, kind, default, group, secret: false, help }
}

const fn secret(group: Group, key: &'static str, env: Option<&'static str>, help: &'static str) -> OptionSpec {
    OptionSpec { key, env, kind: Kind::Text, default: None, group, secret: true, help }
}

const KINDS: Kind = Kind::Choice(&["huggingface", "vllm_local", "vllm_remote", "remote_openai"]);
const QUANTIZATION: Kind = Kind::Choice(&["bitsandbytes", "awq", "gptq", "marlin", "fp8", "fp4"]);
const MAX_TOKENS: u64 = 16 << 20;

/// Every option.
pub const OPTIONS: &[OptionSpec] = &{
    use Group::{Backend, Engine, HuggingFace, Log, RemoteOpenai, Server, VllmRemote};
    use Kind::{Choice, Count, Number, Switch, Text};
    [
        row(Backend, "backend", Some("LLM_BACKEND"), KINDS, None, "Kind of backend; unset: detected"),
        row(Backend, "model", Some("PAGODA_MODEL"), Text, None, "Model when none is given as an argument"),
        row(
            Backend,
            "model_type",
            None,
            Choice(&["auto", "causal_lm", "embedding", "reranker"]),
            Some("auto"),
            "What the model is for; auto: what its files say",
        ),
        row(
            Backend,
            "tool_call_parser",
            Some("PAGODA_TOOL_CALL_PARSER"),
            Choice(&["auto", "hermes", "qwen3_coder", "llama3_json", "pythonic", "mistral", "deepseek", "harmony", "json"]),
            Some("auto"),
            "How the model writes calls of tools; auto: as its chat template says, hermes for a service elsewhere",
        ),
        row(Server, "host", Some("HOST"), Text, Some("127.0.0.1"), "Address to listen on"),
        row(Server, "port", Some("PORT"), Count(0, 65535), Some("8000"), "Port to listen on; 0: any free one"),
        secret(Server, "api_key", Some("API_KEY"), "Keys that clients must send, comma-separated; unset: no key needed"),
        row(Server, "api_key_file", Some("API_KEY_FILE"), Text, None, "File with one API key a line, in addition"),
        row(Server, "served_model_name", None, Text, None, "Names the model answers to, comma-separated; the first is shown"),
        row(Server, "max_body_bytes", None, Count(1024, 1 << 32), Some("33554432"), "Largest request body"),
        row(Server, "max_concurrent_requests", None, Count(1, 1 << 20), Some("1024"), "Requests that generate at the same time"),
        row(Server, "batch_dir", None, Text, None, "Folder of message batches; unset: `batches` in the cache folder"),
        row(Server, "cors_origins", None, Text, None, "Origins that a browser may call from, comma-separated; unset: any"),
        row(Server, "shutdown_timeout", None, Number(0.0, 86400.0), Some("30"), "Seconds that requests in flight get at shutdown"),
        row(Log, "log_level", Some("RUST_LOG"), Text, Some("info"), "error, warn, info, debug, trace, or a tracing filter"),
        row(Log, "log_format", None, Choice(&["text", "json"]), Some("text"), "Format of log lines on stderr"),
        row(
            Engine,
            "max_model_len",
            Some("VLLM_MAX_MODEL_LEN"),
            Count(1, MAX_TOKENS),
            None,
            "Longest context; unset: what model (up to 32768) and memory allow",
        ),
        row(
            Engine,
            "max_num_seqs",
            None,
            Count(1, 4096),
            None,
            "Sequences of a step at most; unset: 64 on a CPU, 512 on a GPU (256 below 32 GiB)",
        ),
        row(
            Engine,
            "max_num_batched_tokens",
            None,
            Count(1, 131_072),
            None,
            "Tokens of a step at most; unset: 512 on a CPU, 8192 on a GPU (4096 below 32 GiB)",
        ),
        row(Engine, "max_waiting", None, Count(1, 1 << 20), Some("1024"), "Requests that may wait; more are refused with retry-after"),
        row(Engine, "block_size", None, Count(1, 256), Some("16"), "Tokens of a KV cache block, a power of two"),
        row(Engine, "device", None, Choice(&["auto", "cpu", "cuda"]), Some("auto"), "What computes; auto: a GPU where there is one"),
        row(Engine, "kv_cache_dtype", None, Choice(&["auto", "f32", "f16", "bf16", "fp8"]), Some("auto"), "Element type of the KV cache"),
        row(Engine, "kv_cache_bytes", None, Count(1, u64::MAX), None, "Size of the KV cache; unset: from memory utilization"),
        row(Engine, "prefix_caching", Some("VLLM_PREFIX_CACHING"), Switch, Some("true"), "Reuse the KV cache of equal prompt beginnings"),
        row(
            Engine,
            "deterministic",
            Some("VLLM_BATCH_INVARIANT"),
            Switch,
            Some("false"),
            "The same bits alone and in any batch; a CPU always does so, a GPU gets slower",
        ),
        row(Engine, "step_ahead", None, Switch, Some("true"), "Schedule the next step while the last one runs"),
        row(Engine, "cuda_graphs", None, Switch, Some("true"), "Record decode steps once and replay them, on a GPU"),
        row(Engine, "restart_on_failure", None, Switch, Some("false"), "Go on after a failed step instead of ending"),
        row(Engine, "threads", None, Count(1, 1024), None, "CPU threads; unset: all cores"),
        row(Engine, "memory_limit_bytes", None, Count(1, u64::MAX), None, "Taken for the free memory; unset: asked of the system"),
        row(
            Engine,
            "model_memory_bytes",
            None,
            Count(1, u64::MAX),
            None,
            "Memory of several models together; unset: the usable share of what is free",
        ),
        row(
            Engine,
            "swap_space",
            None,
            Number(0.0, 65536.0),
            None,
            "GiB of host memory that keep the weights of models put aside; 0: they are loaded anew; unset: a quarter of what is free, on a CPU 0",
        ),
        row(
            Engine,
            "load_models",
            None,
            Choice(&["start", "first_use"]),
            Some("start"),
            "When several models are loaded: as many as fit at the start, or each at its first request",
        ),
        row(
            Engine,
            "gpu_memory_utilization",
            Some("VLLM_GPU_MEMORY_UTILIZATION"),
            Number(0.01, 1.0),
            Some("0.90"),
            "Share of free device memory that may be used",
        ),
        row(Engine, "tensor_parallel_size", Some("VLLM_TENSOR_PARALLEL_SIZE"), Count(1, 64), Some("1"), "GPUs that share one model"),
        row(
            Engine,
            "quantization",
            Some("VLLM_QUANTIZATION"),
            QUANTIZATION,
            None,
            "Quantise at load (bitsandbytes, fp8, fp4) or say what is stored; unset: as stored",
        ),
        row(
            Engine,
            "head_bits",
            None,
            Choice(&["16", "8", "4"]),
            Some("16"),
            "Bits of lm_head, and of an embedding tied to it; 16: as stored",
        ),
        row(
            Engine,
            "embedding_bits",
            None,
            Choice(&["16", "8", "4"]),
            None,
            "Bits of an embedding that is not tied; unset: those of head_bits",
        ),
        row(
            Engine,
            "dense_copy",
            None,
            Choice(&["auto", "on", "off"]),
            Some("auto"),
            "Keep weights of 4 bits and GGUF blocks as bf16 too, for steps of many tokens on a GPU; auto: where a full KV cache still fits",
        ),
        row(
            Engine,
            "fp4_activations",
            None,
            Switch,
            Some("false"),
            "Round what NVFP4 weights are multiplied with to NVFP4 too, in steps of many tokens; needs a GPU of compute capability 12.x",
        ),
        row(Engine, "chat_template", None, Text, None, "File with a chat template, instead of the model's own"),
        row(
            HuggingFace,
            "hf_device",
            Some("HF_DEVICE"),
            Choice(&["auto", "cpu", "cuda"]),
            Some("auto"),
            "What computes; auto: a GPU where its worker has CUDA and there is one",
        ),
        row(
            HuggingFace,
            "hf_quantization",
            Some("HF_QUANTIZATION"),
            Choice(&["bitsandbytes"]),
            None,
            "bitsandbytes: linear layers in NF4 with double quantisation; unset: as stored",
        ),
        row(HuggingFace, "hf_load_4bit", Some("HF_LOAD_4BIT"), Switch, Some("false"), "The same as --hf-quantization bitsandbytes"),
        row(HuggingFace, "hf_flash_attention", Some("HF_FLASH_ATTENTION"), Switch, Some("false"), "Flash attention where candle has it"),
        row(HuggingFace, "hf_worker", Some("HF_WORKER"), Text, None, "The worker's binary; unset: pagoda-hf-worker beside pagoda"),
        row(VllmRemote, "vllm_remote_url", Some("VLLM_REMOTE_URL"), Text, None, "Address of a vLLM or pagoda server"),
        secret(VllmRemote, "vllm_remote_api_key", Some("VLLM_REMOTE_API_KEY"), "Its key"),
        row(VllmRemote, "vllm_remote_model", Some("VLLM_REMOTE_MODEL"), Text, None, "Model asked for there; unset: all it lists"),
        row(
            VllmRemote,
            "vllm_remote_timeout",
            Some("VLLM_REMOTE_TIMEOUT"),
            Number(0.001, 86400.0),
            Some("120"),
            "Longest silence of it, seconds",
        ),
        row(RemoteOpenai, "remote_openai_url", Some("REMOTE_OPENAI_URL"), Text, None, "Address of an OpenAI-compatible service"),
        secret(RemoteOpenai, "remote_openai_api_key", Some("REMOTE_OPENAI_API_KEY"), "Its key"),
        row(RemoteOpenai, "remote_openai_model", Some("REMOTE_OPENAI_MODEL"), Text, None, "Model asked for there; unset: all it lists"),
        row(
            RemoteOpenai,
            "remote_openai_timeout",
            Some("REMOTE_OPENAI_TIMEOUT"),
            Number(0.001, 86400.0),
            Some("120"),
            "Longest silence of it, seconds",
        ),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_their_defaults_valid() {
        for (idx, spec) in OPTIONS.iter().enumerate() {
            assert!(OPTIONS[..idx].iter().all(|other| other.key != spec.key && (spec.env.is_none() || other.env != spec.env)), "{spec:?}");
            if let Some(default) = spec.default {
                spec.check(default).expect(spec.key);
            }
        }
    }

    #[test]
    fn values_are_checked_against_their_range() {
        let check = |key: &str, value: &str| spec(key).expect(key).check(value);
        for (key, value) in
            [("port", "0"), ("port", "65535"), ("step_ahead", "OFF"), ("gpu_memory_utilization", "1"), ("quantization", "fp4")]
        {
            assert_eq!(check(key, value), Ok(()), "{key} {value}");
        }
        let bad = [
            ("port", "65536", "a whole number from 0 to 65535"),
            ("port", "-1", "a whole number from 0 to 65535"),
            ("port", "", "a whole number from 0 to 65535"),
            ("gpu_memory_utilization", "NaN", "a number from 0.01 to 1"),
            ("gpu_memory_utilization", "1.5", "a number from 0.01 to 1"),
            ("step_ahead", "maybe", "true or false"),
            ("log_format", "xml", "one of text, json"),
            ("kv_cache_bytes", "0", "a whole number, at least 1"),
        ];
        for (key, value, expected) in bad {
            assert_eq!(check(key, value), Err(expected.into()), "{key} {value}");
        }
    }
}
