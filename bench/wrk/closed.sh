#!/usr/bin/env bash
# A closed loop: visitors that make the next visit as soon as the last is answered, over keep-alive connections.
#
#   bench/wrk/closed.sh [URL [CONNECTIONS [SECONDS]]]
set -euo pipefail
exec wrk --latency -t1 -c"${2:-64}" -d"${3:-10}s" -s "$(dirname "$0")/report.lua" \
    "${1:-http://127.0.0.1:3000/}"
