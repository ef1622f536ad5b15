//! The whole way: `pagoda serve` picks the kind by itself, answers over HTTP, and survives the death of its worker.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::{worker, write};
use crate::process::{Served, home, pagoda, serve_model, text};

/// A served tiny GPT-2.
fn serve(extra: &[&str]) -> Option<Served> {
    let worker = worker()?.display().to_string();
    let folder = home();
    let path = write(folder.path(), "gpt2");
    Some(serve_model(folder, &path, &[&["--hf-worker", &worker, "--threads", "1"], extra].concat()))
}

fn send(address: &str, route: &str, body: &Value) -> TcpStream {
    let mut socket = TcpStream::connect(address).expect("connects");
    let body = body.to_string();
    let head = format!(
        "POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).expect("sent");
    socket
}

fn ask(address: &str, route: &str, body: &Value) -> String {
    let mut answer = String::new();
    send(address, route, body).read_to_string(&mut answer).expect("answered");
    answer
}

fn message(max_tokens: u32, stream: bool) -> Value {
    json!({"model": "tiny", "max_tokens": max_tokens, "stream": stream, "messages": [{"role": "user", "content": "hello"}]})
}

/// The worker of a server: its child.
fn worker_of(server: &Served) -> u32 {
    let parent = server.child.id().to_string();
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(parent.as_str())
    };
    let pids = std::fs::read_dir("/proc").expect("processes").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(is_child).expect("a worker")
}

fn kill(pid: u32) {
    let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs");
    assert!(status.success());
}

#[test]
fn both_apis_stream_from_a_model_that_the_engine_has_not() {
    let Some(server) = serve(&[]) else { return };
    let answer = ask(&server.address, "/v1/messages", &message(8, true));
    assert_eq!(answer.matches("event: message_stop").count(), 1, "{answer}");
    assert!(answer.contains("content_block_delta"), "{answer}");
    let chat = json!({"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}], "logprobs": true});
    let answer = ask(&server.address, "/v1/chat/completions", &chat);
    assert!(answer.contains("\"completion_tokens\":") && answer.contains("\"logprob\":"), "{answer}");
    let log = std::fs::read_to_string(&server.stderr).expect("a log");
    assert!(log.contains("huggingface") && log.contains("the engine has not the architecture"), "{log}");
}

#[test]
fn a_request_fails_with_its_worker_and_the_next_one_runs() {
    let Some(server) = serve(&[]) else { return };
    let mut stream = BufReader::new(send(&server.address, "/v1/messages", &message(240, true)));
    let mut line = String::new();
    while !line.contains("content_block_delta") {
        line.clear();
        assert!(stream.read_line(&mut line).expect("a stream") > 0, "the stream ended early");
    }
    kill(worker_of(&server));
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("a stream");
    assert!(rest.contains("event: error") && rest.contains("the huggingface worker ended: signal: 9"), "{rest}");
    let answer = ask(&server.address, "/v1/messages", &message(8, false));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Between two requests nobody notices.
    kill(worker_of(&server));
    let answer = ask(&server.address, "/v1/messages", &message(8, false));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn the_worker_ends_with_its_server() {
    let Some(mut server) = serve(&[]) else { return };
    let worker = worker_of(&server);
    server.child.kill().expect("killed");
    server.child.wait().expect("ended");
    let is_there = || std::fs::read_to_string(format!("/proc/{worker}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    let started = std::time::Instant::now();
    while is_there() {
        assert!(started.elapsed().as_secs() < 10, "worker {worker} lives on");
        std::thread::yield_now();
    }
}

#[test]
fn doctor_says_which_kind_and_why() {
    let folder = home();
    let path = write(folder.path(), "gpt2").display().to_string();
    let run = |arguments: &[&str]| text(&pagoda(folder.path(), arguments).output().expect("runs").stdout);
    let said = run(&["doctor", &path]);
    assert!(said.contains("kind      huggingface (the engine has not the architecture: unknown architecture `GPT2LMHeadModel`"), "{said}");
    let Some(worker) = worker() else { return };
    let said = run(&["doctor", &path, "--load", "--hf-worker", &worker.display().to_string()]);
    assert!(said.contains("family    gpt2, context 256, on cpu"), "{said}");
    assert!(Path::new(&path).is_dir());
}
