//! Requests to a served model over plain sockets, and what both wires' answers come to, whole or streamed.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

/// One of the two wires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// `/v1/messages`.
    Anthropic,
    /// `/v1/chat/completions`.
    OpenAi,
}

/// What an answer came to, whichever wire it took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Texts and calls in order: `{"type": "text", "text"}`, `{"type": "tool_use", "name", "input"}`.
    pub blocks: Vec<Value>,
    /// Anthropic's `stop_reason`.
    pub stop_reason: String,
}

impl Answer {
    /// Its only text.
    pub fn text(&self) -> &str {
        assert!(self.blocks.len() <= 1, "{:?}", self.blocks);
        self.blocks.first().map_or("", |block| block["text"].as_str().expect("a text"))
    }

    /// Its calls.
    pub fn calls(&self) -> impl Iterator<Item = (&str, &Value)> {
        let calls = self.blocks.iter().filter(|block| block["type"] == "tool_use");
        calls.map(|call| (call["name"].as_str().expect("a name"), &call["input"]))
    }
}

/// POST `body`: status and body of the answer.
pub fn post(address: &str, path: &str, body: &Value) -> (u16, String) {
    request(address, &format!("POST {path}"), &body.to_string())
}

/// GET `path`.
pub fn get(address: &str, path: &str) -> (u16, String) {
    request(address, &format!("GET {path}"), "")
}

fn request(address: &str, line: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the server answers");
    // HTTP/1.0: the answer is not chunked and ends with the connection.
    let head = format!("{line} HTTP/1.0\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("received");
    let answer = String::from_utf8(answer).expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body.to_string())
}

/// Asks over one wire, with `more` fields; tools are in Anthropic's shape.
pub fn ask(address: &str, wire: Wire, more: &Value) -> Answer {
    let path = match wire {
        Wire::Anthropic => "/v1/messages",
        Wire::OpenAi => "/v1/chat/completions",
    };
    let mut body = json!({"model": "tiny", "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}]});
    for (key, value) in more.as_object().expect("fields") {
        body[key] = value.clone();
    }
    if wire == Wire::OpenAi {
        to_openai(&mut body);
    }
    let (status, text) = post(address, path, &body);
    assert_eq!(status, 200, "{body}: {text}");
    match (wire, body["stream"] == true) {
        (Wire::Anthropic, false) => message(&serde_json::from_str(&text).expect("JSON")),
        (Wire::Anthropic, true) => message_of_events(&text),
        (Wire::OpenAi, false) => completion(&serde_json::from_str(&text).expect("JSON")),
        (Wire::OpenAi, true) => completion_of_chunks(&text),
    }
}

fn to_openai(body: &mut Value) {
    for tool in body["tools"].as_array_mut().into_iter().flatten() {
        *tool = json!({"type": "function", "function": {"name": tool["name"], "parameters": tool["input_schema"]}});
    }
    let choice = body["tool_choice"].take();
    let single = choice["disable_parallel_tool_use"] == true;
    match choice["type"].as_str() {
        Some("any") => body["tool_choice"] = "required".into(),
        Some("tool") => body["tool_choice"] = json!({"type": "function", "function": {"name": choice["name"]}}),
        Some(other) => body["tool_choice"] = other.into(),
        None => {}
    }
    if single {
        body["parallel_tool_calls"] = false.into();
    }
}

fn push_text(blocks: &mut Vec<Value>, text: &str) {
    if !text.is_empty() {
        blocks.push(json!({"type": "text", "text": text}));
    }
}

fn call(name: &Value, input: Value) -> Value {
    json!({"type": "tool_use", "name": name, "input": input})
}

fn message(body: &Value) -> Answer {
    let mut answer = Answer { stop_reason: body["stop_reason"].as_str().unwrap_or_default().into(), ..Answer::default() };
    for block in body["content"].as_array().expect("content") {
        match block["type"].as_str() {
            Some("text") => push_text(&mut answer.blocks, block["text"].as_str().expect("text")),
            _ => answer.blocks.push(call(&block["name"], block["input"].clone())),
        }
    }
    answer
}

fn data_of(stream: &str) -> Vec<Value> {
    let lines = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    lines.map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

fn message_of_events(stream: &str) -> Answer {
    let mut answer = Answer::default();
    let mut open: Option<(Value, String)> = None;
    for event in data_of(stream) {
        match event["type"].as_str().expect("a type") {
            "content_block_start" => open = Some((event["content_block"].clone(), String::new())),
            "content_block_delta" => {
                let delta = &event["delta"];
                let piece = delta["text"].as_str().or(delta["partial_json"].as_str()).expect("a piece");
                open.as_mut().expect("a block is open").1.push_str(piece);
            }
            "content_block_stop" => match open.take().expect("a block is open") {
                (block, text) if block["type"] == "text" => push_text(&mut answer.blocks, &text),
                (block, json) => answer.blocks.push(call(&block["name"], serde_json::from_str(&json).unwrap_or(json!({})))),
            },
            "message_delta" => answer.stop_reason = event["delta"]["stop_reason"].as_str().expect("a reason").into(),
            "error" => panic!("{event}"),
            _ => {}
        }
    }
    answer
}

fn stop_reason(finish: &str) -> String {
    match finish {
        "stop" => "end_turn",
        "length" => "max_tokens",
        "tool_calls" => "tool_use",
        other => other,
    }
    .into()
}

fn completion(body: &Value) -> Answer {
    let choice = &body["choices"][0];
    let mut answer = Answer { stop_reason: stop_reason(choice["finish_reason"].as_str().expect("a reason")), ..Answer::default() };
    push_text(&mut answer.blocks, choice["message"]["content"].as_str().unwrap_or_default());
    for tool_call in choice["message"]["tool_calls"].as_array().into_iter().flatten() {
        let arguments = tool_call["function"]["arguments"].as_str().expect("a string");
        answer.blocks.push(call(&tool_call["function"]["name"], serde_json::from_str(arguments).expect("JSON")));
    }
    answer
}

fn completion_of_chunks(stream: &str) -> Answer {
    let mut answer = Answer::default();
    let (mut text, mut calls) = (String::new(), Vec::<(Value, String)>::new());
    for chunk in data_of(stream) {
        assert!(chunk["error"].is_null(), "{chunk}");
        let choice = &chunk["choices"][0];
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        if let Some(finish) = choice["finish_reason"].as_str() {
            answer.stop_reason = stop_reason(finish);
        }
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            if delta["id"].is_string() {
                calls.push((delta["function"]["name"].clone(), String::new()));
            }
            let piece = delta["function"]["arguments"].as_str().unwrap_or_default();
            calls[delta["index"].as_u64().expect("an index") as usize].1.push_str(piece);
        }
    }
    push_text(&mut answer.blocks, &text);
    for (name, arguments) in calls {
        answer.blocks.push(call(&name, serde_json::from_str(&arguments).expect("JSON")));
    }
    answer
}
