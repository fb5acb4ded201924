#!/usr/bin/env bash
# The server under faults of the kernel, injected by strace: it starts with what it gets, says so, and
# welcomes every visit. tests/kernel-faults.sh [PROGRAM]
set -euo pipefail
program=${1:-"$(dirname "$0")/../target/debug/tallyring"}
for tool in strace curl; do
    command -v "$tool" >/dev/null || { echo "$tool is not installed; on Debian: apt-get install $tool"; exit 1; }
done
scratch=$(mktemp -d)
tracer=
finish() {
    # strace ends with what it traces.
    if [ -n "$tracer" ]; then pkill -KILL -P "$tracer" || true; wait "$tracer" 2>/dev/null || true; fi
    rm -rf "$scratch"
}
trap finish EXIT

# start FAULT FLAG...: starts a server under a fault and waits for its first line.
start() {
    local fault=$1
    shift
    : >"$scratch/log"
    strace -f -o /dev/null -e inject="$fault" "$program" serve --listen 127.0.0.1:0 --admin off --counter-listen off --workers 1 \
        --driver epoll --data-dir "$scratch/data" "$@" 2>"$scratch/log" &
    tracer=$!
    until grep -q "serves http" "$scratch/log"; do
        kill -0 "$tracer" 2>/dev/null || { echo "FAILED $fault: it did not start: $(cat "$scratch/log")"; exit 1; }
        sleep 0.05
    done
    address=$(sed -n 's/.*serves \(http:[^ ]*\) .*/\1/p' "$scratch/log")
}
# stop FAULT: stops the server, which must exit with 0.
stop() {
    pkill -TERM -P "$tracer"
    wait "$tracer" || { echo "FAILED $1: exit code $?: $(tail -1 "$scratch/log")"; exit 1; }
    tracer=
}
counted() {
    local counter
    counter=$(sed -n 's/.*visits go to \(http:[^ ]*\) .*/\1/p' "$scratch/log")
    curl -s --max-time 60 "$counter"
}

# check_store FAULT WORDS: of 100 visits some fail and the others are counted, each once; a start without the
# fault finds them. The system's calls are numbered for each thread: a start makes less than 40 of a kind.
check_store() {
    local fault=$1 words=$2 before welcomed
    start "fchdir:error=ENOSYS"
    before=$(counted)
    stop "$fault"
    start "$fault"
    welcomed=$(curl -s --max-time 60 "$address/?[1-100]" | grep -o "Welcome to my site!" | wc -l)
    stop "$fault"
    grep -qF "$words" "$scratch/log" || { echo "FAILED $fault: no \"$words\" in: $(cat "$scratch/log")"; exit 1; }
    start "fchdir:error=ENOSYS"
    after=$(($(counted) - before))
    stop "$fault"
    if [ "$welcomed" -ge 100 ] || [ "$after" -lt "$welcomed" ] || [ "$after" -gt 100 ]; then
        echo "FAILED $fault: $welcomed of 100 visits were welcomed, $after counted"; exit 1
    fi
    echo "ok $fault: $welcomed of 100 visits were welcomed, $after counted"
}

# check_hang: a disk that does not answer delays the end of the server by the drain time-out at most. strace keeps the
# thread that hangs from ending with its process, so the server's last line is looked for, not its exit.
check_hang() {
    local fault="fdatasync:delay_enter=60s:when=40+"
    start "$fault" --drain-timeout 1s --counter-timeout 1s
    until curl -s --max-time 10 "$address/" | grep -q "Error registering"; do :; done
    pkill -TERM -P "$tracer"
    for _ in $(seq 400); do
        if grep -q "stopped: " "$scratch/log"; then break; fi
        sleep 0.05
    done
    grep -q "stopped: " "$scratch/log" || { echo "FAILED $fault: it does not end: $(cat "$scratch/log")"; exit 1; }
    grep -qF "the counter's store hangs and is cut" "$scratch/log" ||
        { echo "FAILED $fault: nobody was told: $(cat "$scratch/log")"; exit 1; }
    kill -KILL "$tracer"
    wait "$tracer" 2>/dev/null || true
    tracer=
    echo "ok $fault: it ends, and says what was cut"
}

# check FAULT DRIVER WORDS: the start-up line must hold WORDS, and 100 visits must be welcomed.
check() {
    local fault=$1 driver=$2 words=$3 log="$scratch/log" address welcomed
    : >"$log"
    strace -f -o /dev/null -e inject="$fault" "$program" serve --listen 127.0.0.1:0 --admin off --counter-listen off \
        --workers 2 --driver "$driver" --data-dir "$scratch/data" 2>"$log" &
    tracer=$!
    until grep -q "serves http" "$log"; do
        kill -0 "$tracer" 2>/dev/null || { echo "FAILED $fault: it did not start: $(cat "$log")"; exit 1; }
        sleep 0.05
    done
    grep -qF "$words" "$log" || { echo "FAILED $fault: no \"$words\" in: $(cat "$log")"; exit 1; }
    address=$(sed -n 's/.*serves \(http:[^ ]*\) .*/\1/p' "$log")
    welcomed=$(curl -s --max-time 60 "$address/?[1-100]" | grep -o "Welcome to my site!" | wc -l)
    [ "$welcomed" = 100 ] || { echo "FAILED $fault: $welcomed of 100 visits were welcomed"; exit 1; }
    pkill -TERM -P "$tracer"
    wait "$tracer" || { echo "FAILED $fault: exit code $?: $(tail -1 "$log")"; exit 1; }
    tracer=
    echo "ok $fault: $(sed -n 's/.* by \(.*\); visits.*/\1/p' "$log")"
}

check io_uring_setup:error=EPERM auto "io_uring is refused (EPERM)"
check io_uring_setup:error=ENOSYS auto "io_uring does not exist here (ENOSYS)"
check io_uring_setup:error=ENOMEM auto "too little locked memory for full-size rings (ENOMEM)"
check epoll_wait:error=EINTR:when=5+2 epoll "by epoll"
if "$program" doctor | grep -q "io_uring *yes"; then
    # The first is a probe; the second is tried again without the flags.
    check io_uring_setup:error=EINVAL:when=2 auto "(EINVAL)"
    # As when the memory of an earlier process is not free yet.
    check io_uring_setup:error=ENOMEM:when=1..2 io_uring "entries);"
    for error in EINTR EAGAIN EBUSY; do
        check "io_uring_enter:error=$error:when=20+3" io_uring "by io_uring"
    done
else
    echo "this host has no io_uring: faults of io_uring are not injected here"
fi
check_store fdatasync:error=EIO:when=40+9 "fails: "
check_store pwrite64:error=ENOSPC:when=200+31 "fails: "
check_store statx:error=EIO:when=60+25 "fails: "
check_hang
