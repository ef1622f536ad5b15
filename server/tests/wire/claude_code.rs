//! Claude Code's recorded requests: a whole turn with a tool, over a scripted model.

use pagoda_backends::{ChatPrompt, GenerateEvent, Prompt, StopReason, Usage};
use serde_json::{Value, json};

use crate::client::{Answer, Server};

/// A recorded request (tests/data/claude_code): path, headers, body.
fn recorded(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

async fn replay(server: &Server, request: &Value) -> Answer {
    let headers = request["headers"].as_object().unwrap();
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
    server.request("POST", request["path"].as_str().unwrap(), &headers, request["body"].to_string().as_bytes()).await
}

fn says(server: &Server, text: &str) {
    server.backend.play(vec![
        GenerateEvent::Started { prompt_tokens: 9, prompt_token_ids: Vec::new(), cached_tokens: 0 },
        GenerateEvent::Delta { choice: 0, text: text.into(), tokens: Vec::new() },
        GenerateEvent::Finished { choice: 0, reason: StopReason::EndOfTurn },
        GenerateEvent::Done(Usage { prompt_tokens: 9, cached_tokens: 0, completion_tokens: 9 }),
    ]);
}

fn events(answer: &Answer) -> Vec<Value> {
    answer.text().lines().filter_map(|line| line.strip_prefix("data: ")).map(|data| serde_json::from_str(data).unwrap()).collect()
}

fn last_chat(server: &Server) -> ChatPrompt {
    match server.backend.last().prompt {
        Prompt::Chat(chat) => chat,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_turn_with_a_tool() {
    let server = Server::start().await;
    // It asks whether anybody is there before anything else.
    let mut client = server.connect().await;
    client.send("HEAD", "/", &[], b"").await;
    assert_eq!(client.head().await.status, 200);

    says(&server, "<tool_call>\n{\"name\": \"Bash\", \"arguments\": {\"command\": \"echo hello\"}}\n</tool_call>");
    let first = replay(&server, &recorded(include_str!("../../../tests/data/claude_code/first.json"))).await;
    let shown = events(&first);
    let types: Vec<&str> = shown.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let block = ["content_block_start", "content_block_delta", "content_block_stop"];
    assert_eq!(types, [&["message_start"], &block[..], &["message_delta", "message_stop"]].concat());
    assert_eq!((&shown[1]["content_block"]["name"], &shown[4]["delta"]["stop_reason"]), (&json!("Bash"), &json!("tool_use")));
    let asked = last_chat(&server);
    let offered: Vec<&str> = asked.tools.iter().map(|tool| tool["function"]["name"].as_str().unwrap()).collect();
    assert!(offered.contains(&"Bash") && offered.len() > 10, "{offered:?}");
    assert!(asked.messages.iter().all(|message| !message.content.contains("billing-header")), "session data keeps prefixes apart");

    says(&server, "It said hello.");
    let second = replay(&server, &recorded(include_str!("../../../tests/data/claude_code/tool_result.json"))).await;
    assert_eq!(events(&second)[2]["delta"]["text"], json!("It said hello."));
    let result = last_chat(&server).messages.pop().unwrap();
    assert_eq!((result.role.as_str(), result.content.as_str(), result.name.as_deref()), ("tool", "hello", Some("Bash")));
    assert_eq!(last_chat(&server).messages[..asked.messages.len()].len(), asked.messages.len());
    for (before, now) in asked.messages.iter().zip(last_chat(&server).messages) {
        assert_eq!((&before.role, &before.content), (&now.role, &now.content), "what was sent before comes first again");
    }
}
