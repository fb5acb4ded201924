#!/usr/bin/env bash
# How many instructions a visit costs in user space, and where: by callgrind, which other programs do not disturb.
# bench/instructions.sh [DIRECTORY-OF-PROGRAMS [DRIVER [CONNECTIONS [VISITS]]]]   (target/release, io_uring, 64, 4000)
# Under valgrind there is no vDSO, which rustix must be told by its feature:
#   cargo build --release --features rustix/use-libc-auxv && cargo build --release -p tallyring-bench
set -euo pipefail
programs=${1:-"$(dirname "$0")/../target/release"} driver=${2:-io_uring} connections=${3:-64} visits=${4:-4000}
source "$(dirname "$0")/programs.sh"
need_tools "valgrind gcc libc6-dev python3" valgrind callgrind_control callgrind_annotate cc python3
need_programs tallyring stub load
cc -O2 -shared -fPIC -o "$scratch/ring_wait.so" "$(dirname "$0")/ring_wait.c" -ldl

start_stub
start_server env LD_PRELOAD="$scratch/ring_wait.so" valgrind --tool=callgrind --callgrind-out-file="$scratch/out" \
    --instr-atstart=no "$programs/tallyring" "${serve[@]}" --workers 1 --driver "$driver"
load=("$programs/load" "$site" --connections "$connections")
await_server tallyring "${load[@]}" --visits 1000
callgrind_control --instr=on "$server" >/dev/null 2>&1
"${load[@]}" --visits "$visits" >/dev/null
callgrind_control --instr=off "$server" >/dev/null 2>&1
callgrind_control --dump "$server" >/dev/null 2>&1
callgrind_annotate --auto=no --threshold=100 "$scratch"/out.1 >"$scratch/lines"

printf 'commit %s, %s, %s connections: instructions of a visit in user space\n\n' \
    "$(git -C "$(dirname "$0")" describe --always --dirty)" "$driver" "$connections"
python3 - "$scratch/lines" "$visits" <<'P'
import collections, re, sys

GROUPS = [
    ("reading heads and bodies", ("httparse", "memchr", "src/http/")),
    ("monoio: tasks, operations, the ring", ("monoio-", "io-uring-")),
    ("calls to the counter", ("src/upstream/",)),
    ("clients, pages, deadlines", ("src/connection/", "src/site/", "src/runtime/", "src/metrics/", "src/worker")),
]
visits = int(sys.argv[2])
groups, functions = collections.Counter(), collections.Counter()
for line in open(sys.argv[1]):
    found = re.match(r"\s*([\d,]+) \([ \d.]+%\)\s+([^:]+):(.+?)(?: \[[^\]]*\])?$", line)
    # What waits for the ring in place of the kernel is no part of the program.
    if not found or "ring_wait" in line:
        continue
    count, file, function = int(found[1].replace(",", "")), found[2], found[3]
    functions[function] += count
    for name, words in GROUPS:
        if any(word in file for word in words):
            groups[name] += count
            break
    else:
        groups["the standard library, inlined anywhere, and all else"] += count
total = sum(groups.values())
print(f"| part, by the file of its source | instructions |\n| --- | --- |\n| all | {total / visits:.0f} |")
for name, count in groups.most_common():
    print(f"| {name} | {count / visits:.0f} |")
print("\n| function, with what is inlined there | instructions |\n| --- | --- |")
for name, count in functions.most_common(25):
    print(f"| `{name.strip()[:90]}` | {count / visits:.0f} |")
P
