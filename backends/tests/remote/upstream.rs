//! A service that does as a test says: raw HTTP/1.1 on a socket, so that it can break off anywhere.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pagoda_backends::registry::BackendKind;
use pagoda_backends::remote::{BreakerPolicy, Remote, RemoteService, RemoteSettings, RetryPolicy};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

/// The key that no message may hold.
pub const KEY: &str = "sk-very-secret-key";

/// What the service does with a request.
pub enum Reply {
    /// A whole answer: status, further header lines, body.
    Answer(u16, &'static str, String),
    /// 200 and a stream of pieces.
    Stream(Vec<Piece>),
    /// The connection closes without an answer.
    Close,
    /// No answer ever comes.
    Hang,
}

/// A part of a stream.
pub enum Piece {
    /// One chunk.
    Chunk(String),
    /// Nothing comes until the test says so.
    Wait(Arc<Notify>),
    /// Nothing comes any more.
    Hang,
    /// The connection closes in the middle.
    Cut,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub headers: String,
    pub body: Value,
}

struct Shared {
    replies: Mutex<VecDeque<Reply>>,
    seen: Mutex<Vec<Seen>>,
    num_connections: Mutex<usize>,
    /// Clients that went away while something was still to come.
    num_gone: watch::Sender<usize>,
}

/// A running service.
#[derive(Clone)]
pub struct Upstream {
    pub url: String,
    shared: Arc<Shared>,
}

impl Upstream {
    pub async fn start() -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            replies: Mutex::default(),
            seen: Mutex::default(),
            num_connections: Mutex::default(),
            num_gone: watch::Sender::new(0),
        });
        let upstream = Upstream { url, shared };
        let service = upstream.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                *service.shared.num_connections.lock().unwrap() += 1;
                let service = service.clone();
                tokio::spawn(async move { service.serve(BufReader::new(socket)).await });
            }
        });
        upstream
    }

    /// Prepares the next reply.
    pub fn push(&self, reply: Reply) {
        self.shared.replies.lock().unwrap().push_back(reply);
    }

    /// Prepares a stream of these events, then `[DONE]`.
    pub fn play(&self, events: &[Value]) {
        let mut pieces: Vec<Piece> = events.iter().map(event).collect();
        pieces.push(Piece::Chunk("data: [DONE]\n\n".into()));
        self.push(Reply::Stream(pieces));
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub fn num_connections(&self) -> usize {
        *self.shared.num_connections.lock().unwrap()
    }

    /// Completes when `num` clients went away early.
    pub async fn gone(&self, num: usize) {
        let mut gone = self.shared.num_gone.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(10), gone.wait_for(|gone| *gone >= num)).await;
        waited.expect("the client closes its connection").expect("the service lives");
    }

    async fn serve(&self, mut socket: BufReader<TcpStream>) -> Option<()> {
        loop {
            let seen = read(&mut socket).await?;
            self.shared.seen.lock().unwrap().push(seen);
            let reply = self.shared.replies.lock().unwrap().pop_front();
            match reply.unwrap_or_else(|| Reply::Answer(500, "", "no reply was prepared".into())) {
                Reply::Answer(status, headers, body) => {
                    let head =
                        format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n", body.len());
                    write(&mut socket, &(head + &body)).await?;
                }
                Reply::Stream(pieces) => self.stream(&mut socket, pieces).await?,
                Reply::Close => return None,
                Reply::Hang => return self.until_gone(&mut socket).await,
            }
        }
    }

    async fn stream(&self, socket: &mut BufReader<TcpStream>, pieces: Vec<Piece>) -> Option<()> {
        write(socket, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
        for piece in pieces {
            match piece {
                Piece::Chunk(text) => write(socket, &format!("{:x}\r\n{text}\r\n", text.len())).await?,
                Piece::Wait(notify) => notify.notified().await,
                Piece::Hang => return self.until_gone(socket).await,
                Piece::Cut => return None,
            }
        }
        write(socket, "0\r\n\r\n").await
    }

    async fn until_gone(&self, socket: &mut BufReader<TcpStream>) -> Option<()> {
        let mut byte = [0];
        if matches!(socket.read(&mut byte).await, Ok(0) | Err(_)) {
            self.shared.num_gone.send_modify(|num| *num += 1);
        }
        None
    }
}

async fn write(socket: &mut BufReader<TcpStream>, text: &str) -> Option<()> {
    socket.get_mut().write_all(text.as_bytes()).await.ok()
}

async fn read(socket: &mut BufReader<TcpStream>) -> Option<Seen> {
    let (mut line, mut headers) = (String::new(), String::new());
    socket.read_line(&mut line).await.ok().filter(|&len| len > 0)?;
    loop {
        let start = headers.len();
        socket.read_line(&mut headers).await.ok()?;
        if headers[start..].trim().is_empty() {
            break;
        }
    }
    let len = headers.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; len];
    socket.read_exact(&mut body).await.ok()?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Seen { line: line.trim().to_owned(), headers, body })
}

/// One event of a stream.
pub fn event(json: &Value) -> Piece {
    Piece::Chunk(format!("data: {json}\n\n"))
}

/// A chunk with a piece of text.
pub fn text(text: &str) -> Value {
    json!({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
}

/// The chunk that ends a choice.
pub fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

/// The chunk with the counts.
pub fn usage(prompt: usize, cached: usize, completion: usize) -> Value {
    let details = json!({"cached_tokens": cached});
    json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}})
}

/// How tests reach a service: impatient, and never turned away.
pub fn settings(kind: BackendKind, url: &str) -> RemoteSettings {
    let ms = Duration::from_millis;
    RemoteSettings {
        api_key: Some(KEY.into()),
        timeout: ms(5000),
        policy: RetryPolicy {
            max_retries: 2,
            base_wait: ms(2),
            max_wait: ms(200),
            connect_timeout: ms(2000),
            breaker: BreakerPolicy { max_failures: 100, cooldown: ms(100), max_cooldown: ms(200) },
        },
        ..RemoteSettings::new(kind, url)
    }
}

/// A vllm_remote backend over the service's model `up`.
pub fn remote(upstream: &Upstream) -> Remote {
    RemoteService::new(&settings(BackendKind::VllmRemote, &upstream.url)).unwrap().model("up", Some(4096))
}
