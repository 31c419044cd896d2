#!/usr/bin/env bash
# Tries an image of Dockerfile.whisper as an operator would run it, and says what is wrong with it.
#   scripts/check_image.sh [IMAGE]
# ENGINE: what runs containers (docker). RUN_OPTIONS: more options for its `run`.
set -euo pipefail
image=${1:-whisper-byoc}
read -ra engine <<<"${ENGINE:-docker}"
read -ra options <<<"${RUN_OPTIONS:-}"
name=whisper-byoc-check-$$
failed=0

run() { "${engine[@]}" run --name "$name" "${options[@]}" "$@"; }
inside() { "${engine[@]}" exec "$name" "$@"; }
inspect() { "${engine[@]}" inspect --format "$1" "$2"; }
remove() { "${engine[@]}" rm --force "$name" >/dev/null 2>&1 || true; }
now() { date +%s.%N; }
since() { echo "$(now) - $1" | bc; }
verdict() { # STATUS TEXT
    if [ "$1" = 0 ]; then echo "ok      $2"; else echo "FAILED  $2"; failed=1; fi
}
# The image's own HEALTHCHECK, run now
healthy() {
    local check
    mapfile -t check < <(inspect '{{range .Config.Healthcheck.Test}}{{println .}}{{end}}' "$image")
    [ "${check[0]}" = CMD ] && inside "${check[@]:1:${#check[@]}-2}" 2>/dev/null
}
trap remove EXIT

user=$(inspect '{{.Config.User}}' "$image")
[ "${user%%:*}" -gt 0 ]; verdict $? "runs as $user, not root"
