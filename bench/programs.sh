# What flame.sh, events.sh and instructions.sh share, which source it: the programs, on which cores, and how they start
# and end.

fail() {
    echo "$*" >&2
    exit 1
}

# need_tools PACKAGES TOOL...
need_tools() {
    local packages=$1 tool
    shift
    for tool; do
        command -v "$tool" >/dev/null || fail "$tool is not installed; on Debian: apt-get install $packages"
    done
}

# need_programs NAME...: in $programs.
need_programs() {
    local name
    for name; do
        [[ -f $programs/$name && -x $programs/$name ]] || fail "there is no program $programs/$name;" \
            "build it with: cargo build --release && cargo build --release -p tallyring-bench"
    done
}

scratch=$(mktemp -d)
stub= server=
finish() {
    # An id is forgotten when its process has ended: another may have it by then.
    local id
    for id in $stub $server; do kill -9 "$id" 2>/dev/null && wait "$id" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap finish EXIT
last=$(($(nproc) - 1))
counter=127.0.0.1:$((20000 + RANDOM % 10000)) site=127.0.0.1:$((30000 + RANDOM % 2000))
serve=(serve --listen "$site" --counter "http://$counter/counter" --skip-counter-check --admin off)

# start_stub [COMMAND...]: the counter, run by this command.
start_stub() {
    "$@" "$programs/stub" "$counter" >/dev/null 2>"$scratch/stub.log" &
    stub=$!
}

# start_server COMMAND...
start_server() {
    "$@" >/dev/null 2>"$scratch/log" &
    server=$!
}

# await_server NAME COMMAND...: until this command, which loads the server, succeeds.
await_server() {
    local name=$1 end=$((SECONDS + 60))
    shift
    until timeout 5 "$@" >/dev/null 2>"$scratch/load.log"; do
        kill -0 "$stub" 2>/dev/null || fail "the counter did not start: $(cat "$scratch/stub.log")"
        kill -0 "$server" 2>/dev/null || fail "$name did not start: $(cat "$scratch/log")"
        ((SECONDS < end)) || fail "$name serves nothing after a minute: $(cat "$scratch/log" "$scratch/load.log")"
        sleep 0.1
    done
}

end_server() {
    kill -9 "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
}
