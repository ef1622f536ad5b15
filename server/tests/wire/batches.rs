//! `/v1/messages/batches`: what is answered, cancelled, kept over a restart and tried again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pagoda_backends::{BackendError, GenerateEvent, StopReason, Usage};
use pagoda_server::{ModelSource, ServerConfig};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::client::{PATIENCE, Server, served};
use crate::scripted::{Reply, Scripted, Step};

const BATCHES: &str = "/v1/messages/batches";

async fn start(folder: &Path) -> Server {
    let config = ServerConfig { batch_dir: Some(folder.to_owned()), ..ServerConfig::default() };
    Server::with(config).await
}

fn request(custom_id: &str, text: &str) -> Value {
    json!({"custom_id": custom_id, "params": {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": text}]}})
}

async fn create(server: &Server, requests: Vec<Value>) -> String {
    let answer = server.post(BATCHES, &json!({"requests": requests})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

async fn retrieve(server: &Server, id: &str) -> Value {
    server.get(&format!("{BATCHES}/{id}")).await.json()
}

async fn until(server: &Server, id: &str, good: impl Fn(&Value) -> bool) -> Value {
    let reached = async {
        loop {
            let batch = retrieve(server, id).await;
            if good(&batch) {
                return batch;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("the batch gets there")
}

async fn ended(server: &Server, id: &str) -> Value {
    until(server, id, |batch| batch["processing_status"] == "ended").await
}

/// Results by custom id.
async fn results(server: &Server, id: &str) -> BTreeMap<String, Value> {
    let answer = server.get(&format!("{BATCHES}/{id}/results")).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-jsonl")));
    let lines = answer.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| (line["custom_id"].as_str().unwrap().to_owned(), line["result"].clone())).collect()
}

fn hangs() -> Reply {
    Reply::Play(vec![Step::Event(GenerateEvent::Started { prompt_tokens: 1, prompt_token_ids: vec![1], cached_tokens: 0 }), Step::Hang])
}

#[tokio::test]
async fn a_batch_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let mut wrong = request("wrong", "x");
    wrong["params"]["temperature"] = json!(9);
    let mut unknown = request("unknown", "x");
    unknown["params"]["model"] = json!("none");
    let id = create(&server, vec![request("a", "one"), request("b-2_B", "two"), wrong, unknown]).await;
    let batch = ended(&server, &id).await;
    assert!(id.starts_with("msgbatch_"));
    assert_eq!(batch["type"], json!("message_batch"));
    let counts = json!({"processing": 0, "succeeded": 2, "errored": 2, "canceled": 0, "expired": 0});
    assert_eq!(batch["request_counts"], counts);
    assert_eq!(batch["results_url"], json!(format!("{BATCHES}/{id}/results")));
    for (name, is_set) in [("created_at", true), ("expires_at", true), ("ended_at", true), ("cancel_initiated_at", false)] {
        assert_eq!(batch[name].is_string(), is_set, "{name}");
    }
    let results = results(&server, &id).await;
    assert_eq!(results.keys().collect::<Vec<_>>(), ["a", "b-2_B", "unknown", "wrong"]);
    assert_eq!((&results["a"]["type"], &results["a"]["message"]["content"][0]["text"]), (&json!("succeeded"), &json!("one")));
    assert_eq!(results["b-2_B"]["message"]["stop_reason"], json!("end_turn"));
    for (name, kind, part) in [("wrong", "invalid_request_error", "temperature"), ("unknown", "not_found_error", "`none`")] {
        let error = &results[name]["error"];
        assert_eq!((&results[name]["type"], &error["type"], &error["error"]["type"]), (&json!("errored"), &json!("error"), &json!(kind)));
        assert!(error["error"]["message"].as_str().unwrap().contains(part), "{error}");
    }
    // Behind everybody else.
    assert!(server.backend.requests().iter().all(|request| request.config.priority > 1 << 20));
}

#[tokio::test]
async fn wrong_bodies_and_unknown_batches() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let mut streamed = request("a", "x");
    streamed["params"]["stream"] = json!(true);
    for (body, field) in [
        (json!({}), "requests"),
        (json!({"requests": []}), "requests"),
        (json!({"requests": [{"params": {}}]}), "requests[0].custom_id"),
        (json!({"requests": [request("a b", "x")]}), "requests[0].custom_id"),
        (json!({"requests": [request("a", "x"), request("a", "y")]}), "requests[1].custom_id"),
        (json!({"requests": [{"custom_id": "a", "params": 3}]}), "requests[0].params"),
        (json!({"requests": [streamed]}), "requests[0].params.stream"),
    ] {
        let answer = server.post(BATCHES, &body).await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["type"]), (400, &json!("invalid_request_error")), "{body}");
        assert!(error["message"].as_str().unwrap().starts_with(&format!("{field}:")), "{field}: {error}");
    }
    for (method, path) in [("GET", "/x"), ("GET", "/x/results"), ("POST", "/x/cancel"), ("DELETE", "/x")] {
        let answer = server.request(method, &format!("{BATCHES}{path}"), &[], b"").await;
        assert_eq!((answer.status, &answer.json()["error"]["type"]), (404, &json!("not_found_error")), "{method} {path}");
    }
    assert_eq!(Server::start().await.get(BATCHES).await.status, 404, "a server without a folder keeps none");
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_says_so_and_how_to_mend_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = start(folder.path()).await;
    let second = start(folder.path()).await;
    let refusal = second.post(BATCHES, &json!({"requests": [request("a", "x")]})).await;
    let message = refusal.json()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(refusal.status, 404);
    assert!(message.contains("another server keeps its own in the same folder") && message.contains("--batch-dir"), "{message}");
    let holder = std::fs::read_to_string(folder.path().join("lock")).unwrap();
    assert_eq!(holder, std::process::id().to_string(), "the second one left it alone");
    create(&first, vec![request("a", "x")]).await;
    let without = Server::start().await.get(BATCHES).await.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(without.contains("no folder") && without.contains("--batch-dir"), "{without}");
}

#[tokio::test]
async fn lists_come_in_pages_and_ended_batches_can_go() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let mut ids = Vec::new();
    for idx in 0..3 {
        ids.insert(0, create(&server, vec![request("a", &format!("text {idx}"))]).await);
    }
    let list = server.get(&format!("{BATCHES}?limit=2")).await.json();
    assert_eq!((&list["first_id"], &list["last_id"], &list["has_more"]), (&json!(ids[0]), &json!(ids[1]), &json!(true)));
    let rest = server.get(&format!("{BATCHES}?after_id={}", ids[1])).await.json();
    assert_eq!((rest["data"][0]["id"].as_str(), &rest["has_more"]), (Some(ids[2].as_str()), &json!(false)));
    ended(&server, &ids[1]).await;
    let path = format!("{BATCHES}/{}", ids[1]);
    let gone = server.request("DELETE", &path, &[], b"").await;
    assert_eq!(gone.json(), json!({"id": ids[1], "type": "message_batch_deleted"}));
    assert_eq!(server.get(&path).await.status, 404);
    assert!(!folder.path().join(&ids[1]).exists());

    server.backend.push(hangs());
    let running = create(&server, vec![request("a", "x")]).await;
    let path = format!("{BATCHES}/{running}");
    assert_eq!(server.request("DELETE", &path, &[], b"").await.status, 400);
    assert_eq!(server.get(&format!("{path}/results")).await.status, 404);
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    for _ in 0..40 {
        server.backend.push(hangs());
    }
    let done = create(&server, vec![request("quick", "x")]).await;
    until(&server, &done, |_| true).await;
    server.backend.live(1).await;
    let id = create(&server, (0..39).map(|idx| request(&format!("r{idx}"), "x")).collect()).await;
    // Some run, the others wait for their turn.
    server.backend.live(32).await;
    let canceling = server.post(&format!("{BATCHES}/{id}/cancel"), &json!({})).await.json();
    assert!(canceling["cancel_initiated_at"].is_string());
    let batch = ended(&server, &id).await;
    assert_eq!(batch["request_counts"]["canceled"], json!(39));
    let results = results(&server, &id).await;
    assert!(results.len() == 39 && results.values().all(|result| *result == json!({"type": "canceled"})));
    server.backend.live(1).await;
    assert_eq!(server.post(&format!("{BATCHES}/{id}/cancel"), &json!({})).await.json()["processing_status"], json!("ended"));
}

#[tokio::test]
async fn a_restart_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start(folder.path()).await;
    server.backend.push(hangs());
    let id = create(&server, vec![request("slow", "one"), request("quick", "two")]).await;
    until(&server, &id, |batch| batch["request_counts"]["succeeded"] == json!(1)).await;
    // A server that ends leaves what runs for the next one, and so does one that crashes in the middle of a line.
    server.shut_down();
    server.ended().await;
    let file = folder.path().join(&id).join("results.jsonl");
    let kept = std::fs::read_to_string(&file).unwrap();
    assert_eq!(kept.lines().count(), 1);
    std::fs::write(&file, kept + "{\"custom_id\":\"slo").unwrap();
    std::fs::create_dir(folder.path().join(".new-msgbatch_half")).unwrap();
    // The folder is free once the last task of the first server is gone.
    let again = async {
        loop {
            let server = start(folder.path()).await;
            if server.get(BATCHES).await.status == 200 {
                return server;
            }
        }
    };
    let server = timeout(PATIENCE, again).await.expect("the folder gets free");
    let batch = ended(&server, &id).await;
    assert_eq!(batch["request_counts"]["succeeded"], json!(2));
    let results = results(&server, &id).await;
    // Whichever came first was the one that hung.
    let texts: Vec<&Value> = results.values().map(|result| &result["message"]["content"][0]["text"]).collect();
    assert!(texts.contains(&&json!("one")) && texts.contains(&&json!("two")), "{texts:?}");
    assert_eq!(server.backend.requests().len(), 1, "only what had no result runs again");
    assert!(!folder.path().join(".new-msgbatch_half").exists());
    let list = server.get(BATCHES).await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = ServerConfig { batch_dir: Some(folder.path().to_owned()), ..ServerConfig::default() };
    let backend = Arc::new(Scripted::default());
    let models = ModelSource::loading();
    let server = Server::over(config, models.clone(), Arc::clone(&backend)).await;
    let id = create(&server, vec![request("a", "x")]).await;
    backend.push(Reply::Refuse(BackendError::Overloaded { message: "full".into(), retry_after_s: 1 }));
    models.set_ready(served(&backend));
    assert_eq!(ended(&server, &id).await["request_counts"]["succeeded"], json!(1));
    // What is wrong with the request itself is not tried again.
    backend.push(Reply::Refuse(BackendError::PromptTooLong { prompt_tokens: 9, max_tokens: 8 }));
    let id = create(&server, vec![request("a", "x")]).await;
    assert_eq!(ended(&server, &id).await["request_counts"]["errored"], json!(1));
}

/// A batch's tokens count as everybody's.
#[tokio::test]
async fn batches_are_metered() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    server.backend.play(vec![
        GenerateEvent::Started { prompt_tokens: 7, prompt_token_ids: Vec::new(), cached_tokens: 0 },
        GenerateEvent::Finished { choice: 0, reason: StopReason::EndOfTurn },
        GenerateEvent::Done(Usage { prompt_tokens: 7, cached_tokens: 0, completion_tokens: 3 }),
    ]);
    let id = create(&server, vec![request("a", "x")]).await;
    ended(&server, &id).await;
    let metrics = crate::exposition::Scrape::parse(server.get("/metrics").await.text());
    assert_eq!((metrics.of("vllm:prompt_tokens_total", &[]), metrics.of("vllm:generation_tokens_total", &[])), (7.0, 3.0));
}
