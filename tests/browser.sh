#!/usr/bin/env bash
# The live page in headless Chromium, with real servers: see tests/browser. It needs chromium, node (18 or newer), npm and
# strace, and installs what is missing where it may.
#   tests/browser.sh [PROGRAM]                       the tests
#   tests/browser.sh [PROGRAM] screenshots [SECONDS] the pictures in docs instead, after so much time (130)
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:-target/debug/tallyring}")
[ -x "$program" ] || { echo "$program is missing: cargo build makes it"; exit 1; }
# need PROGRAM PACKAGE...: installs the packages where the program is missing.
need() {
    local tool=$1
    shift
    command -v "$tool" >/dev/null && return
    (apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@") >/dev/null ||
        { echo "$tool is missing; on Debian: apt-get install $*"; exit 1; }
    command -v "$tool" >/dev/null || { echo "$tool is missing although $* was installed"; exit 1; }
}
need chromium chromium fonts-dejavu-core
need node nodejs
need npm npm
need strace strace

# Built beside all else that is built, so that nothing lies among the sources.
built=target/browser
mkdir -p "$built"
cp tests/browser/*.mjs "$built/"
if ! cmp -s tests/browser/package-lock.json "$built/installed.json"; then
    cp tests/browser/{package.json,package-lock.json,.npmrc} "$built/"
    (cd "$built" && npm ci --ignore-scripts)
    cp tests/browser/package-lock.json "$built/installed.json"
fi
root=$PWD
cd "$built"
export TALLYRING=$program CHROMIUM=${CHROMIUM:-$(command -v chromium)}
if [ "${2:-}" = screenshots ]; then
    exec node screenshots.mjs "$root/docs" "${3:-130}"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
node --version
"$CHROMIUM" --version 2>/dev/null
# One file after the other: there are few cores.
for file in page looks; do
    # Tests that neither fail nor end are killed.
    timeout --kill-after=10 600 node --test --test-reporter=spec "$file.test.mjs" 2>&1 | tee "$log"
    # All have to run, none skipped.
    ran=$(grep -c '^scenario(' "$file.test.mjs")
    grep -Eq "^(ℹ|#) pass $ran$" "$log" || { echo "$file: not all of the $ran tests have passed"; exit 1; }
done
echo "the live page is as it should be"
