#!/usr/bin/env bash
# A counter that is given by name, while the name's addresses change under the server: in a mount
# namespace with a hosts file of its own (unshare(1)). tests/name-change.sh [PROGRAM]
set -euo pipefail
program=$(realpath "${1:-"$(dirname "$0")/../target/debug/tallyring"}")
for tool in curl unshare; do
    command -v "$tool" >/dev/null || { echo "$tool is not installed; on Debian: apt-get install curl util-linux"; exit 1; }
done
scratch=$(mktemp -d)
hosts="$scratch/hosts" log="$scratch/log"
: >"$log"
declare -A running=()
end() { # end NAME SIGNAL
    local id=${running[$1]}
    unset "running[$1]"
    kill "-$2" "$id" 2>/dev/null || true
    wait "$id" 2>/dev/null || true
}
finish() {
    for name in "${!running[@]}"; do end "$name" KILL; done
    rm -rf "$scratch"
}
trap finish EXIT
fail() { echo "FAILED $*"; cat "$log"; exit 1; }

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

# start_counter NAME ADDRESS: a counter in memory, with totals of its own.
start_counter() {
    : >"$scratch/$1"
    "$program" counter --listen "$2" --store memory --counter-hosts counter.test 2>"$scratch/$1" &
    running[$1]=$!
    until_true "$1 did not start" grep -q "counts at http" "$scratch/$1"
}
counted() { curl -s --max-time 5 "http://$1/counter"; }
is_welcomed() { [ "$(curl -s --max-time 10 "$site/")" = "Welcome to my site!" ]; }
is_not_welcomed() { [ "$(curl -s --max-time 10 "$site/")" = "Error registering your visit" ]; }

start_counter first 127.0.0.2:0
port=$(sed -n 's/.*http:\/\/127.0.0.2:\([0-9]*\).*/\1/p' "$scratch/first")

echo "127.0.0.1 localhost" >"$hosts"
rootless=()
[ "$(id -u)" = 0 ] || rootless=(--map-root-user)
start_server() { # start_server FLAGS...
    : >"$log"
    # shellcheck disable=SC2016
    unshare "${rootless[@]}" --mount sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$hosts" \
        "$program" serve --listen 127.0.0.1:0 --admin off --workers 1 --counter "http://counter.test:$port/counter" "$@" 2>"$log" &
    running[server]=$!
    until_true "the server did not start" grep -q "serves http" "$log"
    site=$(sed -n 's/.*serves \(http:[^ ]*\) .*/\1/p' "$log")
}
start_server

is_not_welcomed || fail "a visit was welcomed by a counter without an address"
grep -q "the counter's name cannot be looked up" "$log" || fail "nobody was told that the name has no address"
echo "ok a name without an address: the server starts, says so, and registers nothing"

echo "127.0.0.2 counter.test" >"$hosts"
until_true "the first counter was not found" is_welcomed
echo "ok the name has an address: visits are registered"

# The old counter stays alive and would still count: only the name tells that it is not the counter any more.
start_counter second "127.0.0.3:$port"
echo "127.0.0.3 counter.test" >"$hosts"
told() { grep -q "the counter's name has the addresses \[127.0.0.3:$port\]" "$log"; }
# The name is looked up every 30 seconds while nothing fails.
for _ in $(seq 900); do
    if told; then break; fi
    sleep 0.05
done
told || fail "nobody was told of the new address"
# The line is written before the worker gets the address: a visit or two may still go to the old one.
moved_after=0
until [ "$(counted "127.0.0.3:$port")" -ge 1 ]; do
    is_welcomed || fail "a visit was not welcomed while the counter moved"
    moved_after=$((moved_after + 1))
    [ "$moved_after" -le 5 ] || fail "five visits after the move, the new counter has counted none"
done
before=$(counted "127.0.0.2:$port") new=$(counted "127.0.0.3:$port")
for _ in $(seq 10); do is_welcomed || fail "a visit was not welcomed after the counter had moved"; done
[ "$(counted "127.0.0.2:$port")" = "$before" ] || fail "the old counter went on to count"
[ "$(counted "127.0.0.3:$port")" = $((new + 10)) ] || fail "the new counter did not count each visit once"
echo "ok the counter has moved while the old one answers: visits are registered at its new address, each once"
end first KILL

echo >"$hosts"
end second KILL
until_true "a visit was welcomed by a counter that is gone" is_not_welcomed
start_counter third "127.0.0.3:$port"
until_true "the last address was not kept" is_welcomed
echo "ok the name has no address any more: its last one is kept"
end server TERM

# From here on each address of the name is a counter.
start_counter fourth "127.0.0.4:$port"
printf '%s counter.test\n' 127.0.0.3 127.0.0.4 >"$hosts"
start_server --counter-spread addresses
before=$(($(counted "127.0.0.3:$port") + $(counted "127.0.0.4:$port")))
for _ in $(seq 40); do is_welcomed || fail "a visit was not welcomed by one of two addresses"; done
[ "$(counted "127.0.0.4:$port")" -gt 0 ] || fail "one of two addresses got no visit of 40"
[ $(($(counted "127.0.0.3:$port") + $(counted "127.0.0.4:$port"))) = $((before + 40)) ] || fail "40 visits were not counted once each"
echo "ok each address of the name is a counter: visits are spread over them, each is counted once"

start_counter fifth "127.0.0.5:$port"
printf '%s counter.test\n' 127.0.0.4 127.0.0.5 >"$hosts"
end third KILL
got_visits() { is_welcomed || fail "a visit was not welcomed while one of two counters was replaced"; [ "$(counted "127.0.0.5:$port")" -gt 0 ]; }
until_true "the new address got no visits" got_visits
grep -q "visits go to other counters: POST http://counter.test:$port/counter" "$log" || fail "nobody was told that one counter is gone"
echo "ok one of the addresses is gone and another one is new: no visit is lost, and the new one gets some"
end server TERM
