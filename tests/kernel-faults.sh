#!/usr/bin/env bash
# The server under faults of the kernel's side, injected by strace: it starts on what it can get, says
# so, and welcomes every visit. tests/kernel-faults.sh [PROGRAM]
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

# check FAULT DRIVER WORDS: the start-up line must hold WORDS, and 100 visits must be welcomed.
check() {
    local fault=$1 driver=$2 words=$3 log="$scratch/log" address welcomed
    : >"$log"
    strace -f -o /dev/null -e inject="$fault" "$program" serve --listen 127.0.0.1:0 --admin off \
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
    # As when a predecessor's memory is not given back yet.
    check io_uring_setup:error=ENOMEM:when=1..2 io_uring "entries);"
    for error in EINTR EAGAIN EBUSY; do
        check "io_uring_enter:error=$error:when=20+3" io_uring "by io_uring"
    done
else
    echo "this host gives no io_uring: its own faults are not injected here"
fi
