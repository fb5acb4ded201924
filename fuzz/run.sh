#!/usr/bin/env bash
# Runs each fuzz target for some seconds: fuzz/run.sh [SECONDS]
# Works with any toolchain: coverage needs no sanitizer here, since no code is unsafe.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
export RUSTC_BOOTSTRAP=1
for target in request response body proxy_header; do
    mkdir -p "fuzz/corpus/$target"
    cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -print_final_stats=1
done
