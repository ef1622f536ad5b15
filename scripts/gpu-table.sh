#!/usr/bin/env bash
# Measures a bundle of scripts/build-gpu-bundle.sh on a machine with a GPU: no Cargo, no network; Python with PyTorch makes the models.
#   scripts/gpu-table.sh RESULTS [STAGE...]      from the bundle's folder; stages, by default all in this order:
#   machine     what this is: GPU, driver, clocks, commit, `pagoda doctor`
#   models      checkpoints of random weights in the shapes $SHAPES (default "0.5b 7b") under $MODELS (default /dev/shm/pagoda)
#   tests       the GPU test binaries, with the goldens of the tiny models
#   sanitizer   the smallest shape of every op under compute-sanitizer: memcheck, racecheck, synccheck, initcheck
#   kernels     `pagoda bench kernels`
#   table       all workloads of every shape, $REPEAT (default 3) runs of each
#   quantised   the same with the weights of the largest shape in $FORMATS (default "nf4 fp4 fp8 awq gptq"); not part of all stages
#   masks       c64 and json64 of the largest shape: what constrained decoding costs a step
#   deterministic  the same with --deterministic
#   http        c512 in a closed loop, and 200 requests at 20 a second, over HTTP
#   host        host work a step on the engine's thread, without a model
#   soak-first  a server, and the first $SOAK_FIRST (default 60) seconds of the soak's load, which fill caches; the server stays up
#   soak        $SOAK_SECONDS (default 600) of mixed load with aborts; memory of host and GPU sampled all the while and held to a bound.
#               Takes over the server of soak-first and ends it, so that no call has to last longer than SOAK_SECONDS and a little.
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
  { cat "$bundle/commit"; date -u +%F; nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader; nvidia-smi; uname -r; nproc; } \
    >"$results/machine.txt" 2>&1
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
  local test name status=0 filter
  for test in "$bundle"/tests/*; do
    name=$(basename "$test")
    # Of tests that have a part for a CPU, the other one.
    filter=
    has_tests "$test" 'on_a_gpu: test$' && filter=on_a_gpu
    PAGODA_TEST_DATA=$bundle/data PAGODA_TEST_MODEL=$models/${shapes%% *} timeout 300 "$test" $filter --nocapture >"$results/test-$name.log" 2>&1 ||
      { echo "$name: exit code $?" && status=1; }
    grep -hiE '^test result|FAILED|panicked|skipped' "$results/test-$name.log" | sed "s/^/$name: /"
  done
  return $status
}

has_tests() { # BINARY PATTERN: whether a name matches
  "$1" --list 2>/dev/null | grep "$2" >/dev/null
}

sanitize() { # TOOL
  local test name status=0 log code
  for test in "$bundle"/tests/*; do
    has_tests "$test" '^smallest.*: test$' || continue
    name=$(basename "$test")
    log=$results/sanitizer-$1-$name.log
    code=0
    timeout 200 compute-sanitizer --tool "$1" "$test" smallest --test-threads 1 --nocapture >"$log" 2>&1 || code=$?
    echo "$1, $name: $(grep SUMMARY "$log" | sed 's/^=* *//' | paste -sd';'), $(grep '^test result' "$log" | sed 's/^test result/tests/; s/;.*//'), exit code $code"
    # Tests that saw no kernel have no errors either.
    grep -E 'SUMMARY: 0 (errors|hazards)' "$log" >/dev/null && grep '^test result: ok. [1-9]' "$log" >/dev/null && ! grep -i skipped "$log" >/dev/null || status=1
  done
  return $status
}

stage_sanitizer() {
  local tool status=0 pids=() pid
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed here (it comes with the CUDA toolkit)"; return 1; }
  for tool in memcheck racecheck synccheck initcheck; do
    sanitize "$tool" >"$results/sanitizer-$tool.txt" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=1; done
  cat "$results"/sanitizer-{memcheck,racecheck,synccheck,initcheck}.txt
  # A kernel that reads outside of its memory on purpose: does the tool see what our kernels do?
  timeout 100 compute-sanitizer --tool memcheck "$bundle/tests/gpu_lost" >"$results/sanitizer-control.log" 2>&1
  grep 'Invalid __global__' "$results/sanitizer-control.log" >/dev/null || { echo "memcheck missed a fault made on purpose: sanitizer-control.log"; status=1; }
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

# The largest shape with quantised weights: at load, and from checkpoints. All workloads, or $QUANTISED_WORKLOADS.
stage_quantised() {
  local form status=0 workloads=${QUANTISED_WORKLOADS:-$workloads}
  for form in ${FORMATS:-nf4 fp4 fp8 awq gptq}; do
    local label=$big-$form source=$big arguments=()
    case $form in
      nf4) arguments=(--quantization bitsandbytes) ;;
      nf4-head8) arguments=(--quantization bitsandbytes --head-bits 8) ;;
      fp4 | fp8) arguments=(--quantization "$form") ;;
      fp8-kv8) arguments=(--quantization fp8 --kv-cache-dtype fp8) ;;
      awq | gptq)
        source=$label
        [ -f "$models/$source/config.json" ] || python3 "$bundle/scripts/make_checkpoint.py" "$big" "$models/$source" --format "$form" || status=1
        ;;
    esac
    repeat=${QUANTISED_REPEAT:-$repeat} bench "$label" "$source" "${arguments[@]}" || status=1
    [ "$source" = "$big" ] || rm -rf "${models:?}/$source"
  done
  return $status
}

stage_masks() {
  local workloads=c64,json64
  bench "$big-masks" "$big" && bench "$big-masks-nf4" "$big" --quantization bitsandbytes
}

# Serves the largest shape on a free port and waits until it is healthy; sets $url and $pid. The server outlives this script.
start_server() { # LOG
  local port
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  url=http://127.0.0.1:$port
  setsid "$pagoda" serve "$models/$big" --device cuda --port "$port" --served-model-name model --max-waiting 4096 --max-concurrent-requests 4096 \
    >"$results/$1" 2>&1 </dev/null &
  pid=$!
  for _ in $(seq 600); do
    "$pagoda" bench --url "$url" --workloads c1 --input-len 8 --output-len 1 --format json >/dev/null 2>&1 && return
    is_running || break
    sleep 0.2
  done
  echo "the server did not start: $results/$1" >&2
  return 1
}

is_running() {
  [[ $(awk '/^State/ {print $2}' "/proc/$pid/status" 2>/dev/null) =~ [^Z] ]]
}

# Ends the server; fails unless it ended by itself and well.
stop_server() { # LOG
  kill -TERM "$pid" 2>/dev/null
  for _ in $(seq 150); do
    is_running || break
    sleep 0.2
  done
  is_running && kill -KILL "$pid"
  grep -q 'stopped' "$results/$1"
}

with_server() { # LOG COMMAND...
  local status=0
  { start_server "$1" && "${@:2}"; } || status=1
  stop_server "$1" || status=1
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

stage_host() {
  "$bundle/host_time" | tee "$results/host_time.txt"
}

soak_load() { # SECONDS LABEL SEED
  "$pagoda" bench --url "$url" --vocab 150000 --soak "$1" --requests 128 --seed "$3" --label "$2" >>"$results/soak.jsonl" 2>>"$results/soak.txt"
}

stage_soak-first() {
  rm -f "$results"/soak.jsonl "$results"/soak.txt
  start_server soak-server.log || return 1
  echo "$url $pid" >"$results/soak-server.txt"
  soak_load "${SOAK_FIRST:-60}" first 1
}

# Seconds, resident host memory in KiB, used GPU memory in MiB.
memory_of_server() {
  echo "$SECONDS $(awk '/^VmRSS/ {print $2}' "/proc/$pid/status") $(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1)"
}

stage_soak() {
  local load status=0
  [ -f "$results/soak-server.txt" ] || stage_soak-first || return 1
  read -r url pid <"$results/soak-server.txt"
  rm "$results/soak-server.txt"
  memory_of_server >"$results/soak-memory.txt"
  soak_load "${SOAK_SECONDS:-600}" "$big" 2 &
  load=$!
  while sleep "${SOAK_INTERVAL:-5}" && kill -0 "$load" 2>/dev/null; do
    memory_of_server >>"$results/soak-memory.txt"
  done
  wait "$load" || status=1
  python3 "$bundle/scripts/check_memory.py" "$results/soak-memory.txt" || status=1
  stop_server soak-server.log || status=1
  return $status
}

all=(machine models tests sanitizer kernels table deterministic http host soak-first soak)
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
