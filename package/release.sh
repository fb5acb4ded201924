#!/usr/bin/env bash
# Makes what is given to others, of the commit that is checked out: package/release.sh [DIRECTORY [ARCHITECTURE]...]
#
# For x86_64 and aarch64 each a static program, an archive of it with its manual and completions, the Debian package
# and the image; then a list of what the program is made of (CycloneDX) and the checksums. In target/packages by
# default. It needs Rust by rustup, Python and dpkg, and for aarch64 a C compiler (Debian: gcc-aarch64-linux-gnu), which
# it installs where it may. What it cannot make it names, and then fails.
#
# The same commit gives the same files, wherever it is made: the toolchain is that of docker/Dockerfile, paths of the
# machine are replaced, and all times are the commit's. RELEASE=trial, as the gate has it, takes sources with changes that
# are in no commit, and the program says so.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "${1:-target/packages}"
out=$(realpath "${1:-target/packages}")
shift || true
architectures=("$@")
if [ $# -eq 0 ]; then architectures=(x86_64 aarch64); fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
missing=()
failed() { echo "NOT MADE: $*" >&2; missing+=("$*"); }

commit=$(git rev-parse --short=12 HEAD)
if [ -n "$(git status --porcelain)" ] && [ "${RELEASE:-}" = trial ]; then
    commit="$commit with changes"
elif [ -n "$(git status --porcelain)" ]; then
    echo "release.sh: there are changes that are in no commit; commit or stash them first" >&2
    exit 2
fi

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
# What a workflow runs for.
case ${GITHUB_REF:-} in
    "refs/tags/v$version") ;;
    refs/tags/*) echo "release.sh: the tag is $GITHUB_REF, and the version in Cargo.toml $version" >&2; exit 2 ;;
esac
wanted=$(sed -n 's/^ARG RUST_VERSION=//p' docker/Dockerfile)
case "$(rustc --version)" in
    "rustc $wanted."*) ;;
    *) echo "release.sh: releases are made by Rust $wanted (docker/Dockerfile), and this is $(rustc --version)" >&2; exit 2 ;;
esac
. package/tools.sh
need_cargo_deb
need_cargo_cyclonedx
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
TALLYRING_COMMIT=$commit
separator=$(printf '\x1f')
CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$PWD=/build$separator--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
export SOURCE_DATE_EPOCH TALLYRING_COMMIT
rm -f "$out"/tallyring* "$out"/SHA256SUMS

# A C compiler for aarch64 on another architecture.
need_compiler() {
    if [ "$1" = "$(uname -m)" ]; then
        export "CC_$1_unknown_linux_musl=gcc"
    elif [ "$1" = x86_64 ]; then
        return 1
    elif ! command -v aarch64-linux-gnu-gcc >/dev/null; then
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross; } \
            >"$scratch/apt.log" 2>&1
    fi
}

# build ARCHITECTURE: the program, in $program.
build() {
    local target=$1-unknown-linux-musl
    program=$PWD/target/$target/dist/tallyring
    if ! rustup target list --installed | grep -qx "$target" && ! rustup target add "$target"; then
        failed "$1: Rust's standard library for $target cannot be fetched"
        return 1
    fi
    if ! need_compiler "$1"; then
        failed "$1: there is no C compiler for it here"
        return 1
    fi
    local lto=fat level=3
    # What no test runs is hardly optimized there, which takes minutes.
    if [ "${RELEASE:-}" = trial ] && [ "$1" != "$(uname -m)" ]; then
        lto=off level=1
        echo "a trial: hardly optimized"
    fi
    CARGO_PROFILE_DIST_LTO=$lto CARGO_PROFILE_DIST_OPT_LEVEL=$level CARGO_ENCODED_RUSTFLAGS=$CARGO_ENCODED_RUSTFLAGS \
        cargo build --quiet --locked --profile dist --target "$target" || { failed "$1: it cannot be built"; return 1; }
}

# The archive: the program with what belongs to it, and no trace of when and by whom.
archive() {
    local name=tallyring-$version-$1-linux
    mkdir -p "$scratch/$name"
    install -m 755 "$program" "$scratch/$name/tallyring"
    install -m 644 README.md CHANGELOG.md SECURITY.md LICENSE-MIT LICENSE-APACHE docker/seccomp.json "$scratch/$name"
    cp -r docs "$scratch/$name/docs"
    cp -r target/manual "$scratch/$name/manual"
    tar -C "$scratch" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go-w,a+rX \
        -c "$name" | gzip -9n >"$out/$name.tar.gz"
}

for architecture in "${architectures[@]}"; do
    echo "== $architecture"
    case $architecture in
        x86_64) debian=amd64 ;;
        aarch64) debian=arm64 ;;
        *) failed "$architecture: it is not x86_64 or aarch64"; continue ;;
    esac
    build "$architecture" || continue
    package/deb.sh "$out/tallyring_${version}_$debian.deb" "$architecture-unknown-linux-musl" "$program"
    install -m 755 "$program" "$out/tallyring-$version-$architecture-linux"
    archive "$architecture"
    package/image.py "$program" "$debian" "tallyring:$version" "$out/tallyring-$version-image-$debian.tar.gz"
done

echo "== what it is made of"
# It writes beside Cargo.toml, of each member of the workspace, and names the machine's paths.
cargo cyclonedx --quiet --format json --spec-version 1.5 --target x86_64-unknown-linux-musl --override-filename tallyring-sbom
sed "s#file://$PWD#file:///build#g" tallyring-sbom.json >"$out/tallyring-$version-sbom.json"
rm -f {.,bench,simulation,simulation/world}/tallyring-sbom.json
(cd "$out" && sha256sum tallyring* >SHA256SUMS)
ls -l "$out"
if [ ${#missing[@]} -gt 0 ]; then
    printf 'NOT MADE: %s\n' "${missing[@]}" >&2
    exit 1
fi
