#!/usr/bin/env bash
# The images, what runs them, and the Debian package, with real containers: docker/test.sh
#
# Uses the engine that runs here. Where none does, it starts one by hand, as root, with all its files in a
# directory of its own; where none is installed, it installs Debian's first. Builds the base images where
# they are missing, since a machine without a registry is to be able to test. What it has made, it removes.
# RELEASED=DIRECTORY compares with what package/release.sh has made there.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
project=tallyring-test-$$
image=$project
bench_image=$project-bench
postgres_image=$project-postgres
# That of the database, like nothing else on this machine.
password=secret-$$-$RANDOM
engine=
stub=
composer=
composers=()
failed=0

finish() {
    status=$?
    if [ -n "$stub" ]; then kill "$stub" 2>/dev/null || true; fi
    if docker info >/dev/null 2>&1; then
        if [ -n "$composer" ]; then
            compose down -v >/dev/null 2>&1 || true
            shared down -v >/dev/null 2>&1 || true
        fi
        docker ps -aq --filter "label=$project" | xargs -r docker rm -vf >/dev/null || true
        docker volume rm -f "$project-volume" >/dev/null || true
        docker rmi -f "$image" "$image-binary" "$bench_image" "$postgres_image" "$project-systemd" "$project-released" >/dev/null 2>&1 || true
    fi
    if [ -n "$engine" ]; then
        kill "$engine" 2>/dev/null || true
        wait "$engine" 2>/dev/null || true
        # It leaves the mount of its own network behind.
        awk -v under="$scratch/" 'index($2, under) == 1 { print $2 }' /proc/mounts | xargs -r umount -l || true
    fi
    rm -rf "$scratch" || true
    exit "$status"
}
trap finish EXIT

step() { printf '\n-- %s\n' "$*"; }

# expect WHAT COMMAND...: prints whether it succeeds, and what it says if not.
expect() {
    local what=$1
    shift
    if "$@" >"$scratch/said" 2>&1; then
        echo "ok      $what"
    else
        echo "FAILED  $what"
        sed 's/^/        /' "$scratch/said"
        failed=$((failed + 1))
    fi
}

# within SECONDS COMMAND...: tries until it succeeds; what it said last, if it does not.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >"$scratch/tried" 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then cat "$scratch/tried"; return 1; fi
        sleep 0.1
    done
}

equal() { [ "$1" = "$2" ] || { echo "$1, not $2"; return 1; }; }
holds() { case "$1" in *"$2"*) ;; *) echo "no \"$2\" in: $1"; return 1 ;; esac; }
under() { [ "$1" -lt "$2" ] || { echo "$1, not under $2"; return 1; }; }

install_tools() {
    local packages=()
    command -v dockerd >/dev/null || docker info >/dev/null 2>&1 || packages+=(docker.io iptables)
    docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null ||
        packages+=(docker-compose)
    command -v debootstrap >/dev/null || packages+=(debootstrap)
    command -v curl >/dev/null || packages+=(curl)
    python3 -c 'import yaml' 2>/dev/null || packages+=(python3-yaml)
    if [ ${#packages[@]} -gt 0 ]; then
        echo "installing ${packages[*]}"
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >"$scratch/apt.log" 2>&1 ||
            { tail -n 20 "$scratch/apt.log"; return 1; }
    fi
}

start_engine() {
    if docker info >/dev/null 2>&1; then return; fi
    export DOCKER_HOST=unix://$scratch/docker.sock
    dockerd --data-root "$scratch/data" --exec-root "$scratch/exec" --pidfile "$scratch/pid" \
        -H "$DOCKER_HOST" >"$scratch/engine.log" 2>&1 &
    engine=$!
    if ! within 60 docker info; then
        echo "FAILED  no container engine can run here; it says:"
        grep -vE 'level=(info|debug)' "$scratch/engine.log" | tail -n 20
        exit 1
    fi
}

# Both versions of compose, which differ in where they look for files. Where Debian's own is the first, the
# second comes from the release after it, unpacked and not installed.
find_composers() {
    local command
    for command in "docker compose" docker-compose; do
        # shellcheck disable=SC2086 # it is two words
        case "$($command version --short 2>/dev/null)" in
            1.*) composers[1]=$command ;;
            2.* | v2.*) composers[2]=$command ;;
        esac
    done
    if [ -z "${composers[2]:-}" ] && docker/compose-2.sh "$scratch/compose" >"$scratch/compose.log" 2>&1; then
        composers[2]=$scratch/compose/docker-compose
    fi
}

compose() {
    # shellcheck disable=SC2086 # it may be two words
    TALLYRING_IMAGE=$image TALLYRING_BENCH_IMAGE=$bench_image $composer -p "$project" "$@"
}

shared() {
    # shellcheck disable=SC2086 # it may be two words
    TALLYRING_IMAGE=$image TALLYRING_POSTGRES_IMAGE=$postgres_image TALLYRING_DATABASE_PASSWORD=$password \
        $composer -p "$project" --project-directory . -f docker/compose-postgres.yaml "$@"
}

build() {
    # The host's network: a machine may reach its registries from nowhere else.
    docker build --network host "$@" >"$scratch/build.log" 2>&1 || { tail -n 40 "$scratch/build.log"; return 1; }
}

# start NAME [OPTION]... [-- ARGUMENT...]: a container of the image, with its admin listener in reach.
start() {
    local name=$1 options=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
    if [ $# -gt 0 ]; then shift; fi
    docker run -d --label "$project" --name "$project-$name" -e TALLYRING_ADMIN=0.0.0.0:9300 \
        "${options[@]}" "$image" "$@" >/dev/null
    within 30 started "$name" || { docker logs "$project-$name"; return 1; }
}

inspect() { docker inspect -f "$2" "$project-$1"; }
started() { docker logs "$project-$1" 2>&1 | grep -q 'tallyring .*http'; }
log() { docker logs "$project-$1" 2>&1; }
address() { inspect "$1" '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}'; }
visit() { curl -sS --max-time 10 "http://$(address "$1"):3000/"; }
metrics() { curl -sS --max-time 10 "http://$(address "$1"):9300/metrics"; }
rings() { ls -l "/proc/$(inspect "$1" '{{.State.Pid}}')/fd" | grep -c io_uring || true; }
field() { sed -n "s/^$2:[[:space:]]*//p" "/proc/$(inspect "$1" '{{.State.Pid}}')/status"; }
remove() { docker rm -vf "$project-$1" >/dev/null; }
visit_is() { equal "$(visit "$1")" "Welcome to my site!"; }
log_holds() { holds "$(log "$1")" "$2"; }
metrics_hold() { holds "$(metrics "$1")" "$2"; }
health_is() { equal "$(inspect "$1" '{{.State.Health.Status}}')" "$2"; }
stops() {
    docker stop "$project-$1" >/dev/null
    equal "$(inspect "$1" '{{.State.ExitCode}}')" 0
}

# runs_on NAME DRIVER: seen in the log, in the metrics and in the open files.
runs_on() {
    expect "$1: its log says $2" log_holds "$1" "by $2 ("
    expect "$1: its metrics say $2" metrics_hold "$1" "driver=\"$2\",flags="
    case $2 in
        io_uring) expect "$1: it holds a ring for each worker" test "$(rings "$1")" -gt 0 ;;
        *) expect "$1: it holds no ring" equal "$(rings "$1")" 0 ;;
    esac
    expect "$1: a visitor is welcomed" visit_is "$1"
}

step "the engine and the images"
install_tools
start_engine
find_composers
echo "engine $(docker version -f '{{.Server.Version}}')"
docker/base-images.sh "$scratch"
released=
commit=unknown
if [ -n "${RELEASED:-}" ]; then
    released=$(ls "$RELEASED"/tallyring-*-"$(uname -m)-linux")
    commit=$("$released" --version | sed -n 's/^commit *//p')
fi
expect "the image is built" build --build-arg COMMIT="$commit" -f docker/Dockerfile -t "$image" .
expect "the program alone is built" \
    build --build-arg COMMIT="$commit" -f docker/Dockerfile --target binary -t "$image-binary" .
expect "wrk's image is built" build -f docker/bench.Dockerfile -t "$bench_image" docker
if [ "$failed" -gt 0 ]; then exit 1; fi
. docker/checks.sh
. package/checks.sh

step "all together"
if [ "$failed" -gt 0 ]; then echo "$failed checks failed"; exit 1; fi
echo "all checks passed"
