#!/usr/bin/env bash
# Makes the Debian package, with the manual and the completions: package/deb.sh [FILE [TARGET PROGRAM]]
#
# In target/debian by default, of a program that it builds; or of one that is built, for that target.
# It needs cargo-deb: cargo install --locked cargo-deb
set -euo pipefail
cd "$(dirname "$0")/.."
options=(--locked --no-strip)
if [ $# -gt 0 ]; then options+=(-o "$(realpath "$1")"); fi
if [ $# -gt 1 ]; then
    options+=(--no-build --target "$2")
    program=$(realpath "$3")
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    # Where cargo deb looks for what it would have built.
    install -D "$program" "$scratch/$2/dist/tallyring"
fi
# Where Cargo.toml says that they are.
rm -rf target/manual
cargo run --quiet --locked --example manual -- target/manual
if [ $# -gt 1 ]; then export CARGO_TARGET_DIR=$scratch; fi
cargo deb "${options[@]}"
