#!/usr/bin/env bash
# Where the CPU time of tallyring's worker goes, as a flame graph: blue is the kernel.
# bench/flame.sh DIRECTORY-OF-PROGRAMS FILE.svg [TITLE [CONNECTIONS [VISITS-A-SECOND]]]
set -euo pipefail
programs=$1 file=$2 title=${3:-tallyring} connections=${4:-64} rate=${5:-}
source "$(dirname "$0")/programs.sh"
need_tools "linux-perf util-linux python3" perf taskset python3
need_programs tallyring stub load

start_stub taskset -c "$last"
start_server taskset -c 0 "$programs/tallyring" "${serve[@]}" --cores 0
load=(taskset -c "$last" "$programs/load" "$site" --connections "$connections" ${rate:+--rate "$rate"})
await_server tallyring "${load[@]}" --visits 64
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
