#!/usr/bin/env bash
# Visitors that send several requests at once and wait for all answers (RFC 9112 section 9.3.2).
# Read only the rate and the maximum: wrk measures one latency for a batch but counts each answer, so its quantiles mean
# nothing here.
#
#   bench/wrk/pipeline.sh [URL [REQUESTS-AT-ONCE [CONNECTIONS [SECONDS]]]]
set -euo pipefail
AT_ONCE=${2:-16} exec wrk --latency -t1 -c"${3:-64}" -d"${4:-10}s" \
    -s "$(dirname "$0")/pipeline.lua" "${1:-http://127.0.0.1:3000/}"
