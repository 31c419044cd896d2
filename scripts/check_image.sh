#!/usr/bin/env bash
# Tries an image as the strictest operator would run it, with another user, a read-only file system
# and no network, and says what is wrong. Exit status 1 when anything is.
#   scripts/check_image.sh [IMAGE]
# ENGINE: docker, or podman with its options. RUN_OPTIONS: more options for the engine's `run`.
set -uo pipefail
image=${1:-whisper-byoc}
read -ra engine <<<"${ENGINE:-docker}"
read -ra more <<<"${RUN_OPTIONS:-}"
name=whisper-byoc-check-$$
failures=0

check() { # TEXT COMMAND...: the command has to succeed
    local text=$1
    shift
    if "$@"; then echo "ok      $text"; else
        echo "FAILED  $text"
        failures=$((failures + 1))
    fi
}
run() { "${engine[@]}" run --name "$name" --network none --read-only "${more[@]}" "$@"; }
inside() { "${engine[@]}" exec "$name" "$@"; }
of() { "${engine[@]}" inspect --format "$1" "${2:-$name}"; }
remove() { "${engine[@]}" rm --force "$name" >/dev/null 2>&1; }
trap remove EXIT

no_builders() {
    run --rm --entrypoint sh "$image" -c 'for tool in cc gcc g++ clang ld as make pip pip3; do
        ! command -v $tool || exit 1; done; ! python -c "import pip" 2>/dev/null &&
        ! ls -d /root/.cache "$HOME"/.cache 2>/dev/null'
}
probe() { # the image's own HEALTHCHECK
    local words
    mapfile -t words < <(of '{{range .Config.Healthcheck.Test}}{{println .}}{{end}}')
    inside "${words[@]:1:${#words[@]}-2}" 2>/dev/null
}
becomes_ready() {
    local began=$SECONDS
    until probe; do
        [ "$(of '{{.State.Running}}')" = true ] && [ $((SECONDS - began)) -lt 120 ] || return 1
        sleep 0.2
    done
    echo "        ready after $((SECONDS - began)) s"
}
transcribes() {
    inside sh -c 'cd /opt/venv/lib/python3*/site-packages/whisper_byoc/data &&
        python /app/scripts/stream_wav.py warm-up.wav' | grep -i 'quick brown fox'
}
stops() {
    "${engine[@]}" stop -t 30 "$name" >/dev/null && [ "$(of '{{.State.ExitCode}}')" = 0 ]
}
complains_without_weights() {
    local said status
    said=$(run --rm --env WHISPER_MODEL_DIRECTORY=/nowhere "$image" 2>&1)
    status=$?
    echo "        $said"
    [ $status = 2 ] && [ "$(wc -l <<<"$said")" = 1 ]
}

check "no compiler, no pip, no caches" no_builders
check "without weights it exits with status 2 and one line" complains_without_weights
run --detach --user 12345:12345 "$image" >/dev/null || exit 1
check "its health check fails before it is ready" eval '! probe'
check "becomes ready" becomes_ready
check "runs as the user it is given" test "$(inside id -u)" = 12345
check "is not root's by default" test "$(of '{{.Config.User}}' "$image" | cut -d: -f1)" -gt 0
check "transcribes" transcribes
check "stops on SIGTERM with status 0" stops
exit $((failures > 0))
