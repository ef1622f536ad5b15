//! Claude Code's recorded requests against a served tiny model: they are taken as they are, and a conversation finds its prefix again.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};

mod process;

use process::serve_with;

/// A recorded request (tests/data/claude_code): path, headers, body.
fn recorded(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/claude_code/{name}.json"));
    serde_json::from_str(&fs::read_to_string(path).expect("recorded")).expect("JSON")
}

/// Sends a request and returns status line and body.
fn send(address: &str, request: &Value, body: &Value) -> (String, String) {
    let body = body.to_string();
    let mut head = format!("POST {} HTTP/1.1\r\nhost: pagoda\r\nconnection: close\r\n", request["path"].as_str().expect("a path"));
    for (name, value) in request["headers"].as_object().expect("headers") {
        head.push_str(&format!("{name}: {}\r\n", value.as_str().expect("text")));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    let (head, rest) = answer.split_once("\r\n\r\n").expect("a head");
    (head.lines().next().expect("a status").to_owned(), rest.to_owned())
}

/// The events of a stream, in order.
fn events(body: &str) -> Vec<Value> {
    body.lines().filter_map(|line| line.strip_prefix("data: ")).map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

#[test]
fn a_conversation_of_claude_code_shares_its_prefix() {
    let long = |folder: &Path| {
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).expect("config")).expect("JSON");
        config["max_position_embeddings"] = json!(32768);
        fs::write(&path, config.to_string()).expect("config");
    };
    // A template that shows the tools, before everything else.
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat_templates/qwen2_5.jinja").display().to_string();
    let server = serve_with(&["--max-model-len", "32768", "--max-num-seqs", "2", "--chat-template", &template], long);
    let mut hits = Vec::new();
    for (turn, name) in ["first", "tool_result", "second"].into_iter().enumerate() {
        let request = recorded(name);
        let mut body = request["body"].clone();
        (body["model"], body["max_tokens"]) = (json!("tiny"), json!(4));
        // Every session has its own.
        body["system"][0]["text"] = json!(format!("x-anthropic-billing-header: cc_version=2.1.{turn}; cc_entrypoint=sdk-cli;"));
        let mut counted = request.clone();
        counted["path"] = json!("/v1/messages/count_tokens?beta=true");
        let (status, count) = send(&server.address, &counted, &body);
        assert!(status.contains(" 200 "), "{name}: {status} {count}");
        let (status, answer) = send(&server.address, &request, &body);
        assert!(status.contains(" 200 "), "{name}: {status} {answer}");
        let events = events(&answer);
        let last = events.last().expect("events");
        assert_eq!((events[0]["type"].as_str(), last["type"].as_str()), (Some("message_start"), Some("message_stop")), "{name}");
        let usage = |key: &str| events[0]["message"]["usage"][key].as_f64().expect("a count");
        let (read, prompt) = (usage("cache_read_input_tokens"), usage("input_tokens") + usage("cache_read_input_tokens"));
        assert_eq!(serde_json::from_str::<Value>(count.trim()).expect("JSON")["input_tokens"], json!(prompt as u64), "{name}");
        hits.push((name, read / prompt, prompt));
    }
    assert!(hits[0].1 == 0.0 && hits[0].2 > 4000.0, "{hits:?}");
    assert!(hits[1..].iter().all(|(_, share, _)| *share > 0.9), "prefix hits by prompt tokens: {hits:?}");
}
