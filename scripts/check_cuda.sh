#!/usr/bin/env bash
# What a CUDA device makes of this checkout, in five minutes: its tests, accuracy and speed of whole files beside the
# CPU of the same machine, lags of many live streams, memory. All that is printed goes to a log, too.
#
#     scripts/check_cuda.sh [LOG]
#
# PYTHON has the packages of constraints.txt and constraints-dev.txt, with a CUDA build of torch. SPEECH: a folder with
# recordings and their manifest.tsv; SETS: which of them. MODELS: a folder with weights. STREAMS: how many live streams,
# with spaces between; SECONDS_LIVE: for how long. PARTS: which of tests, offline, live. Exit status 1 when any part failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # installed or not
log=${1:-check_cuda.log}
python=${PYTHON:-.venv/bin/python}
speech=${SPEECH:-../shared/speech}
seconds_live=${SECONDS_LIVE:-20}
read -ra counts <<<"${STREAMS:-64 256 512}"
read -ra sets <<<"${SETS:-librispeech accent noisy phone}"
files=(--manifest "$speech/manifest.tsv" --models-dir "${MODELS:-models}" "${sets[@]/#/--filter=en/}")
benchmark=("$python" scripts/benchmark.py)
failed=()

part() { # part NAME SECONDS COMMAND...: goes on when it fails, or takes longer than SECONDS
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    echo "== $name"
    timeout --kill-after=5 "$limit" "$@"
    local status=$?
    echo "== $name: exit status $status after $((SECONDS - began)) s"
    [ $status -eq 0 ] || failed+=("$name")
}

check_tests() {
    part tests 120 "$python" -m pytest -m cuda -q -p no:cacheprovider tests/inference
}

check_offline() {
    part "offline, 64 at a time" 90 "${benchmark[@]}" offline "${files[@]}" --device cuda --batch 64 --repeats 3 --profile
    part "offline, one at a time" 60 "${benchmark[@]}" offline "${files[@]}" --device cuda --limit 40 --profile
    part "offline, this machine's CPU" 60 "${benchmark[@]}" offline "${files[@]}" --device cpu --batch 16 --profile
}

check_live() {
    nvidia-smi --query-gpu=timestamp,memory.used,utilization.gpu --format=csv,noheader --loop=5 &
    local watching=$! count
    for count in "${counts[@]}"; do
        part "live, $count streams" $((seconds_live + 60)) \
            "${benchmark[@]}" live "${files[@]}" --streams "$count" --seconds "$seconds_live"
    done
    kill "$watching"
}

check() {
    local name
    export WHISPER_JOBS_MAX_JOBS=2000 PYTHONUNBUFFERED=1
    ulimit -n "$(ulimit -H -n)"
    part device 20 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
    part torch 60 "$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())'
    for name in ${PARTS:-tests offline live}; do
        "check_$name"
    done
    [ ${#failed[@]} -eq 0 ] && echo "== all parts passed" && return
    printf '== failed: %s\n' "${failed[@]}"
    return 1
}

check 2>&1 | tee "$log"
exit "${PIPESTATUS[0]}"
