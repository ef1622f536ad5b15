//! The two caches on disk: pagoda's own (`models/ORG--NAME/`, complete once its `from` note is there) and Hugging Face's, read only.
//!
//! Layout of Hugging Face's: `models--ORG--NAME/{refs/main, snapshots/COMMIT/FILE}`.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Hub, Located};

/// Note that says where a model came from; written last, so that a folder without it is not complete.
pub(super) const FROM_NOTE: &str = "from";

/// A model found in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// Hub id or folder name.
    pub name: String,
    /// Folder or file.
    pub path: PathBuf,
    /// Size of its files.
    pub bytes: u64,
    /// Where it came from.
    pub from: String,
}

/// pagoda's folder of a hub id; one per chosen .gguf.
pub(super) fn hub_folder(hub: &Hub, id: &str, file: Option<&str>) -> PathBuf {
    let name = id.replace('/', "--");
    hub.cache.join("models").join(match file {
        Some(file) => format!("{name}--{file}"),
        None => name,
    })
}

/// The hub id in pagoda's cache, then in Hugging Face's.
pub(super) fn find_hub(hub: &Hub, id: &str, file: Option<&str>) -> Option<Located> {
    if let Some((path, from)) = find_complete(&hub_folder(hub, id, file), None) {
        return Some(Located { path, name: id.into(), from });
    }
    let snapshot = hf_snapshot(&hub.hf_cache.as_ref()?.join(format!("models--{}", id.replace('/', "--"))))?;
    let path = loadable(&snapshot, file)?;
    Some(Located { path, name: id.into(), from: "Hugging Face cache".into() })
}

/// A complete folder of pagoda's cache: what to load and its `from` note.
pub(super) fn find_complete(folder: &Path, file: Option<&str>) -> Option<(PathBuf, String)> {
    let from = fs::read_to_string(folder.join(FROM_NOTE)).ok()?;
    Some((loadable(folder, file)?, from.lines().next().unwrap_or_default().to_string()))
}

fn hf_snapshot(repository: &Path) -> Option<PathBuf> {
    let commit = fs::read_to_string(repository.join("refs/main")).ok()?;
    let commit = commit.trim();
    let plain = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let snapshot = repository.join("snapshots").join(commit);
    (plain && snapshot.is_dir()).then_some(snapshot)
}

/// What the loader opens in a folder: the folder itself when it is a whole safetensors checkpoint, else its only (or named) .gguf.
fn loadable(folder: &Path, file: Option<&str>) -> Option<PathBuf> {
    if file.is_none() && is_whole_checkpoint(folder) {
        return Some(folder.to_path_buf());
    }
    let mut ggufs: Vec<PathBuf> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(|path| is_gguf(path)).collect();
    ggufs.retain(|path| file.is_none_or(|file| path.file_name().is_some_and(|name| name.to_string_lossy().contains(file))));
    ggufs.sort();
    (ggufs.len() == 1).then(|| ggufs.swap_remove(0))
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf") && path.is_file()
}

/// config, tokeniser and every file the safetensors index names (or one safetensors file without an index).
fn is_whole_checkpoint(folder: &Path) -> bool {
    if !folder.join("config.json").is_file() || !folder.join("tokenizer.json").is_file() {
        return false;
    }
    let index = folder.join("model.safetensors.index.json");
    let Ok(text) = fs::read_to_string(&index) else { return folder.join("model.safetensors").is_file() };
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(index) => index["weight_map"]
            .as_object()
            .is_some_and(|map| !map.is_empty() && map.values().all(|file| file.as_str().is_some_and(|file| folder.join(file).is_file()))),
        Err(_) => false,
    }
}

/// Everything in both caches, by name.
pub(super) fn list(hub: &Hub) -> Vec<CachedModel> {
    let mut models = Vec::new();
    for folder in subfolders(&hub.cache.join("models")) {
        if let Some((path, from)) = find_complete(&folder, None) {
            let name = name_of(&folder).replacen("--", "/", 1);
            models.push(CachedModel { name, bytes: folder_bytes(&folder), path, from });
        }
    }
    for folder in hub.hf_cache.iter().flat_map(|cache| subfolders(cache)) {
        let Some(name) = name_of(&folder).strip_prefix("models--").map(|name| name.replacen("--", "/", 1)) else { continue };
        if let Some(path) = hf_snapshot(&folder).and_then(|snapshot| loadable(&snapshot, None)) {
            let bytes = if path.is_dir() { folder_bytes(&path) } else { fs::metadata(&path).map_or(0, |meta| meta.len()) };
            models.push(CachedModel { name, bytes, path, from: "Hugging Face cache".into() });
        }
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    models
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|entry| fs::metadata(entry.path()).ok()).filter(fs::Metadata::is_file).map(|meta| meta.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub_in(folder: &Path) -> Hub {
        Hub {
            cache: folder.join("pagoda"),
            hf_cache: Some(folder.join("hf")),
            endpoint: "http://127.0.0.1:1".into(),
            token: None,
            offline: true,
            python: "no-such-python".into(),
        }
    }

    fn write(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).expect("folder");
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("file");
        }
    }

    #[test]
    fn own_cache_counts_only_complete_folders() {
        let root = tempfile::tempdir().expect("folder");
        let hub = hub_in(root.path());
        let folder = hub_folder(&hub, "org/name", None);
        write(&folder, &[("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "x")]);
        assert_eq!(find_hub(&hub, "org/name", None), None);
        write(&folder, &[(FROM_NOTE, "somewhere\nmore\n")]);
        let found = find_hub(&hub, "org/name", None).expect("found");
        assert_eq!((found.path, found.name.as_str(), found.from.as_str()), (folder, "org/name", "somewhere"));
        assert_eq!(list(&hub).iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), ["org/name"]);
    }

    #[test]
    fn hugging_face_snapshots_are_used_when_whole() {
        let root = tempfile::tempdir().expect("folder");
        let hub = hub_in(root.path());
        let repository = root.path().join("hf/models--org--name");
        write(&repository.join("refs"), &[("main", "abc123\n")]);
        let snapshot = repository.join("snapshots/abc123");
        let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
        write(&snapshot, &[("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors.index.json", index)]);
        write(&snapshot, &[("model-1.safetensors", "x")]);
        assert_eq!(find_hub(&hub, "org/name", None), None, "a shard is missing");
        write(&snapshot, &[("model-2.safetensors", "x")]);
        assert_eq!(find_hub(&hub, "org/name", None).expect("found").path, snapshot);
    }

    #[test]
    fn a_gguf_is_chosen_by_a_part_of_its_name() {
        let root = tempfile::tempdir().expect("folder");
        let hub = hub_in(root.path());
        let repository = root.path().join("hf/models--org--name");
        write(&repository.join("refs"), &[("main", "abc")]);
        let snapshot = repository.join("snapshots/abc");
        write(&snapshot, &[("m-Q4_0.gguf", "x"), ("m-Q8_0.gguf", "x")]);
        assert_eq!(find_hub(&hub, "org/name", None), None, "two candidates");
        assert_eq!(find_hub(&hub, "org/name", Some("Q8_0")).expect("found").path, snapshot.join("m-Q8_0.gguf"));
    }
}
