//! Remote backends against a service that misbehaves in every way, over real sockets.
#![allow(clippy::unwrap_used, reason = "tests may stop at a surprise")]

#[path = "remote/constraints.rs"]
mod constraints;
#[path = "remote/faults.rs"]
mod faults;
#[path = "remote/reasoning.rs"]
mod reasoning;
#[path = "remote/requests.rs"]
mod requests;
#[path = "remote/upstream.rs"]
mod upstream;
#[path = "remote/vectors.rs"]
mod vectors;

use futures_util::StreamExt;
use pagoda_backends::remote::Remote;
use pagoda_backends::{
    BackendError, ChatMessage, ChatPrompt, GenerateEvent, GenerateOutput, GenerateRequest, GenerationConfig, InferenceBackend, Prompt,
};

/// A question, with what a client who says nothing else sends.
fn question(remote: &Remote) -> GenerateRequest {
    let message = ChatMessage { role: "user".into(), content: "hi".into(), ..ChatMessage::default() };
    let prompt = Prompt::Chat(ChatPrompt { messages: vec![message], add_generation_prompt: true, ..ChatPrompt::default() });
    GenerateRequest { prompt, config: GenerationConfig { max_tokens: Some(10), ..remote.default_config() } }
}

async fn ask(remote: &Remote) -> Result<GenerateOutput, BackendError> {
    remote.generate(question(remote)).await
}

/// The text that came, and the fault that ended it.
async fn stream(remote: &Remote) -> (String, Option<BackendError>) {
    let mut events = match remote.generate_stream(question(remote)).await {
        Ok(events) => events,
        Err(error) => return (String::new(), Some(error)),
    };
    let mut text = String::new();
    while let Some(event) = events.next().await {
        match event {
            GenerateEvent::Delta { text: piece, .. } => text.push_str(&piece),
            GenerateEvent::Failed(error) => {
                assert!(events.next().await.is_none(), "nothing follows a fault");
                return (text, Some(error));
            }
            _ => {}
        }
    }
    (text, None)
}
