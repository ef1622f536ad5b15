//! A load client of `/v1/completions`: prompts as token ids, streamed answers, connections kept and shared.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::figures::Timing;

/// Longest time for one request.
const TIMEOUT: Duration = Duration::from_secs(900);
/// Longest part of an error's body that is quoted.
const MAX_QUOTED: usize = 300;

/// A server and the model asked for.
pub struct HttpClient {
    /// `host:port`.
    authority: String,
    model: String,
    api_key: Option<String>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// One request.
pub struct Completion {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// Tokens of the answer; it does not end earlier.
    pub max_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// JSON Schema that the answer has to fit.
    pub schema: Option<Value>,
    /// Close the connection after this many events.
    pub give_up_after: Option<usize>,
}

impl HttpClient {
    /// A client of `http://host:port`; `model` None: the first model served.
    ///
    /// # Errors
    /// An address of another kind, or a server that does not answer.
    pub async fn connect(url: &str, model: Option<&str>, api_key: Option<&str>) -> Result<HttpClient> {
        let authority = url.strip_prefix("http://").with_context(|| format!("--url: `{url}`: expected http://host:port"))?;
        let authority = authority.trim_end_matches('/').to_string();
        ensure!(!authority.is_empty() && !authority.contains('/'), "--url: `{url}`: expected http://host:port");
        let api_key = api_key.map(str::to_string);
        let mut client = HttpClient { authority, model: String::new(), api_key, idle: Mutex::default() };
        client.model = match model {
            Some(model) => model.to_string(),
            None => {
                let models = client.get("/v1/models").await?;
                models["data"][0]["id"].as_str().context("the server names no model; give --served-model")?.to_string()
            }
        };
        Ok(client)
    }

    /// The JSON of a path.
    ///
    /// # Errors
    /// No answer, a status other than 200, no JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let response = self.send("GET", path, Bytes::new()).await?.1;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status == 200, "{path}: status {status}: {}", quoted(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// Runs one completion to its end, or until it is given up.
    ///
    /// # Errors
    /// A status other than 200, an error within the stream, or a stream cut short.
    pub async fn complete(&self, completion: &Completion) -> Result<Timing> {
        tokio::time::timeout(TIMEOUT, self.answer(completion)).await.context("no end within the time allowed")?
    }

    async fn answer(&self, completion: &Completion) -> Result<Timing> {
        let mut body = json!({
            "model": self.model, "prompt": completion.prompt, "max_tokens": completion.max_tokens, "min_tokens": completion.max_tokens,
            "temperature": completion.temperature, "ignore_eos": true, "stream": true, "stream_options": { "include_usage": true },
        });
        if let Some(schema) = &completion.schema {
            body["structured_outputs"] = json!({ "json": schema });
        }
        let started = Instant::now();
        let (sender, response) = self.send("POST", "/v1/completions", body.to_string().into()).await?;
        let status = response.status();
        if status != 200 {
            bail!("status {status}: {}", quoted(&response.into_body().collect().await?.to_bytes()));
        }
        let mut events = Events { timing: Timing::default(), started, num_events: 0, is_done: false, rest: Vec::new() };
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame?.data_ref() {
                events.push(data)?;
            }
            if completion.give_up_after.is_some_and(|num| events.num_events >= num) {
                return Ok(events.timing); // dropping the connection tells the server
            }
        }
        ensure!(events.is_done, "the answer was cut off after {} events", events.num_events);
        self.idle.lock().push(sender);
        Ok(events.timing)
    }

    async fn send(&self, method: &str, path: &str, body: Bytes) -> Result<(SendRequest<Full<Bytes>>, Response<Incoming>)> {
        let mut request =
            Request::builder().method(method).uri(path).header("host", &self.authority).header("content-type", "application/json");
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut sender = self.sender().await?;
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        Ok((sender, response))
    }

    /// A connection that nobody uses: one kept, or a new one.
    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>> {
        loop {
            let Some(mut kept) = self.idle.lock().pop() else { break };
            if kept.ready().await.is_ok() {
                return Ok(kept);
            }
        }
        let stream = TcpStream::connect(&self.authority).await.with_context(|| format!("--url: {}", self.authority))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn quoted(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(MAX_QUOTED).collect()
}

/// What a stream of server-sent events has shown so far.
struct Events {
    timing: Timing,
    started: Instant,
    num_events: usize,
    is_done: bool,
    /// Bytes of an event that is not complete.
    rest: Vec<u8>,
}

impl Events {
    fn push(&mut self, data: &[u8]) -> Result<()> {
        self.rest.extend_from_slice(data);
        let mut start = 0;
        while let Some(len) = self.rest[start..].windows(2).position(|pair| pair == b"\n\n") {
            let event = start..start + len;
            start = event.end + 2;
            take(&mut self.timing, &mut self.num_events, &mut self.is_done, self.started, &self.rest[event])?;
        }
        self.rest.drain(..start);
        Ok(())
    }
}

/// Reads one event. Only the last one, which holds the counts, is worth parsing.
fn take(timing: &mut Timing, num_events: &mut usize, is_done: &mut bool, started: Instant, event: &[u8]) -> Result<()> {
    let Some(data) = event.strip_prefix(b"data: ") else { return Ok(()) };
    let holds = |part: &[u8]| data.windows(part.len()).any(|window| window == part);
    if data == b"[DONE]" {
        *is_done = true;
    } else if data.starts_with(b"{\"error\"") {
        bail!("error within the stream: {}", quoted(data));
    } else if holds(b"\"completion_tokens\"") {
        let usage = &serde_json::from_slice::<Value>(data)?["usage"];
        timing.num_tokens = usage["completion_tokens"].as_u64().unwrap_or(0) as usize;
        timing.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0) as usize;
    } else {
        timing.total_s = started.elapsed().as_secs_f64();
        if *num_events == 0 {
            timing.ttft_s = timing.total_s;
        }
        *num_events += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_wherever_they_are_cut() {
        let text = "data: {\"choices\":[1]}\n\n: ping\n\ndata: {\"choices\":[2]}\n\ndata: {\"choices\":[],\"usage\":{\"completion_tokens\":2,\
                    \"prompt_tokens_details\":{\"cached_tokens\":16}}}\n\ndata: [DONE]\n\n";
        for cut in 0..text.len() {
            let mut events = Events { timing: Timing::default(), started: Instant::now(), num_events: 0, is_done: false, rest: Vec::new() };
            events.push(&text.as_bytes()[..cut]).expect("good events");
            events.push(&text.as_bytes()[cut..]).expect("good events");
            assert_eq!((events.num_events, events.is_done), (2, true), "cut at {cut}");
            assert_eq!((events.timing.num_tokens, events.timing.cached_tokens), (2, 16), "cut at {cut}");
            assert!(events.timing.total_s >= events.timing.ttft_s);
        }
        let mut events = Events { timing: Timing::default(), started: Instant::now(), num_events: 0, is_done: false, rest: Vec::new() };
        assert!(events.push(b"data: {\"error\":{\"message\":\"x\"}}\n\n").is_err());
    }
}
