//! `pagoda serve --try QUESTION`: asks the freshly started server over HTTP, as any client would, and shows the answer as it streams.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::terminal;

/// Longest answer.
const MAX_TOKENS: u32 = 128;
/// Longest time for it.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Where a client on this machine reaches the server.
pub fn url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

/// Asks in a thread of its own; a failure is a line, and the server goes on.
pub fn spawn(address: SocketAddr, model: String, api_key: Option<String>, question: String) {
    std::thread::spawn(move || {
        if let Err(error) = ask(&url(address), &model, api_key.as_deref(), &question) {
            terminal::error_line(&format!("--try: {}", terminal::causes(&error)));
        }
        // Nobody reads it when stdout is closed.
        let _ = terminal::print("\n\nserving; Ctrl-C ends\n");
    });
}

fn ask(url: &str, model: &str, api_key: Option<&str>, question: &str) -> Result<()> {
    terminal::print(&format!("{question}\n"))?;
    let body = json!({
        "model": model, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": true,
        "messages": [{ "role": "user", "content": question }],
    });
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).proxy(None).build().into();
    let mut request = agent.post(format!("{url}/v1/messages")).header("content-type", "application/json");
    if let Some(key) = api_key {
        request = request.header("x-api-key", key);
    }
    let mut response = request.send(body.to_string())?;
    if response.status() != 200 {
        bail!("status {}: {}", response.status(), response.body_mut().read_to_string()?);
    }
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let event: Value = serde_json::from_str(data)?;
        match event["type"].as_str() {
            Some("content_block_delta") => terminal::print(event["delta"]["text"].as_str().unwrap_or_default())?,
            Some("message_stop") => return Ok(()),
            Some("error") => bail!("{}", event["error"]["message"].as_str().unwrap_or("failed")),
            _ => {}
        }
    }
    bail!("the answer was cut off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_reach_this_machine() {
        for (address, expected) in [
            ("127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("0.0.0.0:1", "http://127.0.0.1:1"),
            ("[::]:1", "http://[::1]:1"),
            ("192.0.2.1:80", "http://192.0.2.1:80"),
        ] {
            assert_eq!(url(address.parse().expect(address)), expected);
        }
    }
}
