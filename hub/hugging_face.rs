//! The hub's HTTP API: which files a repository has, and getting the ones that a model needs.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::cache::{self, FROM_NOTE};
use super::download::{self, Expected};
use super::{Hub, HubError, Located, Report};

/// A hub that does not accept a connection in this time is taken as absent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// From the request to the first byte of the answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a repository's description at most.
const MAX_DESCRIPTION_BYTES: u64 = 16 << 20;
/// Tries of one file; each continues where the last one stopped.
const MAX_TRIES: usize = 4;
/// Files beside the weights.
const SMALL_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];
/// How models of embeddings pool: the one file of a folder below that is fetched.
const POOLING: &str = "1_Pooling/config.json";

/// One file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RemoteFile {
    name: String,
    size: Option<u64>,
    sha256: Option<String>,
}

/// Fetches a repository's model into the cache.
pub(super) fn pull(hub: &Hub, id: &str, file: Option<&str>, report: &mut dyn Report) -> Result<Located, HubError> {
    let agent = agent();
    let (commit, files) = describe(hub, &agent, id)?;
    let wanted = choose(id, &files, file)?;
    let folder = cache::hub_folder(hub, id, file);
    let _lock = download::lock_folder(&folder, report)?;
    if let Some(found) = cache::find_hub(hub, id, file) {
        return Ok(found); // another process brought it while this one waited
    }
    start_over_if_moved(&folder, &commit)?;
    let mut digests = String::new();
    for remote in &wanted {
        let url = format!("{}/{id}/resolve/{commit}/{}", hub.endpoint, remote.name);
        let path = folder.join(&remote.name);
        let parent = path.parent().unwrap_or(&folder);
        std::fs::create_dir_all(parent).map_err(|error| HubError::io(parent, error))?;
        let digest = fetch(hub, &agent, &url, &path, remote, report)?;
        digests.push_str(&format!("{digest}  {}\n", remote.name));
    }
    download::write_note(&folder.join("sha256"), &digests)?;
    download::write_note(&folder.join(FROM_NOTE), &format!("{}/{id} at {commit}\n", hub.endpoint))?;
    cache::find_hub(hub, id, file)
        .ok_or_else(|| HubError::NotAModel { model: id.into(), reason: "the fetched files are not a whole checkpoint".into() })
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(RESPONSE_TIMEOUT))
        .http_status_as_error(false)
        .user_agent(concat!("pagoda/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

fn get(hub: &Hub, agent: &ureq::Agent, url: &str, offset: u64) -> Result<ureq::http::Response<ureq::Body>, HubError> {
    let mut request = agent.get(url);
    if let Some(token) = &hub.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if offset > 0 {
        request = request.header("range", format!("bytes={offset}-"));
    }
    request.call().map_err(|error| HubError::Unreachable { endpoint: hub.endpoint.clone(), reason: one_line(&error.to_string()) })
}

fn status_error(url: &str, status: u16) -> HubError {
    let hint = match status {
        401 | 403 => "the model is private or gated: accept its licence on the hub and set HF_TOKEN",
        404 => "no such model; check the id",
        429 => "too many requests; try again later",
        _ => "try again later",
    };
    HubError::Status { url: url.into(), status, hint: hint.into() }
}

/// The commit of `main` and the files of a repository.
fn describe(hub: &Hub, agent: &ureq::Agent, id: &str) -> Result<(String, Vec<RemoteFile>), HubError> {
    let url = format!("{}/api/models/{id}/revision/main?blobs=true", hub.endpoint);
    let mut response = get(hub, agent, &url, 0)?;
    if response.status() != 200 {
        return Err(status_error(&url, response.status().as_u16()));
    }
    let bad = |reason: &str| HubError::Unreachable { endpoint: hub.endpoint.clone(), reason: reason.into() };
    let text = response.body_mut().with_config().limit(MAX_DESCRIPTION_BYTES).read_to_string().map_err(|error| bad(&error.to_string()))?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|_| bad("its answer is not JSON"))?;
    let commit = value["sha"].as_str().filter(|sha| !sha.is_empty() && sha.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let commit = commit.ok_or_else(|| bad("its answer names no commit"))?.to_string();
    let files = value["siblings"].as_array().map(|files| files.iter().filter_map(remote_file).collect()).unwrap_or_default();
    Ok((commit, files))
}

fn remote_file(entry: &serde_json::Value) -> Option<RemoteFile> {
    let sha256 = entry["lfs"]["sha256"].as_str().map(str::to_ascii_lowercase);
    let size = entry["size"].as_u64().or_else(|| entry["lfs"]["size"].as_u64());
    Some(RemoteFile { name: entry["rfilename"].as_str()?.to_string(), size, sha256 })
}

/// The files a model needs: configuration and safetensors of the top folder, or one .gguf.
fn choose(id: &str, files: &[RemoteFile], file: Option<&str>) -> Result<Vec<RemoteFile>, HubError> {
    let top: Vec<&RemoteFile> =
        files.iter().filter(|file| !file.name.contains(['/', '\\', '%', '?', '#']) && !file.name.starts_with('.')).collect();
    let error = |reason: String| HubError::NotAModel { model: id.into(), reason };
    let is_weight = |name: &str| name == "model.safetensors" || name.starts_with("model-") && name.ends_with(".safetensors");
    let weights: Vec<&RemoteFile> = top.iter().copied().filter(|file| is_weight(&file.name)).collect();
    if file.is_none() && !weights.is_empty() {
        if !top.iter().any(|file| file.name == "tokenizer.json") {
            return Err(error("it has no tokenizer.json".into()));
        }
        let small = top.iter().copied().filter(|file| SMALL_FILES.contains(&file.name.as_str()));
        let pooling = files.iter().filter(|file| file.name == POOLING);
        return Ok(small.chain(pooling).chain(weights.iter().copied()).cloned().collect());
    }
    let ggufs: Vec<&RemoteFile> = top
        .iter()
        .copied()
        .filter(|remote| {
            remote.name.ends_with(".gguf") && file.is_none_or(|file| remote.name.to_lowercase().contains(&file.to_lowercase()))
        })
        .collect();
    match ggufs.as_slice() {
        [one] => Ok(vec![(*one).clone()]),
        [] if file.is_some() => Err(error(format!("it has no .gguf file like `{}`", file.unwrap_or_default()))),
        [] => Err(error("it has neither safetensors nor .gguf files".into())),
        several => {
            let names: Vec<&str> = several.iter().map(|file| file.name.as_str()).collect();
            Err(error(format!("it has several .gguf files, name one as {id}:PART_OF_NAME ({})", names.join(", "))))
        }
    }
}

/// Partial files of another commit must not be continued.
fn start_over_if_moved(folder: &Path, commit: &str) -> Result<(), HubError> {
    let note = folder.join("commit");
    if std::fs::read_to_string(&note).is_ok_and(|old| old.trim() == commit) {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).map_err(|error| HubError::io(folder, error))?.flatten() {
        if entry.path().is_dir() {
            // What cannot be removed is found to be stale again when it is written.
            let _ = std::fs::remove_dir_all(entry.path());
        } else if entry.file_name() != ".lock" {
            download::remove(&entry.path());
        }
    }
    download::write_note(&note, commit)
}

/// One file: kept when it is there, continued when a part of it is, tried again when the connection breaks.
fn fetch(hub: &Hub, agent: &ureq::Agent, url: &str, path: &Path, remote: &RemoteFile, report: &mut dyn Report) -> Result<String, HubError> {
    if path.is_file() {
        return Ok(remote.sha256.clone().unwrap_or_else(|| "-".into()));
    }
    report.start(&remote.name, remote.size);
    let mut tries = 1;
    loop {
        match fetch_once(hub, agent, url, path, remote, report) {
            Ok(digest) => {
                report.finish();
                return Ok(digest);
            }
            Err(HubError::Unreachable { .. } | HubError::Damaged { .. }) if tries < MAX_TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

fn fetch_once(
    hub: &Hub,
    agent: &ureq::Agent,
    url: &str,
    path: &Path,
    remote: &RemoteFile,
    report: &mut dyn Report,
) -> Result<String, HubError> {
    let mut offset = download::resume_offset(path);
    if remote.size.is_some_and(|size| offset >= size) {
        download::remove(&download::part_path(path));
        offset = 0;
    }
    let response = get(hub, agent, url, offset)?;
    let offset = match response.status().as_u16() {
        200 => 0,
        206 if offset > 0 => offset,
        416 => {
            download::remove(&download::part_path(path));
            return Err(HubError::Unreachable { endpoint: hub.endpoint.clone(), reason: "it refused to continue a download".into() });
        }
        status => return Err(status_error(url, status)),
    };
    let mut body = response.into_body().into_reader();
    let expected = Expected { size: remote.size, sha256: remote.sha256.as_deref() };
    download::store(path, &mut body as &mut dyn Read, offset, &expected, report)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<RemoteFile> {
        names.iter().map(|name| RemoteFile { name: (*name).into(), size: None, sha256: None }).collect()
    }

    #[test]
    fn the_right_files_are_chosen() {
        let check = |names: &[&str], file: Option<&str>, expected: &[&str]| {
            let chosen = choose("org/name", &files(names), file).expect("chosen");
            assert_eq!(chosen.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), expected, "{names:?}");
        };
        let whole = ["README.md", "config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json", "pytorch_model.bin"];
        check(&whole, None, &["config.json", "tokenizer.json", "model.safetensors"]);
        let pooled = ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "onnx/config.json", "tokenizer.json"];
        check(&pooled, None, &["config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json", "model.safetensors"]);
        let sharded = ["config.json", "consolidated.safetensors", "model-1-of-2.safetensors", "model-2-of-2.safetensors", "tokenizer.json"];
        check(&sharded, None, &["config.json", "tokenizer.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"]);
        check(&["a-Q4_0.gguf", "a-Q8_0.gguf"], Some("q8_0"), &["a-Q8_0.gguf"]);
        check(&["a.gguf", "../../evil.gguf"], None, &["a.gguf"]);
    }

    #[test]
    fn repositories_without_a_model_are_refused() {
        let check = |names: &[&str], file: Option<&str>, part: &str| {
            let message = choose("org/name", &files(names), file).expect_err("refused").to_string();
            assert!(message.contains(part), "{message}");
        };
        check(&["config.json", "pytorch_model.bin"], None, "neither safetensors nor .gguf");
        check(&["config.json", "model.safetensors"], None, "no tokenizer.json");
        check(&["a-Q4_0.gguf", "a-Q8_0.gguf"], None, "name one as org/name:PART_OF_NAME (a-Q4_0.gguf, a-Q8_0.gguf)");
        check(&["a-Q4_0.gguf"], Some("Q8"), "no .gguf file like `Q8`");
    }
}
