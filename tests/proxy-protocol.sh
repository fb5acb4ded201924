#!/usr/bin/env bash
# `--proxy-protocol` behind real load balancers: HAProxy, which sends version 1, version 2 and version 2 with a checksum,
# and nginx, which sends version 1. tests/proxy-protocol.sh [PROGRAM]
set -euo pipefail
program=$(realpath "${1:-"$(dirname "$0")/../target/debug/tallyring"}")
for tool in curl haproxy nginx; do
    command -v "$tool" >/dev/null && continue
    apt-get update -qq && apt-get install -qq -y --no-install-recommends curl haproxy nginx libnginx-mod-stream >/dev/null
done
scratch=$(mktemp -d)
log="$scratch/log"
running=()
finish() {
    for id in "${running[@]}"; do
        kill "$id" 2>/dev/null || true
        wait "$id" 2>/dev/null || true
    done
    rm -rf "$scratch"
}
trap finish EXIT
fail() {
    echo "FAILED $*"
    cat "$log" "$scratch/proxies"
    exit 1
}
: >"$scratch/proxies"

# until_true WORDS COMMAND...: for ten seconds.
until_true() {
    local words=$1
    shift
    for _ in $(seq 200); do
        if "$@"; then return; fi
        sleep 0.05
    done
    fail "$words"
}

: >"$log"
"$program" serve --listen 127.0.0.1:0 --admin 127.0.0.1:0 --counter-listen off --data-dir "$scratch" --workers 1 \
    --proxy-protocol --log-level debug 2>"$log" &
running+=($!)
until_true "the server did not start" grep -q "serves http" "$log"
site=$(sed -n 's/.*serves http:\/\/\([^ ]*\) .*/\1/p' "$log")
admin=$(sed -n 's/.*admin on \(http:[^ ]*\).*/\1/p' "$log")


# proxies PORT: HAProxy at four ports from PORT on, and nginx at the next. Another program may have one of them.
proxies() {
    cat >"$scratch/haproxy.cfg" <<END
defaults
    mode tcp
    timeout connect 5s
    timeout client 10s
    timeout server 10s
listen v1
    bind 127.0.0.1:$1
    server site $site send-proxy
listen v2
    bind 127.0.0.1:$(($1 + 1))
    server site $site send-proxy-v2
listen checksum
    bind 127.0.0.1:$(($1 + 2))
    server site $site send-proxy-v2 proxy-v2-options crc32c check
listen unix
    bind unix@$scratch/unix
    server site $site send-proxy-v2
listen none
    bind 127.0.0.1:$(($1 + 3))
    server site $site
END
    cat >"$scratch/nginx.conf" <<END
daemon off;
pid $scratch/nginx.pid;
error_log stderr;
include /etc/nginx/modules-enabled/*stream*.conf;
events {}
stream {
    server {
        listen 127.0.0.1:$(($1 + 4));
        proxy_pass $site;
        proxy_protocol on;
    }
}
END
    haproxy -db -f "$scratch/haproxy.cfg" >>"$scratch/proxies" 2>&1 &
    local haproxy=$!
    nginx -c "$scratch/nginx.conf" >>"$scratch/proxies" 2>&1 &
    local nginx=$!
    # What cannot bind ends at once; what could accepts.
    for _ in $(seq 200); do
        kill -0 "$haproxy" 2>/dev/null && kill -0 "$nginx" 2>/dev/null || break
        if accepts "$1" && accepts $(($1 + 4)); then
            running+=("$haproxy" "$nginx")
            return
        fi
        sleep 0.05
    done
    kill "$haproxy" "$nginx" 2>/dev/null || true
    wait "$haproxy" "$nginx" 2>/dev/null || true
    return 1
}
accepts() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for try in 1 2 3 4 5; do
    port=$((20000 + RANDOM % 10000))
    if proxies "$port"; then break; fi
    [ "$try" -lt 5 ] || fail "the load balancers did not start"
done

metric() { curl -s "$admin/metrics" | awk -v name="$1" 'index($1, name) == 1 && /reason="proxy_header"/ { sum += $2 } END { print sum + 0 }'; }
# is_welcomed WORDS CURL_ARGUMENTS...
is_welcomed() {
    local words=$1
    shift
    [ "$(curl -s --max-time 10 "$@")" = "Welcome to my site!" ] || fail "a visit $words was not welcomed"
    echo "ok a visit $words is welcomed"
}
is_relayed() { # is_relayed WORDS CURL_ARGUMENTS...: and by the client's address
    local before
    before=$(grep -c "was relayed for 127.0.0.1:" "$log" || true)
    is_welcomed "$@"
    until_true "the client $1 is not known" more_relayed "$before"
}
more_relayed() { [ "$(grep -c "was relayed for 127.0.0.1:" "$log")" -gt "$1" ]; }

is_relayed "through HAProxy, version 1," "http://127.0.0.1:$port/"
is_relayed "through HAProxy, version 2," "http://127.0.0.1:$((port + 1))/"
is_relayed "through HAProxy, version 2 with a checksum," "http://127.0.0.1:$((port + 2))/"
is_welcomed "through HAProxy, from a UNIX socket," --unix-socket "$scratch/unix" http://site/
is_relayed "through nginx, version 1," "http://127.0.0.1:$((port + 4))/"
is_closed() {
    local words=$1 before
    before=$(metric tallyring_bad_requests_total)
    shift
    if curl -s --max-time 10 -o "$scratch/answer" "$@"; then fail "a visit $words was answered"; fi
    [ ! -s "$scratch/answer" ] || fail "a visit $words was answered"
    [ "$(metric tallyring_bad_requests_total)" -gt "$before" ] || fail "a visit $words was not counted"
    echo "ok a visit $words is closed and counted"
}
is_closed "through HAProxy without a header" "http://127.0.0.1:$((port + 3))/"
is_closed "without a load balancer" "http://$site/"
curl -s "$admin/readyz" >/dev/null || fail "the admin listener wants a header"
echo "ok the admin listener takes no header"
