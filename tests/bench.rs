//! `pagoda bench`: what it prints for the embedded engine, for single operations and for a server.

mod process;

use pagoda_engine::testing::write_tiny;

use process::{fails, home, pagoda, serve, text};

#[test]
fn bench_prints_its_lines() {
    let folder = home();
    let tiny = write_tiny(folder.path(), "llama", 1).display().to_string();
    let arguments =
        ["bench", "--workloads", "c8,json64,prefix", "--scale", "0.02", "--requests", "8", "--label", "t", "--log-level", "error", &tiny];
    let output = pagoda(folder.path(), &arguments).output().expect("runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    let lines: Vec<serde_json::Value> = stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let labels: Vec<&str> = lines.iter().filter_map(|line| line["label"].as_str()).collect();
    assert_eq!(labels, ["t-c8", "t-json64", "t-prefix", "t-start"]);
    for field in ["wall_s", "out_tok_s", "total_tok_s", "tpot_p50", "tpot_p99", "ttft_p50", "ttft_p99", "host_us_per_step"] {
        assert!(lines[0][field].as_f64().is_some_and(|value| value > 0.0), "{field}: {stdout}");
    }
    assert!(lines[0]["max_running"].as_u64() > Some(1), "batched: {stdout}");
    assert!(lines[3]["s"].as_f64() > Some(0.0));
    assert!(text(&output.stderr).contains("TPOT ms") && text(&output.stderr).contains("64 sequences, 512 tokens a step"));
    let table = pagoda(folder.path(), &[&arguments[..], &["--format", "table", "--repeat", "3"]].concat()).output().expect("runs");
    assert!(text(&table.stdout).contains("TPOT ms") && !text(&table.stdout).contains('{'), "{}", text(&table.stdout));
}

#[test]
fn bench_kernels_times_every_operation() {
    let folder = home();
    let arguments = ["bench", "kernels", "--device", "cpu", "--models", "tiny", "--tokens", "1,33", "--contexts", "3x40", "--ms", "0.1"];
    let output = pagoda(folder.path(), &arguments).output().expect("runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    let lines: Vec<serde_json::Value> = stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let ops = [
        "linear qkv",
        "linear gate_up, act",
        "linear lm_head",
        "add_rms_norm",
        "rope_kv_store",
        "gated_activation",
        "rope, attention decode",
        "rope, attention prefill",
    ];
    for op in ops.into_iter().chain(["greedy, to the host", "sample, to the host"]) {
        let line = lines.iter().find(|line| line["op"] == op).unwrap_or_else(|| panic!("{op} in {stdout}"));
        assert!(line["us"].as_f64() > Some(0.0) && line["gb_s"].as_f64() > Some(0.0) && line["share"].is_number(), "{line}");
    }
    assert!(text(&output.stderr).contains("shares of"), "{}", text(&output.stderr));
    fails(&["bench", "kernels", "--models", "9b"], 1, &["--models: `9b`", "llama-8b"]);
    fails(&["bench", "kernels", "--ops", "linear,gemm"], 1, &["--ops: `gemm`"]);
    fails(&["bench", "kernels", "--contexts", "8"], 1, &["--contexts: `8`", "SEQUENCESxCONTEXT"]);
}

#[test]
fn bench_measures_a_server() {
    let served = serve(&["--api-key", "k1"]);
    let url = format!("http://{}", served.address);
    let folder = home();
    let bench = |extra: &[&str]| {
        let common = ["bench", "--url", &url, "--key", "k1", "--vocab", "700", "--scale", "0.02", "--label", "h"];
        let output = pagoda(folder.path(), &[&common[..], extra].concat()).output().expect("runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_str::<serde_json::Value>(text(&output.stdout).lines().next().expect("a line")).expect("JSON")
    };
    let together = bench(&["--workloads", "c8"]);
    assert_eq!((together["label"].as_str(), together["requests"].as_u64(), together["errors"].as_u64()), (Some("h-c8"), Some(8), Some(0)));
    assert!(together["out_tok_s"].as_f64() > Some(0.0) && together["ttft_p99"].as_f64() > Some(0.0), "{together}");
    let apart = bench(&["--workloads", "c8", "--rate", "200", "--requests", "20"]);
    assert_eq!((apart["requests"].as_u64(), apart["errors"].as_u64()), (Some(20), Some(0)), "{apart}");
    let soak = bench(&["--soak", "0.5", "--requests", "6"]);
    assert!(soak["requests"].as_u64() >= Some(6) && soak["errors"] == 0 && soak["num_used_blocks"] == 0, "{soak}");
    fails(&["bench", "--url", "https://x"], 1, &["--url: `https://x`: expected http://host:port"]);
    fails(&["bench", "--soak", "1"], 2, &["--url"]);
}
