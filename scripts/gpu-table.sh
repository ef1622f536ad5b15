#!/usr/bin/env bash
# Measures a bundle of scripts/build-gpu-bundle.sh on a machine with a GPU: no Cargo, no network; Python with PyTorch makes the models.
#   scripts/gpu-table.sh RESULTS [STAGE...]      from the bundle's folder; stages, by default all in this order:
#   machine     what this is: GPU, driver, clocks, commit, `pagoda doctor`
#   models      checkpoints of random weights in the shapes $SHAPES (default "0.5b 7b") under $MODELS (default /dev/shm/pagoda)
#   tests       the GPU test binaries
#   kernels     `pagoda bench kernels`
#   table       all workloads of every shape, $REPEAT (default 3) runs of each
#   deterministic  the same with --deterministic
#   http        c512 in a closed loop, and 200 requests at 20 a second, over HTTP
#   soak        $SOAK_SECONDS (default 600) of mixed load with aborts; memory of host and GPU sampled all the while
# With 0.5B and 7B on an H100 all of it but the soak takes about 8 minutes; REPEAT=1 KERNEL_MODELS=7b brings it to 4.
# JSON lines and logs go to RESULTS; a stage that fails is named at the end, and the others run all the same.
set -uo pipefail
bundle=$(cd "$(dirname "$0")/.." && pwd)
results=$(realpath -m "${1:?usage: gpu-table.sh RESULTS [STAGE...]}")
shift
models=${MODELS:-/dev/shm/pagoda}
shapes=${SHAPES:-0.5b 7b}
workloads=${WORKLOADS:-c1,c8,c64,c512,prefill,prefix,long}
repeat=${REPEAT:-3}
big=${shapes##* }
mkdir -p "$results"
pagoda=$bundle/pagoda

stage_machine() {
  { cat "$bundle/commit"; date -u +%F; nvidia-smi; uname -r; nproc; } >"$results/machine.txt" 2>&1
  "$pagoda" doctor --log-level error >>"$results/machine.txt" 2>&1
}

stage_models() {
  local shape
  for shape in $shapes; do
    [ -f "$models/$shape/config.json" ] && continue
    python3 "$bundle/scripts/make_checkpoint.py" "$shape" "$models/$shape" || return 1
  done
}

stage_tests() {
  local test status=0
  for test in "$bundle"/tests/*; do
    PAGODA_TEST_MODEL=$models/${shapes%% *} timeout 300 "$test" --nocapture >"$results/test-$(basename "$test").log" 2>&1 || status=1
    grep -hE '^test result|FAILED|panicked|skipped' "$results/test-$(basename "$test").log" | sed "s/^/$(basename "$test"): /"
  done
  return $status
}

stage_kernels() {
  "$pagoda" bench kernels --models "${KERNEL_MODELS:-0.5b,1.5b,3b,7b,14b,32b,llama-8b}" --ms "${KERNEL_MS:-10}" \
    >"$results/kernels.jsonl" 2>"$results/kernels.txt"
}

bench() { # NAME SHAPE ARGUMENT...
  "$pagoda" bench "$models/$2" --device cuda --label "$1" --workloads "$workloads" --repeat "$repeat" "${@:3}" \
    >"$results/$1.jsonl" 2>"$results/$1.txt"
}

stage_table() {
  local shape status=0
  for shape in $shapes; do bench "$shape" "$shape" || status=1; done
  return $status
}

stage_deterministic() {
  local shape status=0
  for shape in $shapes; do repeat=${DETERMINISTIC_REPEAT:-1} bench "$shape-deterministic" "$shape" --deterministic || status=1; done
  return $status
}

# Serves the largest shape on a free port, waits until it is healthy, runs a command with $url and $pid set, stops it.
with_server() { # LOG COMMAND...
  local port status=0
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  url=http://127.0.0.1:$port
  "$pagoda" serve "$models/$big" --device cuda --port "$port" --served-model-name model --max-waiting 4096 --max-concurrent-requests 4096 \
    >"$results/$1" 2>&1 &
  pid=$!
  for _ in $(seq 600); do
    "$pagoda" bench --url "$url" --workloads c1 --input-len 8 --output-len 1 --format json >/dev/null 2>&1 && break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.2
  done
  "${@:2}" || status=1
  kill -TERM "$pid" 2>/dev/null
  wait "$pid" || status=1
  return $status
}

http_load() {
  "$pagoda" bench --url "$url" --vocab 150000 --label "$big-http" --workloads c512 --repeat "${HTTP_REPEAT:-2}" >"$results/http.jsonl" 2>"$results/http.txt" &&
    "$pagoda" bench --url "$url" --vocab 150000 --label "$big-poisson" --workloads c64 --requests 200 --rate 20 >>"$results/http.jsonl" \
      2>>"$results/http.txt"
}

stage_http() {
  with_server http-server.log http_load
}

soak() {
  local seconds=${SOAK_SECONDS:-600}
  # A first round takes what is taken once: caches, buffers of connections.
  "$pagoda" bench --url "$url" --vocab 150000 --soak "$((seconds / 10 + 5))" --requests 128 --label first >"$results/soak.jsonl" 2>"$results/soak.txt" || return 1
  memory_of_server >>"$results/soak-memory.txt"
  "$pagoda" bench --url "$url" --vocab 150000 --soak "$seconds" --requests 128 --seed 2 --label "$big" >>"$results/soak.jsonl" 2>>"$results/soak.txt" &
  local load=$!
  while kill -0 "$load" 2>/dev/null; do
    sleep "${SOAK_INTERVAL:-10}"
    memory_of_server >>"$results/soak-memory.txt"
  done
  wait "$load" || return 1
  memory_of_server >>"$results/soak-memory.txt"
}

# Seconds, resident host memory in KiB, used GPU memory in MiB.
memory_of_server() {
  echo "$SECONDS $(awk '/^VmRSS/ {print $2}' "/proc/$pid/status") $(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1)"
}

stage_soak() {
  rm -f "$results/soak-memory.txt"
  with_server soak-server.log soak
}

all=(machine models tests kernels table deterministic http soak)
stages=("$@")
[ $# -gt 0 ] || stages=("${all[@]}")
failed=()
for stage in "${stages[@]}"; do
  declare -F "stage_$stage" >/dev/null || { echo "no stage $stage; stages: ${all[*]}" >&2; exit 2; }
  begin=$SECONDS
  "stage_$stage" || failed+=("$stage")
  echo "== $stage: $((SECONDS - begin)) s"
done
python3 "$bundle/scripts/read_table.py" "$results" || failed+=("read_table")
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
