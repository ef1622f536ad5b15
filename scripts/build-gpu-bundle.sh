#!/usr/bin/env bash
# Builds what a GPU machine without Cargo needs into a folder (default target/gpu-bundle): the stripped binary, the GPU test binaries
# (tests/) with the goldens that they read (data/), the measurement of the host's work (host_time), the scripts and the commit. `scripts/build-gpu-bundle.sh [FOLDER]`; PROFILE=dev takes the dev profile (optimised too).
# Needs Rust and nvcc (scripts/setup-cuda.sh). PAGODA_CUDA_ARCHS=90a builds for an H100 alone, which is faster.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/gpu-bundle}
profile=${PROFILE:-release}
export PAGODA_CUDA_HOME=${PAGODA_CUDA_HOME:-$(scripts/setup-cuda.sh "${XDG_CACHE_HOME:-$HOME/.cache}/pagoda/cuda")}
rm -rf "$out"
mkdir -p "$out/tests" "$out/scripts"

# Prints name and path of the executables that a Cargo command made.
executables() {
  "$@" --message-format=json-render-diagnostics | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"):
        print(message["target"]["name"], message["executable"])'
}

cargo=(--locked --profile "$profile")
executables cargo build "${cargo[@]}" -p pagoda --bin pagoda | while read -r _ path; do cp "$path" "$out/pagoda"; done
executables cargo build "${cargo[@]}" -p pagoda-engine --example host_time | while read -r _ path; do cp "$path" "$out/host_time"; done
# Tests that use a GPU where there is one; each says so where it skips.
tests=(--test deterministic --test golden --test golden_smollm2)
for path in kernels/tests/gpu*.rs engine/tests/cuda*.rs; do tests+=(--test "$(basename "$path" .rs)"); done
executables cargo test "${cargo[@]}" --no-run -p pagoda -p pagoda-kernels -p pagoda-engine "${tests[@]}" | while read -r name path; do
  # The binary is built along, for tests that run it; this one is only for them.
  if [ "$name" != pagoda ]; then cp "$path" "$out/tests/$name"; fi
done
strip "$out/pagoda" "$out/host_time" "$out"/tests/*
mkdir "$out/data"
cp -r tests/data/golden "$out/data/"
cp scripts/gpu-table.sh scripts/make_checkpoint.py scripts/read_table.py scripts/check_memory.py "$out/scripts/"
git describe --always --dirty >"$out/commit"
"$out/pagoda" doctor | grep -q 'kernels built in' || { echo "build-gpu-bundle: the binary holds no kernels" >&2; exit 1; }
du -sh "$out"
