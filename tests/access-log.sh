#!/usr/bin/env bash
# The access log as GoAccess reads it: every line of the combined form is valid, whatever clients have sent. And whether
# logrotate accepts the package's file.
#   tests/access-log.sh [PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:-target/debug/tallyring}")
scratch=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi; rm -rf "$scratch"' EXIT

for tool in goaccess logrotate; do
    if ! command -v "$tool" >/dev/null; then
        apt-get update -qq && apt-get install -qq -y "$tool" >/dev/null
    fi
done
goaccess --version | head -n 1
logrotate --version 2>&1 | head -n 1

env -i PATH="$PATH" TALLYRING_COUNTER_LISTEN=off TALLYRING_HEAD_TIMEOUT=1s "$program" --listen 127.0.0.1:0 --admin off \
    --data-dir "$scratch/data" --log-format text --access-log "$scratch/access.log" --trusted-proxy 127.0.0.1 \
    2>"$scratch/log" &
server=$!
for _ in $(seq 300); do
    grep -q ' serves ' "$scratch/log" && break
    kill -0 "$server" || { cat "$scratch/log"; exit 1; }
    sleep 0.1
done
site=$(sed -n 's/.* serves \(http:[^ ]*\) .*/\1/p' "$scratch/log")
port=${site##*:}

ask() { curl -sS --max-time 10 -o "$scratch/answer" "$@"; }
raw() {
    exec 3<>"/dev/tcp/127.0.0.1/$port"
    printf "$1" >&3
    timeout 10 cat <&3 >/dev/null || true
    exec 3>&-
}
ask "$site/"
ask "$site/?a=\"b\"&c=%20" -H 'X-Forwarded-For: 203.0.113.9'
ask "$site/none" -A 'a "quoted\" agent' -e 'http://example.com/"a\b'
ask "$site/" -X DELETE -H 'X-Forwarded-For: 2001:db8::1'
ask -I "$site/"
ask "$site/" -A "$(printf '\xff\xfe \xc2\x9b31m')"
ask "$site/$(head -c 3000 /dev/zero | tr '\0' x)" -A "$(head -c 3000 /dev/zero | tr '\0' y)"
raw 'GET / HTTP/1.0\r\n\r\n'
raw 'GET / HTTP/1.1\r\n\r\n'
raw 'GET /slow'
raw '\x1b[31m" 200 1 "\n10.0.0.1 - - [28/Nov/2026:00:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-"\r\n\r\n'
raw 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n'
kill "$server"
wait "$server"
server=

lines=$(wc -l <"$scratch/access.log")
echo "$lines lines"
[ "$lines" = 12 ]
if LC_ALL=C grep -n '[^ -~]' "$scratch/access.log"; then
    echo "a line holds what is no printable ASCII"
    exit 1
fi

# How many lines it takes for valid, and for invalid.
counts() {
    goaccess "$1" --log-format=COMBINED --no-global-config -o "$scratch/report.json" >/dev/null 2>"$scratch/said" || true
    python3 - "$scratch/report.json" <<'PY'
import json, sys
general = json.load(open(sys.argv[1]))["general"]
print(general["valid_requests"], general["failed_requests"])
PY
}
[ "$(counts "$scratch/access.log")" = "$lines 0" ]
# It must see a line that is wrong.
{ cat "$scratch/access.log"; sed 's/\[.*\]/[soon]/;q' "$scratch/access.log"; } >"$scratch/wrong.log"
[ "$(counts "$scratch/wrong.log")" = "$lines 1" ]
echo "GoAccess finds nothing wrong"

logrotate -d package/logrotate >"$scratch/said" 2>&1 || { cat "$scratch/said"; exit 1; }
if grep -iE 'error|unknown' "$scratch/said"; then exit 1; fi
sed 's/daily/sometimes/' package/logrotate >"$scratch/wrong"
if logrotate -d "$scratch/wrong" 2>&1 | grep -qiE 'error|unknown'; then
    echo "logrotate accepts the package's file"
else
    echo "logrotate accepts anything"
    exit 1
fi
