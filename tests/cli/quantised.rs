//! `quantize`, `estimate` and `eval` on a tiny checkpoint.

use std::fs;
use std::path::Path;

use pagoda_engine::testing::write_tiny;

use super::{fails, home, pagoda, text};

#[test]
fn a_model_is_quantised_estimated_and_measured() {
    let home = home();
    let model = write_tiny(home.path(), "qwen2", 1);
    let out = home.path().join("nf4");
    let path = |path: &Path| path.display().to_string();
    let run = |arguments: &[&str]| {
        let output = pagoda(home.path(), arguments).output().expect("runs");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(run(&["quantize", &path(&model), &path(&out), "--format", "nf4"]).trim(), path(&out));
    let estimate = run(&["estimate", &path(&out), "--device", "cpu"]);
    for part in ["family       qwen2, 3 layers", "bitsandbytes", "concurrency", "kv per token"] {
        assert!(estimate.contains(part), "`{part}` in {estimate}");
    }
    let file = home.path().join("text");
    fs::write(&file, "the quick brown fox jumps over the lazy dog. ".repeat(20)).expect("file");
    let perplexity = |model: &Path, more: &[&str]| -> f64 {
        let (file, model) = (path(&file), path(model));
        let arguments = [&["eval", "ppl", &file, &model, "--window", "64", "--device", "cpu"], more].concat();
        run(&arguments).trim().parse().expect("a number")
    };
    let (dense, stored) = (perplexity(&model, &[]), perplexity(&out, &[]));
    assert_eq!(stored, perplexity(&model, &["--quantization", "bitsandbytes"]), "the same codes, made at load");
    assert!(dense > 1.0 && dense != stored, "{dense} and {stored}");

    fails(&["quantize", &path(&model), &path(&out), "--format", "int3"], 1, &["--format: `int3`: expected nf4, awq or gptq"]);
    fails(&["quantize", &path(&model), &path(&out), "--format", "nf4"], 1, &["is not empty; name a new folder"]);
    let wrong = ["generate", "--prompt", "x", &path(&out), "--quantization", "awq", "--device", "cpu"];
    fails(&wrong, 1, &["awq: the checkpoint is quantised by bitsandbytes"]);
}
