//! A raw HTTP/1.1 client that can misbehave, and a server in this process to talk to.

use std::sync::Arc;
use std::time::Duration;

use pagoda_server::{ModelSource, ServedModel, ServerConfig, ServerError};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::scripted::Scripted;

/// No step of a test may take longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running server over a scripted backend, serving `m`, alias `other`, and `org/model`.
pub struct Server {
    pub address: String,
    pub backend: Arc<Scripted>,
    pub models: ModelSource,
    shutdown: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServerError>>,
}

impl Server {
    pub async fn start() -> Self {
        Server::with(ServerConfig::default()).await
    }

    pub async fn with(config: ServerConfig) -> Self {
        let backend = Arc::new(Scripted::default());
        Server::over(config, ModelSource::ready(served(&backend)), backend).await
    }

    pub async fn over(config: ServerConfig, models: ModelSource, backend: Arc<Scripted>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (shutdown, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(pagoda_server::run(listener, config, models.clone(), async {
            let _ = stopped.await;
        }));
        Server { address, backend, models, shutdown: Some(shutdown), task }
    }

    /// Asks the server to end.
    pub fn shut_down(&mut self) {
        let _ = self.shutdown.take().expect("asked once").send(());
    }

    /// Waits for the server's end.
    pub async fn ended(&mut self) {
        timeout(PATIENCE, &mut self.task).await.expect("the server ends").unwrap().unwrap();
    }

    pub async fn connect(&self) -> Client {
        Client { stream: BufReader::new(TcpStream::connect(&self.address).await.unwrap()) }
    }

    /// One request on a connection of its own.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut client = self.connect().await;
        client.send(method, path, headers, body).await;
        client.answer().await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes()).await
    }
}

/// The models every test server serves.
pub fn served(backend: &Arc<Scripted>) -> Vec<ServedModel> {
    let model = |name: &str, aliases: &[&str], created| ServedModel {
        name: name.to_owned(),
        aliases: aliases.iter().map(|alias| alias.to_string()).collect(),
        backend: Arc::clone(backend) as _,
        created,
    };
    vec![model("m", &["other"], 1_704_067_200), model("org/model", &[], 1_704_067_201)]
}

/// One connection.
pub struct Client {
    pub stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body as it was cut into chunks; empty where it was not.
    pub chunks: Vec<String>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }
}

impl Client {
    pub async fn raw(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.unwrap();
    }

    pub async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        if method == "POST" && !headers.iter().any(|(name, _)| *name == "content-length" || *name == "transfer-encoding") {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.raw(&bytes).await;
    }

    pub async fn post(&mut self, path: &str, body: &Value) {
        self.send("POST", path, &[], body.to_string().as_bytes()).await;
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(PATIENCE, self.stream.read_line(&mut line)).await.expect("a line in time").unwrap();
        line.trim_end().to_owned()
    }

    /// Status line and headers.
    pub async fn head(&mut self) -> Answer {
        let status_line = self.line().await;
        let status = status_line.split(' ').nth(1).unwrap_or_else(|| panic!("status line: {status_line:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line().await;
            match line.split_once(": ") {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
                None => return Answer { status, headers, body: Vec::new(), chunks: Vec::new() },
            }
        }
    }

    /// The next chunk of a chunked body; None at its end.
    pub async fn chunk(&mut self) -> Option<String> {
        let len = usize::from_str_radix(&self.line().await, 16).unwrap();
        let mut bytes = vec![0; len + 2];
        timeout(PATIENCE, self.stream.read_exact(&mut bytes)).await.expect("a chunk in time").unwrap();
        bytes.truncate(len);
        (len > 0).then(|| String::from_utf8(bytes).expect("every chunk is valid UTF-8"))
    }

    /// A whole answer.
    pub async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk().await {
                answer.body.extend_from_slice(chunk.as_bytes());
                answer.chunks.push(chunk);
            }
        } else if let Some(len) = answer.header("content-length").map(|len| len.parse::<usize>().unwrap()) {
            answer.body = vec![0; len];
            timeout(PATIENCE, self.stream.read_exact(&mut answer.body)).await.expect("a body in time").unwrap();
        }
        answer
    }

    /// Whether the server closed the connection (with or without a reset).
    pub async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("the connection closes").is_err() || rest.is_empty()
    }
}

/// Replaces what differs from run to run.
pub fn redacted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let prefix =
            ["msg_", "chatcmpl-", "cmpl-", "req_", "resp_", "rs_", "fc_", "call_"].into_iter().find(|prefix| rest.starts_with(prefix));
        let is_id = |prefix: &&str| rest.as_bytes()[prefix.len()..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count() >= 24;
        if let Some(prefix) = prefix.filter(is_id) {
            out.push_str(prefix);
            out.push_str("ID");
            rest = &rest[prefix.len() + 24..];
        } else if let Some(tail) = rest.strip_prefix("\"created_at\":") {
            out.push_str("\"created_at\":0");
            rest = tail.trim_start_matches(|c: char| c.is_ascii_digit());
        } else if let Some(tail) = rest.strip_prefix("\"created\":") {
            out.push_str("\"created\":0");
            rest = tail.trim_start_matches(|c: char| c.is_ascii_digit());
        } else {
            let next = rest.chars().next().unwrap();
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out
}
