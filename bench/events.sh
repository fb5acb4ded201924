#!/usr/bin/env bash
# What a visit costs the kernel and the program: tallyring beside the floor, by perf(1).
# bench/events.sh [DIRECTORY-OF-PROGRAMS [CONNECTIONS [VISITS-A-SECOND]]]   (target/release, 64, as fast as they can; build
# it with cargo first)
set -euo pipefail
programs=${1:-"$(dirname "$0")/../target/release"} connections=${2:-64} rate=${3:-}
source "$(dirname "$0")/programs.sh"
need_tools "linux-perf util-linux python3" perf taskset python3
need_programs tallyring floor stub load
seconds=4
events=raw_syscalls:sys_enter,io_uring:io_uring_submit_req,io_uring:io_uring_complete,io_uring:io_uring_poll_arm
events+=,io_uring:io_uring_cqring_wait,timer:hrtimer_start,net:net_dev_xmit,sched:sched_waking,sched:sched_switch,timer:timer_start

start_stub taskset -c "$last"
load=(taskset -c "$last" "$programs/load" "$site" --connections "$connections" ${rate:+--rate "$rate"})

# measure NAME COMMAND...
measure() {
    local name=$1
    shift
    start_server taskset -c 0 "$@"
    await_server "$name" "${load[@]}" --visits 64
    "${load[@]}" --seconds 1 >/dev/null
    perf stat -x, -e "$events" -p "$server" -o "$scratch/$name.events" -- \
        "${load[@]}" --seconds "$seconds" >"$scratch/$name.json"
    perf record -q -e cpu-clock -F 1999 -p "$server" -o "$scratch/$name.perf" -- \
        "${load[@]}" --seconds "$seconds" >/dev/null
    perf report -i "$scratch/$name.perf" --stdio --sort sym -F overhead,sym -t ';' 2>/dev/null >"$scratch/$name.symbols"
    end_server
}
measure floor "$programs/floor" "$site" "$counter"
for driver in io_uring epoll; do
    measure "tallyring-$driver" "$programs/tallyring" "${serve[@]}" --cores 0 --driver "$driver"
done

printf '%s, %s cores, Linux %s; commit %s, %s; %s connections%s\n\n' "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)" \
    "$(nproc)" "$(uname -r)" "$(git -C "$(dirname "$0")" describe --always --dirty)" "$(date -u +%FT%TZ)" "$connections" "${rate:+, $rate visits a second}"
python3 - "$scratch" floor tallyring-io_uring tallyring-epoll <<'P'
import json, sys

scratch, arms = sys.argv[1], sys.argv[2:]
NAMES = {
    "raw_syscalls:sys_enter": "system calls",
    "io_uring:io_uring_submit_req": "ring operations submitted",
    "io_uring:io_uring_complete": "ring completions",
    "io_uring:io_uring_poll_arm": "of which waited at their socket",
    "io_uring:io_uring_cqring_wait": "waits for completions",
    "timer:hrtimer_start": "kernel timers of high resolution",
    "net:net_dev_xmit": "packets sent",
    "sched:sched_waking": "wake-ups of others",
    "sched:sched_switch": "context switches",
    "timer:timer_start": "kernel timers started",
}

def counted(arm):
    visits = json.load(open(f"{scratch}/{arm}.json"))["visits"]
    rows = (line.split(",") for line in open(f"{scratch}/{arm}.events") if "," in line and line[0] != "#")
    return {row[2]: float(row[0]) / visits for row in rows}

def group(symbol):
    if symbol.startswith("[k]"):
        return "kernel"
    for words, name in [
        (("httparse", "memchr", "::http::"), "user: reading heads and bodies"),
        (("monoio",), "user: monoio (tasks, operations, the ring), with what is inlined there"),
        (("::upstream::",), "user: calls to the counter"),
        (("::connection::", "::read_buffer::", "::deadlines::", "::site::"), "user: clients and pages"),
        (("floor", "tallyring_bench"), "user: floor"),
    ]:
        if any(word in symbol for word in words):
            return name
    return "user: all else (libc, bytes, vdso, …)"

def shares(arm):
    shares = {}
    for line in open(f"{scratch}/{arm}.symbols"):
        parts = line.strip().split(";")
        if line[0] != "#" and len(parts) == 2 and parts[0].strip().endswith("%"):
            name = group(parts[1].strip())
            shares[name] = shares.get(name, 0.0) + float(parts[0].strip()[:-1])
    return shares

def table(title, rows, form):
    print(f"| {title} | " + " | ".join(arms) + " |\n|" + " --- |" * (len(arms) + 1))
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        print(f"| {NAMES.get(name, name)} | " + " | ".join(form(row.get(name, 0.0)) for row in rows) + " |")
    print()

table("a visit", [counted(arm) for arm in arms], lambda value: f"{value:.3f}")
table("share of CPU time", [shares(arm) for arm in arms], lambda value: f"{value:.1f} %")
P
