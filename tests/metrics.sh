#!/usr/bin/env bash
# The metrics as promtool sees them: it reads the text of a site with its bundled counter, after a visit, and checks names
# and help. Then the alerts: each fires where it must, and not elsewhere. Then the queries of the dashboard.
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

rules=package/prometheus
"$promtool" check rules --lint-fatal "$rules/alerts.yml"
"$promtool" test rules "$rules/alerts_test.yml"
# It must see an alert that does not fire, and one that fires too early.
mkdir "$scratch/rules"
cp "$rules/alerts_test.yml" "$scratch/rules"
for change in 's/ == 0$/ == 5/' 's/for: 2m/for: 0s/' 's/> 0.01/> 0.2/'; do
    sed "$change" "$rules/alerts.yml" >"$scratch/rules/alerts.yml"
    if "$promtool" test rules "$scratch/rules/alerts_test.yml" >/dev/null 2>&1; then
        echo "the tests of the alerts do not see $change"
        exit 1
    fi
done

# Each query of the dashboard as a rule, with Grafana's variables filled in. JSON is YAML too.
python3 - package/grafana/tallyring.json >"$scratch/queries.yml" <<'EOF'
import json, sys

dashboard = json.load(open(sys.argv[1], encoding="utf-8"))
targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
rules = [
    {"record": f"query:{number}", "expr": each["expr"].replace("$__rate_interval", "5m")}
    for number, each in enumerate(targets + dashboard["annotations"]["list"])
]
json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, sys.stdout)
EOF
"$promtool" check rules "$scratch/queries.yml"
sed 's/sum by (/sum by /' "$scratch/queries.yml" >"$scratch/wrong.yml"
if "$promtool" check rules "$scratch/wrong.yml" >/dev/null 2>&1; then
    echo "promtool accepts a query that is not one"
    exit 1
fi
echo "promtool finds nothing wrong"
