//! The binary as a user meets it: what goes wrong is one line on stderr that says what and what to do, and the exit code is not 0.

#[path = "cli/quantised.rs"]
mod quantised;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use pagoda_engine::testing::{tiny_config, write_tiny, write_tiny_gguf};

mod process;

use process::{check_failure, fails, home, pagoda, serve, serve_with, text};

#[test]
fn wrong_command_lines() {
    fails(&["serv"], 2, &["unrecognized subcommand 'serv'", "pagoda --help"]);
    fails(&["serve", "--prot", "1"], 2, &["unexpected argument '--prot'"]);
    fails(&["serve", "--port"], 2, &["a value is required for '--port"]);
}

#[test]
fn wrong_options() {
    fails(&["serve", "--port", "x"], 1, &["--port: `x` (command line): expected a whole number from 0 to 65535"]);
    fails(&["serve", "--host", "nowhere"], 1, &["--host: `nowhere`", "IP address"]);
    fails(&["chat", "--kv-cache-dtype", "f8"], 1, &["--kv-cache-dtype: `f8`", "one of auto, f32, f16, bf16"]);
    fails(&["generate", "--prompt", "x", "--temperature", "3"], 1, &["--temperature: `3`", "0 to 2"]);
    fails(&["bench", "--workloads", "c9"], 1, &["--workloads: `c9`", "c1, c8"]);
    fails(&["serve", "--api-key-file", "/no/such/file"], 1, &["--api-key-file: /no/such/file"]);
    fails(&["serve", "--config", "/no/such/file"], 1, &["/no/such/file"]);
    fails(&["doctor", "--log-level", "=x="], 1, &["--log-level: `=x=`"]);
}

#[test]
fn kinds_of_backend_that_are_not_there() {
    fails(&["serve", "--hf-device", "tpu"], 1, &["--hf-device: `tpu`", "one of auto, cpu, cuda"]);
    fails(&["serve", "--backend", "vllm_remote"], 1, &["`vllm_remote`: --vllm-remote-url (VLLM_REMOTE_URL) is not set"]);
    let away = ["serve", "--port", "0", "--log-level", "error", "--vllm-remote-url", "http://127.0.0.1:9"];
    fails(&away, 1, &["--vllm-remote-model is not set", "cannot be reached"]);
    let wrong = ["serve", "--port", "0", "--log-level", "error", "--remote-openai-url", "ftp://x"];
    fails(&wrong, 1, &["--remote-openai-url: expected http://HOST"]);
    fails(&["serve", "--tensor-parallel-size", "2"], 1, &["--tensor-parallel-size: `2`"]);
    fails(&["serve", "--quantization", "int3"], 1, &["--quantization: `int3`", "one of bitsandbytes, awq"]);
}

#[test]
fn variables_are_named_in_errors() {
    let home = home();
    let output = pagoda(home.path(), &["serve"]).env("VLLM_MAX_MODEL_LEN", "-1").output().expect("runs");
    check_failure(&output, 1, &["--max-model-len: `-1` (environment variable VLLM_MAX_MODEL_LEN)"]);
}

#[test]
fn missing_models() {
    fails(&["generate", "--prompt", "x", "/no/such/model"], 1, &["no such model file or folder: /no/such/model"]);
    fails(&["generate", "--prompt", "x", "nonsense"], 1, &["unknown model `nonsense`", "smollm2"]);
    fails(&["pull", "org/name"], 1, &["http://127.0.0.1:9 does not answer", "HF_ENDPOINT"]);
}

#[test]
fn damaged_checkpoints() {
    let folder = home();
    let check = |path: &Path, parts: &[&str]| fails(&["generate", "--prompt", "x", &path.display().to_string()], 1, parts);

    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("folder");
    check(&empty, &["empty"]);

    let gguf = write_tiny_gguf(folder.path(), "llama-q8_0", 1);
    let whole = fs::read(&gguf).expect("file");
    let cut = folder.path().join("cut.gguf");
    fs::write(&cut, &whole[..whole.len() / 2]).expect("file");
    check(&cut, &["cut.gguf"]);
    let garbage = folder.path().join("garbage.gguf");
    fs::write(&garbage, b"garbage").expect("file");
    check(&garbage, &["garbage.gguf"]);

    let tiny = write_tiny(folder.path(), "llama", 1);
    let mut config = tiny_config("llama");
    config["architectures"] = serde_json::json!(["NoSuchForCausalLM"]);
    config["model_type"] = serde_json::json!("no_such");
    fs::write(tiny.join("config.json"), config.to_string()).expect("file");
    check(&tiny, &["unknown architecture", "known:"]);

    let short = write_tiny(folder.path(), "qwen2", 1);
    let weights = short.join("model.safetensors");
    let bytes = fs::read(&weights).expect("file");
    fs::write(&weights, &bytes[..bytes.len() - 64]).expect("file");
    check(&short, &["model.safetensors"]);
}

#[test]
fn a_model_too_large_for_memory() {
    let folder = home();
    let tiny = write_tiny(folder.path(), "llama", 1).display().to_string();
    fails(&["generate", "--prompt", "x", "--memory-limit-bytes", "100000", &tiny], 1, &["out of memory", "89999 available"]);
    fails(&["generate", "--prompt", "x", "--max-model-len", "1000000", &tiny], 1, &["max_model_len", "1000000"]);
}

#[test]
fn a_port_in_use() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let port = listener.local_addr().expect("address").port().to_string();
    fails(&["serve", "--port", &port], 1, &[&format!("127.0.0.1:{port} is in use"), "choose another port"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let home = home();
    // The stub hub of tests/hub.rs is not needed: the cache folder itself cannot be written.
    fs::write(home.path().join("file"), b"").expect("file");
    let output = pagoda(home.path(), &["pull", "org/name"]).env("PAGODA_CACHE", home.path().join("file/cache")).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
}

#[test]
fn a_prompt_is_continued_the_same_way_twice() {
    let folder = home();
    let tiny = write_tiny(folder.path(), "llama", 1).display().to_string();
    let run = |extra: &[&str]| {
        let mut arguments = vec!["generate", "--prompt", "hello", "--max-tokens", "8", "--log-level", "error", &tiny];
        arguments.extend(extra);
        let output = pagoda(folder.path(), &arguments).output().expect("runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let first = run(&[]);
    assert!(!first.trim().is_empty());
    assert_eq!(first, run(&[]));
    assert_eq!(first, run(&["--no-step-ahead", "--no-prefix-caching", "--threads", "1"]));
}

#[test]
fn a_piped_conversation() {
    let folder = home();
    let tiny = write_tiny(folder.path(), "qwen2", 1).display().to_string();
    let arguments = ["chat", "--max-tokens", "4", "--temperature", "0", "--log-level", "error", &tiny];
    let mut child = pagoda(folder.path(), &arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("stdin").write_all(b"hello\n/reset\nhello\n\n/exit\nnever\n").expect("written");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success());
    let stdout = text(&output.stdout);
    let answers: Vec<&str> = stdout.split('\n').collect();
    assert!(answers.len() >= 2 && stdout.len() > 2, "{stdout:?}");
    let half = stdout.len() / 2;
    assert_eq!(stdout[..half], stdout[half..], "the same question after /reset");
}

#[test]
fn doctor_shows_where_values_come_from() {
    let folder = home();
    let tiny = write_tiny(folder.path(), "llama", 1).display().to_string();
    let output = pagoda(folder.path(), &["doctor", "--max-num-seqs", "3", &tiny]).env("PORT", "9").env("API_KEY", "hidden").output();
    let output = output.expect("runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    for part in ["<- environment variable PORT", "<- command line", "vllm_local (no remote address is set)", "kv cache", "family    llama"]
    {
        assert!(stdout.contains(part), "`{part}` in {stdout}");
    }
    assert!(!stdout.contains("hidden"));
    let output = pagoda(folder.path(), &["doctor", "--device", "cpu", "--load", &tiny]).output().expect("runs");
    assert!(text(&output.stdout).contains("taken        not counted"), "{}", text(&output.stderr));
}

/// What a model that pools takes, from headers alone: of an encoder and of a decoder.
#[test]
fn models_that_pool_are_estimated() {
    let home = home();
    let data = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into())).join("tests/data/pooling");
    for (name, flags, parts) in [
        (
            "bert",
            &[][..],
            &["bert, 2 layers, embeddings", "for 8 sequences, 600 tokens a batch", "256 tokens at most", "48 numbers a vector"][..],
        ),
        ("bert-dense", &[], &["24 numbers a vector"]),
        ("mpnet-cross", &[], &["mpnet, 2 layers, reranker", "256 tokens at most", "1 score a pair"]),
        ("qwen3-reranker", &["--model-type", "reranker"], &["qwen3, 2 layers, reranker", "MiB of one batch", "1024 tokens at most"]),
    ] {
        let path = data.join(name).display().to_string();
        let sizes = ["--device", "cpu", "--max-num-batched-tokens", "600", "--max-num-seqs", "8"];
        for command in ["estimate", "doctor"] {
            let output = pagoda(home.path(), &[&[command, &path], &sizes[..], flags].concat()).output().expect("runs");
            let shown = text(&output.stdout);
            assert!(output.status.success(), "{}", text(&output.stderr));
            let family = parts.iter().map(|part| part.replace(", embeddings", "").replace(", reranker", ""));
            assert!(family.into_iter().all(|part| shown.contains(&part)), "{command} {name}: {shown}");
        }
    }
    let bert = data.join("bert").display().to_string();
    let output = pagoda(home.path(), &["doctor", &bert, "--load", "--device", "cpu"]).output().expect("runs");
    assert!(text(&output.stdout).contains("taken        not counted"), "{}", text(&output.stdout));
}

#[test]
fn doctor_asks_a_service_elsewhere() {
    let folder = home();
    let run = |variables: &[(&str, &str)]| {
        let output = pagoda(folder.path(), &["doctor"]).envs(variables.iter().copied()).output().expect("runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let served = serve(&["--api-key", "k1"]);
    let url = format!("http://{}", served.address);
    let stdout = run(&[("VLLM_REMOTE_URL", &url), ("VLLM_REMOTE_API_KEY", "k1")]);
    for part in ["vllm_remote (VLLM_REMOTE_URL is set)", "answers   in ", "- tiny, context "] {
        assert!(stdout.contains(part), "`{part}` in {stdout}");
    }
    let stdout = run(&[("LLM_BACKEND", "remote_openai"), ("REMOTE_OPENAI_URL", &url), ("REMOTE_OPENAI_API_KEY", "wrong-key")]);
    assert!(stdout.contains("remote_openai (asked for)") && stdout.contains("answers   no: ") && !stdout.contains("wrong-key"), "{stdout}");
}

#[test]
fn a_server_in_front_of_a_server() {
    let rear = serve(&["--api-key", "inner"]);
    let folder = home();
    let url = format!("http://{}", rear.address);
    let variables = [("VLLM_REMOTE_URL", url.as_str()), ("VLLM_REMOTE_API_KEY", "inner")];
    let output = pagoda(folder.path(), &["generate", "--prompt", "hello", "--max-tokens", "4"]).envs(variables).output().expect("runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("output tokens"), "{}", text(&output.stderr));
}

fn get(address: &str, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connects");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    answer
}

#[test]
fn a_server_says_how_to_try_it_and_ends_in_order() {
    let mut served = serve(&["--api-key", "k1,k2"]);
    assert!(served.lines[0].starts_with("serving tiny at http://127.0.0.1:"), "{:?}", served.lines);
    let curl = served.lines.last().expect("lines");
    assert!(curl.contains("/v1/messages") && curl.contains("x-api-key: $API_KEY") && !curl.contains("k1"), "{curl}");
    assert!(get(&served.address, "/health", "").starts_with("HTTP/1.1 200"));
    assert!(get(&served.address, "/v1/models", "").starts_with("HTTP/1.1 401"));
    let models = get(&served.address, "/v1/models", "x-api-key: k2\r\n");
    assert!(models.starts_with("HTTP/1.1 200") && models.contains("\"tiny\""), "{models}");
    #[cfg(unix)]
    {
        let killed = Command::new("/bin/kill").args(["-TERM", &served.child.id().to_string()]).status().expect("kill");
        assert!(killed.success());
        assert_eq!(served.child.wait().expect("ends").code(), Some(0));
    }
}

/// Posts a completion of a few tokens; the whole answer.
fn complete(address: &str) -> std::io::Result<String> {
    let body = r#"{"model":"tiny","prompt":[1,2,3],"max_tokens":20,"ignore_eos":true}"#;
    let mut stream = TcpStream::connect(address)?;
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    write!(stream, "{head}{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_dead_engine_ends_the_server_with_its_own_code() {
    for (kind, reason) in [("error", "device: injected fault"), ("lost", "device lost: injected fault"), ("panic", "injected fault")] {
        let fault = format!(r#"{{"step":4,"kind":"{kind}"}}"#);
        // Restarting does not help against a lost device, nor against a fault that comes back.
        let mut served = serve_with(&["--restart-on-failure"], |model| fs::write(model.join("fault.json"), &fault).expect("written"));
        let mut num_failed = 0;
        while served.child.try_wait().expect("runs").is_none() && num_failed < 8 {
            // An error: the server has closed its port already.
            let Ok(answer) = complete(&served.address) else { continue };
            assert!(answer.starts_with("HTTP/1.1 500") || answer.starts_with("HTTP/1.1 503") || answer.is_empty(), "{answer}");
            num_failed += 1;
        }
        assert_eq!(served.child.wait().expect("ends").code(), Some(3), "{kind}");
        let stderr = fs::read_to_string(&served.stderr).expect("stderr");
        let last = stderr.lines().last().expect("a line");
        assert!(last.starts_with("pagoda: the engine ended:") && last.contains(reason), "{kind}: {last}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_named() {
    if !pagoda_engine::device::cuda::CudaDevice::available().is_empty() {
        return;
    }
    let folder = home();
    let tiny = write_tiny(folder.path(), "llama", 1).display().to_string();
    let output =
        pagoda(folder.path(), &["serve", "--port", "0", "--log-level", "error", "--device", "cuda", &tiny]).output().expect("runs");
    check_failure(&output, 1, &[if pagoda_kernels::available() { "no NVIDIA GPU or no driver" } else { "built without CUDA kernels" }]);
}

#[test]
fn a_server_answers_its_own_first_question() {
    let served = serve(&["--try", "hello?"]);
    let asked = served.lines.iter().position(|line| line == "hello?").expect("the question");
    let answer: Vec<&String> = served.lines[asked + 1..].iter().filter(|line| !line.is_empty()).collect();
    assert!(answer.len() >= 2, "an answer before the last line: {:?}", served.lines);
}
