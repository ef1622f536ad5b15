//! Runs prompts through an engine in this process and collects the answers.

use pagoda_engine::core::{EngineHandle, RequestStream};
use pagoda_engine::request::{Event, Request, Usage};
use pagoda_engine::sampling::SamplingParams;

use super::compare::Answer;

/// Greedy for exactly `max_tokens` tokens, with the five best logprobs of each.
pub fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    let max_tokens = u32::try_from(max_tokens).expect("few tokens");
    let sampling = SamplingParams { max_tokens, ignore_eos: true, logprobs: Some(5), ..SamplingParams::default() };
    Request { prompt: prompt.to_vec(), sampling, priority: 0, cache_salt: 0 }
}

/// Waits for the end of one request.
pub fn collect(mut stream: RequestStream) -> (Answer, Usage) {
    let mut answer = Answer::default();
    while let Some(event) = stream.next_blocking() {
        match event {
            Event::Token { token, logprobs, .. } => {
                answer.tokens.push(token);
                answer.tops.push(logprobs.expect("logprobs were asked for").top);
            }
            Event::Done(usage) => return (answer, usage),
            Event::Failed { message, .. } => panic!("request failed: {message}"),
            _ => {}
        }
    }
    panic!("the stream ended without a final event");
}

/// All at once: the engine batches them.
pub fn run_together(engine: &EngineHandle, requests: impl IntoIterator<Item = Request>) -> Vec<Answer> {
    let streams: Vec<RequestStream> = requests.into_iter().map(|r| engine.submit(r).expect("accepted")).collect();
    streams.into_iter().map(|stream| collect(stream).0).collect()
}

/// One after the other.
pub fn run_alone(engine: &EngineHandle, requests: impl IntoIterator<Item = Request>) -> Vec<Answer> {
    requests.into_iter().map(|r| collect(engine.submit(r).expect("accepted")).0).collect()
}
