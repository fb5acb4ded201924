#!/usr/bin/env bash
# Where the CPU time of tallyring's worker goes, as a flame graph: blue is the kernel.
# bench/flame.sh DIRECTORY-OF-PROGRAMS FILE.svg [TITLE [CONNECTIONS [VISITS-A-SECOND]]]
set -euo pipefail
programs=$1 file=$2 title=${3:-tallyring} connections=${4:-64} rate=${5:-}
for tool in perf taskset python3; do
    command -v "$tool" >/dev/null || { echo "$tool is not installed; on Debian: apt-get install linux-perf util-linux python3"; exit 1; }
done
scratch=$(mktemp -d)
stub= server=
finish() {
    # An id is forgotten when its process has ended: another may have it by then.
    for id in $stub $server; do kill "$id" 2>/dev/null && wait "$id" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap finish EXIT
last=$(($(nproc) - 1))
counter=127.0.0.1:$((20000 + RANDOM % 10000)) site=127.0.0.1:$((30000 + RANDOM % 2000))

taskset -c "$last" "$programs/stub" "$counter" >/dev/null &
stub=$!
taskset -c 0 "$programs/tallyring" serve --listen "$site" --counter "http://$counter/counter" --skip-counter-check \
    --admin off --cores 0 >/dev/null 2>"$scratch/log" &
server=$!
load=(taskset -c "$last" "$programs/load" "$site" --connections "$connections" ${rate:+--rate "$rate"})
until timeout 5 "${load[@]}" --visits 64 >/dev/null 2>&1; do
    kill -0 "$server" 2>/dev/null || { echo "tallyring did not start: $(cat "$scratch/log")"; exit 1; }
    sleep 0.1
done
"${load[@]}" --seconds 1 >/dev/null
perf record -q -e cpu-clock -F 1499 -m 16M --call-graph dwarf,8192 -p "$server" -o "$scratch/perf" -- \
    "${load[@]}" --seconds 8 >/dev/null
perf script --no-inline -i "$scratch/perf" -F comm,ip,sym 2>/dev/null >"$scratch/stacks"
python3 - "$scratch/stacks" "$file" "$title" <<'P'
import html, re, sys

WIDTH, HEIGHT = 1200, 15
stacks, file, title = sys.argv[1:]

def samples():
    """The stacks, outermost first: each frame is whether the kernel's, and its name."""
    for sample in open(stacks).read().split("\n\n"):
        frames = [line.split(None, 1) for line in sample.splitlines() if line[:1].isspace()]
        frames = [(at.startswith("ffffffff"), re.sub(r"::h[0-9a-f]{16}$", "", name)) for at, name in frames[::-1]]
        begin = [place for place, (_, name) in enumerate(frames) if "__rust_begin_short_backtrace" in name]
        if frames:
            yield frames[begin[0] if begin else 0:]

root, total = {}, 0
for frames in samples():
    total += 1
    calls = root
    for frame in frames:
        count, below = calls.setdefault(frame, (0, {}))
        calls[frame] = (count + 1, below)
        calls = below

bars = []

def draw(calls, left, depth):
    for (is_kernel, name), (count, below) in sorted(calls.items()):
        width = count / total * WIDTH
        # What cannot be seen is left out.
        if width >= 0.6:
            bars.append((left, depth, width, is_kernel, name, count))
            draw(below, left, depth + 1)
        left += width

draw(root, 0, 0)
height = (max(depth for _, depth, *_ in bars) + 1) * HEIGHT + 40
with open(file, "w") as svg:
    svg.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="monospace" font-size="10">\n'
              f'<rect width="100%" height="100%" fill="#fff"/>\n'
              f'<text x="6" y="16" font-size="13">{html.escape(title)}: {total} samples</text>\n')
    for left, depth, width, is_kernel, name, count in bars:
        top, letters = height - 10 - (depth + 1) * HEIGHT, int((width - 4) / 6.1)
        text = name if len(name) <= letters else name[:letters - 1] + "…" if letters > 3 else ""
        svg.write(f'<g><title>{html.escape(name)}: {count / total:.1%}</title><rect x="{left:.1f}" y="{top}" '
                  f'width="{width - 0.2:.1f}" height="{HEIGHT - 1}" fill="{"#9ecae1" if is_kernel else "#fdae6b"}"/>'
                  f'<text x="{left + 2:.1f}" y="{top + 10}">{html.escape(text)}</text></g>\n')
    svg.write("</svg>\n")
P
