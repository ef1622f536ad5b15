//! A hub on loopback: answers the two kinds of request that pulling makes, and can misbehave on purpose.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// How to misbehave.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Cut the connection after this many bytes of a body, once.
    pub cut_once_at: Option<usize>,
    /// Announce wrong digests.
    pub wrong_digests: bool,
    /// Answer everything with this status.
    pub status: Option<u16>,
}

/// A running stub; its thread ends with the process.
pub struct Stub {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// Request lines and the headers that matter, in order.
    pub seen: Arc<Mutex<Vec<String>>>,
}

struct State {
    files: BTreeMap<&'static str, Vec<u8>>,
    faults: Faults,
    was_cut: bool,
    seen: Arc<Mutex<Vec<String>>>,
}

/// Serves one repository, `org/name`, with these files.
pub fn start(files: &[(&'static str, &[u8])], faults: Faults) -> Stub {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let files = files.iter().map(|(name, bytes)| (*name, bytes.to_vec())).collect();
    let mut state = State { files, faults, was_cut: false, seen: seen.clone() };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            state.answer(stream);
        }
    });
    Stub { url, seen }
}

impl State {
    fn answer(&mut self, mut stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().expect("socket")).lines().map_while(Result::ok);
        let Some(request) = lines.next() else { return };
        let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase()).collect();
        let header = |name: &str| headers.iter().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_string()));
        let (range, key) = (header("range:"), header("authorization:"));
        self.seen.lock().expect("lock").push(format!("{request} range={range:?} key={key:?}"));
        let path = request.split(' ').nth(1).unwrap_or_default();
        if let Some(status) = self.faults.status {
            return send(&mut stream, status, "", b"no", None);
        }
        if path == "/api/models/org/name/revision/main?blobs=true" {
            return send(&mut stream, 200, "", self.description().as_bytes(), None);
        }
        let Some(bytes) = path.strip_prefix("/org/name/resolve/c0ffee/").and_then(|name| self.files.get(name)) else {
            return send(&mut stream, 404, "", b"", None);
        };
        let offset = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let cut = self.faults.cut_once_at.filter(|&at| !self.was_cut && bytes.len() > at);
        self.was_cut |= cut.is_some();
        match offset {
            Some(offset) if offset <= bytes.len() => {
                let content_range = format!("content-range: bytes {offset}-{}/{}\r\n", bytes.len() - 1, bytes.len());
                send(&mut stream, 206, &content_range, &bytes[offset..], cut);
            }
            _ => send(&mut stream, 200, "", bytes, cut),
        }
    }

    fn description(&self) -> String {
        let entries: Vec<serde_json::Value> = self
            .files
            .iter()
            .map(|(name, bytes)| {
                let digest = if self.faults.wrong_digests { "00".repeat(32) } else { sha256(bytes) };
                match name.ends_with(".safetensors") || name.ends_with(".gguf") {
                    true => serde_json::json!({ "rfilename": name, "size": bytes.len(), "lfs": { "sha256": digest, "size": bytes.len() } }),
                    false => serde_json::json!({ "rfilename": name, "size": bytes.len() }),
                }
            })
            .collect();
        serde_json::json!({ "sha": "c0ffee", "siblings": entries }).to_string()
    }
}

fn send(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8], cut: Option<usize>) {
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n", body.len());
    // The client may hang up on purpose.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())]));
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
