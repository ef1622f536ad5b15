//! Getting bytes onto the disk: into NAME.part, resumable, checked, renamed to NAME only when whole.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{HubError, Report};

const COPY_BYTES: usize = 256 << 10;

/// What is known about a file before it is fetched.
pub(super) struct Expected<'a> {
    /// Its size.
    pub size: Option<u64>,
    /// Its SHA-256, lower-case hex.
    pub sha256: Option<&'a str>,
}

/// NAME.part beside NAME.
pub(super) fn part_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".part");
    PathBuf::from(name)
}

/// Bytes that an earlier try left in NAME.part.
pub(super) fn resume_offset(path: &Path) -> u64 {
    fs::metadata(part_path(path)).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 })
}

/// Appends `source` to NAME.part at `offset` (0 starts over), verifies the whole and renames it to NAME. Returns its SHA-256.
///
/// # Errors
/// A full disk or a broken connection keep NAME.part for the next try; a wrong size or digest removes it.
pub(super) fn store(
    path: &Path,
    source: &mut dyn Read,
    offset: u64,
    expected: &Expected<'_>,
    report: &mut dyn Report,
) -> Result<String, HubError> {
    let part = part_path(path);
    let mut hasher = Sha256::new();
    let mut done = if offset > 0 { hash_file(&part, offset, &mut hasher)? } else { 0 };
    let mut options = OpenOptions::new();
    let file = if offset > 0 { options.append(true).open(&part) } else { options.write(true).create(true).truncate(true).open(&part) };
    let mut file = file.map_err(|error| HubError::io(&part, error))?;
    done += copy(source, &mut file, &part, &mut hasher, done, expected.size, report)?;
    file.sync_all().map_err(|error| HubError::io(&part, error))?;
    drop(file);
    let digest = hex(&hasher.finalize());
    let problem = match (expected.size, expected.sha256) {
        (Some(size), _) if size != done => Some(format!("{done} bytes came, {size} expected")),
        (_, Some(sha256)) if sha256 != digest => Some(format!("its SHA-256 is {digest}, {sha256} expected")),
        _ => None,
    };
    if let Some(reason) = problem {
        // A short file may be continued; anything else is of no use.
        if expected.size.is_none_or(|size| done >= size) {
            remove(&part);
        }
        return Err(HubError::Damaged { file: display_name(path), reason });
    }
    fs::rename(&part, path).map_err(|error| HubError::io(path, error))?;
    Ok(digest)
}

fn copy(
    source: &mut dyn Read,
    file: &mut dyn Write,
    part: &Path,
    hasher: &mut Sha256,
    start: u64,
    limit: Option<u64>,
    report: &mut dyn Report,
) -> Result<u64, HubError> {
    let mut buffer = vec![0u8; COPY_BYTES];
    let mut copied = 0u64;
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(HubError::Unreachable { endpoint: display_name(part), reason: error.to_string() }),
        };
        copied += count as u64;
        if limit.is_some_and(|limit| start + copied > limit) {
            remove(part);
            let reason = format!("more bytes came than the {} expected", limit.unwrap_or_default());
            return Err(HubError::Damaged { file: display_name(part), reason });
        }
        file.write_all(&buffer[..count]).map_err(|error| HubError::io(part, error))?;
        hasher.update(&buffer[..count]);
        report.advance(start + copied);
    }
}

/// Feeds the first `bytes` bytes of a file to a hasher; returns how many.
fn hash_file(path: &Path, bytes: u64, hasher: &mut Sha256) -> Result<u64, HubError> {
    let file = File::open(path).map_err(|error| HubError::io(path, error))?;
    let mut reader = file.take(bytes);
    let mut buffer = vec![0u8; COPY_BYTES];
    let mut done = 0;
    loop {
        let count = reader.read(&mut buffer).map_err(|error| HubError::io(path, error))?;
        if count == 0 {
            return Ok(done);
        }
        hasher.update(&buffer[..count]);
        done += count as u64;
    }
}

/// Writes a small file whole or not at all.
pub(super) fn write_note(path: &Path, text: &str) -> Result<(), HubError> {
    let part = part_path(path);
    fs::write(&part, text).and_then(|()| fs::rename(&part, path)).map_err(|error| HubError::io(path, error))
}

/// Makes a folder and takes its lock, so that two processes do not fetch into it at once. Released when the file is dropped.
pub(super) fn lock_folder(folder: &Path, report: &mut dyn Report) -> Result<File, HubError> {
    fs::create_dir_all(folder).map_err(|error| HubError::io(folder, error))?;
    let path = folder.join(".lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(|error| HubError::io(&path, error))?;
    if file.try_lock().is_err() {
        report.note("another process is fetching this model; waiting for it");
        file.lock().map_err(|error| HubError::io(&path, error))?;
    }
    Ok(file)
}

pub(super) fn remove(path: &Path) {
    // It may not exist; then there is nothing to do.
    let _ = fs::remove_file(path);
}

pub(super) fn display_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Silent;
    use super::*;

    const HELLO_SHA256: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn put(path: &Path, bytes: &[u8], offset: u64, size: Option<u64>, sha256: Option<&str>) -> Result<String, HubError> {
        store(path, &mut &bytes[..], offset, &Expected { size, sha256 }, &mut Silent)
    }

    #[test]
    fn a_whole_file_gets_its_name_and_digest() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        assert_eq!(put(&path, b"hello", 0, Some(5), Some(HELLO_SHA256)).expect("stored"), HELLO_SHA256);
        assert_eq!(fs::read(&path).expect("file"), b"hello");
        assert!(!part_path(&path).exists());
    }

    #[test]
    fn an_interrupted_file_is_continued() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        let error = put(&path, b"he", 0, Some(5), Some(HELLO_SHA256)).expect_err("short").to_string();
        assert!(error.contains("2 bytes came, 5 expected"), "{error}");
        assert!(!path.exists());
        assert_eq!(resume_offset(&path), 2);
        assert_eq!(put(&path, b"llo", 2, Some(5), Some(HELLO_SHA256)).expect("continued"), HELLO_SHA256);
        assert_eq!(fs::read(&path).expect("file"), b"hello");
    }

    #[test]
    fn a_wrong_file_never_gets_the_name() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        for (bytes, part) in [(&b"jello"[..], "SHA-256"), (&b"hello world"[..], "more bytes")] {
            let error = put(&path, bytes, 0, Some(5), Some(HELLO_SHA256)).expect_err("wrong").to_string();
            assert!(error.contains(part), "{error}");
            assert!(!path.exists() && !part_path(&path).exists());
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_one_clear_line() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        std::os::unix::fs::symlink("/dev/full", part_path(&path)).expect("link");
        let error = put(&path, b"hello", 0, None, None).expect_err("full").to_string();
        assert!(error.starts_with("disk full while writing") && error.contains("PAGODA_CACHE") && !error.contains('\n'), "{error}");
        assert!(!path.exists());
    }
}
