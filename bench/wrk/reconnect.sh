#!/usr/bin/env bash
# Visitors that open another connection after some visits.
#
#   bench/wrk/reconnect.sh [URL [VISITS-PER-CONNECTION [CONNECTIONS [SECONDS]]]]
set -euo pipefail
VISITS_PER_CONNECTION=${2:-1} exec wrk --latency -t1 -c"${3:-64}" -d"${4:-10}s" \
    -s "$(dirname "$0")/reconnect.lua" "${1:-http://127.0.0.1:3000/}"
