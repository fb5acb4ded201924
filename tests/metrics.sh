#!/usr/bin/env bash
# The metrics as promtool sees them: it reads the text and checks names and help. From a site with its bundled counter,
# after a visit.
#   tests/metrics.sh [PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:-target/debug/tallyring}")
scratch=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi; rm -rf "$scratch"' EXIT

promtool=$(command -v promtool || true)
if [ -z "$promtool" ]; then
    # Only the tool: installing the package would start a Prometheus.
    (apt-get update -qq && cd "$scratch" && apt-get download -qq prometheus) 2>/dev/null
    dpkg -x "$scratch"/prometheus_*.deb "$scratch/prometheus"
    promtool=$scratch/prometheus/usr/bin/promtool
fi

env -i PATH="$PATH" TALLYRING_COUNTER_LISTEN=127.0.0.1:0 "$program" --listen 127.0.0.1:0 --admin 127.0.0.1:0 --data-dir "$scratch/data" --log-format text \
    2>"$scratch/log" &
server=$!
for _ in $(seq 300); do
    grep -q 'admin on ' "$scratch/log" && break
    kill -0 "$server" || { cat "$scratch/log"; exit 1; }
    sleep 0.1
done
site=$(sed -n 's/.* serves \(http:[^ ]*\) .*/\1/p' "$scratch/log")
admin=$(sed -n 's/.*admin on \(http:[^ ;]*\).*/\1/p' "$scratch/log")
curl -sS --max-time 10 "$site/" | grep -qx 'Welcome to my site!'

curl -sS --max-time 10 "$admin/metrics" >"$scratch/metrics"
echo "$(grep -vc '^#' "$scratch/metrics") rows"
grep -q '^tallyring_visits_total{.*outcome="welcomed"} 1$' "$scratch/metrics"
"$promtool" check metrics <"$scratch/metrics"
# It must refuse a wrong text.
sed 's/^# TYPE tallyring_build_info gauge$/# TYPE tallyring_build_info info/' "$scratch/metrics" >"$scratch/wrong"
if "$promtool" check metrics <"$scratch/wrong" 2>/dev/null; then
    echo "promtool accepts a type that does not exist"
    exit 1
fi
kill "$server"
wait "$server"
server=
echo "promtool finds nothing wrong"
