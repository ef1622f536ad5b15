//! Two models on one server with memory for one: 32 clients mix them, all answers are right and none is lost.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Mutex;

use pagoda_engine::description::describe;
use pagoda_engine::loader::EngineOptions;
use pagoda_engine::pooling;
use pagoda_engine::testing::write_tiny;
use serde_json::{Value, json};

mod process;

use process::{Served, home, start};

const MODELS: [(&str, &str, u64); 2] = [("first", "llama", 1), ("second", "qwen2", 2)];
const NUM_CLIENTS: usize = 32;
const NUM_TURNS: usize = 6;
const KV_BYTES: usize = 1 << 20;

/// Sends a request; the body of a good answer, and the status of any.
fn send(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connects");
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: pagoda\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    let (head, rest) = answer.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).expect("a status").parse().expect("a number"), rest.to_owned())
}

fn complete(address: &str, model: &str, prompt: usize) -> String {
    let body = json!({"model": model, "prompt": format!("The fox number {prompt}"), "max_tokens": 12, "temperature": 0});
    let (status, answer) = send(address, "POST", "/v1/completions", &body.to_string());
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str::<Value>(&answer).expect("JSON")["choices"][0]["text"].as_str().expect("text").to_owned()
}

fn options() -> EngineOptions {
    EngineOptions {
        kv_cache_bytes: Some(KV_BYTES),
        max_model_len: Some(256),
        max_num_seqs: Some(4),
        max_num_batched_tokens: Some(64),
        memory_limit_bytes: Some(1 << 40),
        ..EngineOptions::default()
    }
}

/// What a model takes.
fn need_of(path: &Path) -> usize {
    describe(path, &options()).expect("described").plan.total_bytes()
}

/// What the larger model takes.
fn need(folder: &Path) -> usize {
    MODELS.map(|(_, arch, seed)| need_of(&write_tiny(folder, arch, seed))).into_iter().max().expect("two models")
}

fn serve_both(load_models: &str, swap_space: usize) -> Served {
    let folder = home();
    // More than either, less than both.
    let budget = need(folder.path()) * 3 / 2;
    let entry = |(name, arch, seed): (&str, &str, u64)| {
        let path = folder.path().join(format!("{arch}-s{seed}"));
        format!("[[models]]\nname = \"{name}\"\npath = \"{}\"\naliases = [\"{name}-alias\"]\n", path.display())
    };
    let options = format!("model_memory_bytes = {budget}\nload_models = \"{load_models}\"\nkv_cache_bytes = {KV_BYTES}\n")
        + &format!("swap_space = {swap_space}\n");
    let file = folder.path().join("pagoda.toml");
    fs::write(&file, options + &MODELS.map(entry).concat()).expect("written");
    let file = file.display().to_string();
    let sizes = ["--max-model-len", "256", "--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--device", "cpu"];
    start(folder, &[&["serve", "--config", &file, "--port", "0"], &sizes[..]].concat())
}

/// The log of a server on which many clients mixed both models, and how many answers it gave.
fn mix(swap_space: usize) -> (String, usize) {
    let server = serve_both("start", swap_space);
    // Alone, one after the other.
    let mut expected = HashMap::new();
    for (name, _, _) in MODELS {
        for prompt in 0..NUM_TURNS {
            expected.insert((name, prompt), complete(&server.address, name, prompt));
        }
    }
    assert!((0..NUM_TURNS).any(|prompt| expected[&("first", prompt)] != expected[&("second", prompt)]), "the models differ");
    let num_answers = Mutex::new(0);
    std::thread::scope(|scope| {
        for client in 0..NUM_CLIENTS {
            let (server, expected, num_answers) = (&server, &expected, &num_answers);
            scope.spawn(move || {
                for turn in 0..NUM_TURNS {
                    let (name, _, _) = MODELS[(client + turn) % MODELS.len()];
                    let asked = if client.is_multiple_of(3) { format!("{name}-alias") } else { name.to_owned() };
                    assert_eq!(complete(&server.address, &asked, turn), expected[&(name, turn)], "{name}, prompt {turn}");
                    *num_answers.lock().expect("nobody panicked") += 1;
                }
            });
        }
    });
    assert_eq!(*num_answers.lock().expect("nobody panicked"), NUM_CLIENTS * NUM_TURNS);
    let (status, metrics) = send(&server.address, "GET", "/metrics", "");
    let told = MODELS.len() * NUM_TURNS + NUM_CLIENTS * NUM_TURNS;
    let ended: f64 = metrics.lines().filter(|line| line.starts_with("vllm:request_success_total")).map(value).sum();
    assert_eq!((status, ended as usize), (200, told));
    // The engines' own counts outlive them: every prompt was looked up in some cache.
    let queried: f64 = metrics.lines().filter(|line| line.starts_with("vllm:prefix_cache_queries_total")).map(value).sum();
    let prompts: f64 = metrics.lines().filter(|line| line.starts_with("vllm:prompt_tokens_total")).map(value).sum();
    assert!(queried == prompts && prompts > 0.0, "{queried} {prompts}");
    let log = fs::read_to_string(&server.stderr).expect("a log");
    (log, told)
}

#[test]
fn clients_mix_two_models_with_memory_for_one() {
    let (log, num_answers) = mix(0);
    let num_unloads = log.matches("model unloaded").count();
    assert!(num_unloads >= 2 && num_unloads < num_answers / 2, "{num_unloads} unloads for {num_answers} answers");
    assert!(!log.contains("model asleep"), "{log}");
}

#[test]
fn with_room_for_their_weights_models_sleep_and_are_loaded_once() {
    let (log, _) = mix(1);
    let count = |what: &str| log.matches(what).count();
    assert_eq!((count("model loaded"), count("model unloaded")), (2, 0), "{log}");
    // The second is loaded and not woken, when it takes the place of the first.
    assert!(count("model asleep") >= 2 && count("model awake") + 1 >= count("model asleep"), "{log}");
}

/// A chat model and one of embeddings with memory for one of them: each goes when the other is asked for.
#[test]
fn models_of_embeddings_count_and_go_too() {
    let folder = home();
    let path = write_tiny(folder.path(), "llama", 1);
    let data = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into())).join("tests/data/pooling");
    let pooling = pooling::describe(&data.join("bert"), None, &options()).expect("described").plan.total_bytes();
    let budget = need_of(&path).max(pooling) + need_of(&path).min(pooling) / 2;
    let entries = [("chat", path), ("vectors", data.join("bert")), ("scores", data.join("bert-cross"))]
        .map(|(name, path)| format!("[[models]]\nname = \"{name}\"\npath = \"{}\"\n", path.display()));
    let sizes = "max_model_len = 256\nmax_num_seqs = 4\nmax_num_batched_tokens = 64\ndevice = \"cpu\"\n";
    let file = folder.path().join("pagoda.toml");
    let head = format!("model_memory_bytes = {budget}\nload_models = \"first_use\"\nkv_cache_bytes = {KV_BYTES}\n{sizes}");
    fs::write(&file, head + &entries.concat()).expect("written");
    let file = file.display().to_string();
    let server = start(folder, &["serve", "--config", &file, "--port", "0"]);
    let vector = || {
        let (status, answer) = send(&server.address, "POST", "/v1/embeddings", &json!({"model": "vectors", "input": "x"}).to_string());
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).expect("JSON")["data"][0]["embedding"].clone()
    };
    let expected = vector();
    assert_eq!(expected.as_array().map(Vec::len), Some(48));
    for turn in 0..3 {
        complete(&server.address, "chat", turn);
        assert_eq!(vector(), expected, "turn {turn}");
        let body = json!({"model": "scores", "query": "x", "documents": ["a", "b"]}).to_string();
        assert_eq!(send(&server.address, "POST", "/v1/rerank", &body).0, 200);
    }
    let (status, answer) = send(&server.address, "POST", "/v1/completions", &json!({"model": "vectors", "prompt": "x"}).to_string());
    assert!(status == 400 && answer.contains("makes embeddings"), "{status} {answer}");
    let log = fs::read_to_string(&server.stderr).expect("a log");
    assert!(log.matches("model unloaded").count() >= 5, "{log}");
}

fn value(line: &str) -> f64 {
    line.rsplit(' ').next().expect("a value").parse().expect("a number")
}

#[test]
fn a_model_is_loaded_at_its_first_use() {
    let server = serve_both("first_use", 0);
    let log = || fs::read_to_string(&server.stderr).expect("a log");
    let (_, models) = send(&server.address, "GET", "/v1/models", "");
    let models: Value = serde_json::from_str(&models).expect("JSON");
    let ids: Vec<&str> = models["data"].as_array().expect("models").iter().filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(ids, ["first", "first-alias", "second", "second-alias"]);
    let body = json!({"model": "second", "prompt": "The fox"}).to_string();
    assert_eq!(send(&server.address, "POST", "/tokenize", &body).0, 200);
    assert!(!log().contains("model loaded"), "{}", log());
    complete(&server.address, "second", 1);
    assert_eq!(log().matches("model loaded").count(), 1, "{}", log());
    assert_eq!(send(&server.address, "GET", "/health", "").0, 200);
}

#[test]
fn doctor_shows_every_model_within_the_memory_of_all() {
    let folder = home();
    let budget = need(folder.path()) * 3 / 2;
    let entry = |(name, arch, seed): (&str, &str, u64)| {
        let path = folder.path().join(format!("{arch}-s{seed}"));
        format!("[[models]]\nname = \"{name}\"\npath = \"{}\"\nbackend_type = \"vllm_local\"\n", path.display())
    };
    let options = format!(
        "model_memory_bytes = {budget}\nkv_cache_bytes = {KV_BYTES}\nmax_model_len = 256\nmax_num_seqs = 4\nmax_num_batched_tokens = 64\nload_models = \"first_use\"\n"
    );
    let file = folder.path().join("pagoda.toml");
    fs::write(&file, options + &MODELS.map(entry).concat()).expect("written");
    let output = process::pagoda(folder.path(), &["doctor", "--config", &file.display().to_string(), "--device", "cpu"]).output();
    let text = process::text(&output.expect("runs").stdout);
    let backend = text.split("\nbackend\n").nth(1).expect("a section");
    assert_eq!(backend.matches("vllm_local (the model's backend_type)").count(), 2, "{backend}");
    for part in ["  first\n", "  second\n", "for 2 models, loaded each at its first request"] {
        assert!(backend.contains(part), "{part:?} in {backend}");
    }
    let free = format!("of {:.1} MiB free", budget as f64 / (1 << 20) as f64);
    assert!(backend.contains(&free), "a plan within {free}: {backend}");
}
