#!/usr/bin/env bash
# System calls for each visit, under wrk with 64 connections. Needs strace, wrk and taskset, and the
# release programs (cargo build --release --workspace).
#
#   bench/syscalls.sh [DIRECTORY-OF-THE-PROGRAMS]
set -euo pipefail
programs=${1:-"$(dirname "$0")/../target/release"}
scratch=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap finish EXIT

taskset -c 1 "$programs/stub" 127.0.0.1:3101 & pids+=($!)
taskset -c 0 "$programs/tallyring" --listen 127.0.0.1:3100 --cores 0 --admin off \
    --counter http://127.0.0.1:3101/counter 2>/dev/null & pids+=($!)
server=${pids[1]}
until curl -sf http://127.0.0.1:3100/ >/dev/null; do sleep 0.1; done

visits() { taskset -c 1 wrk -t1 -c64 -d"$1"s http://127.0.0.1:3100/ | awk '/requests in/ { print $1 }'; }
visits 1 >/dev/null
strace -c -f -o "$scratch/strace" -p "$server" 2>/dev/null & tracer=$!
until grep -q "^TracerPid:[[:space:]]*[1-9]" "/proc/$server/status"; do sleep 0.1; done
count=$(visits 3)
kill -INT "$tracer"
wait "$tracer" || true
awk -v visits="$count" '
    $NF == "total" { printf "%d system calls for %d visits: %.3f each\n", $4, visits, $4 / visits }
    $NF ~ /^io_uring_enter$/ { printf "of which io_uring_enter: %d\n", $4 }
' "$scratch/strace"
