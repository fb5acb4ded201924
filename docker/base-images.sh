#!/usr/bin/env bash
# Builds the images that the Dockerfiles start from, where no registry can be reached: a Debian by
# debootstrap, and the same with this machine's Rust. docker/base-images.sh SCRATCH-DIRECTORY
set -euo pipefail
cd "$(dirname "$0")"
root=$1/base

debian=$(sed -n 's/^FROM \(debian:[^ ]*\)$/\1/p' bench.Dockerfile)
rust_version=$(sed -n 's/^ARG RUST_VERSION=//p' Dockerfile)
rust=$(sed -n 's/^FROM \(rust:[^ ]*\) AS build$/\1/p' Dockerfile)
rust=${rust/'${RUST_VERSION}'/$rust_version}
has() { docker image inspect "$1" >/dev/null 2>&1; }
if has "$debian" && has "$rust"; then exit 0; fi

case "$(rustc --version)" in
    "rustc $rust_version."*) ;;
    *) echo "the Dockerfile wants Rust $rust_version, and this machine has $(rustc --version)"; exit 1 ;;
esac

debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev bookworm \
    "$root" >"$1/debootstrap.log" 2>&1 || {
    echo "debootstrap failed:"; tail -n 20 "$1/debootstrap.log"; exit 1
}
rm -rf "$root"/var/cache/apt/archives/*.deb
# What this machine trusts and where it fetches crates from, its images do too.
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
tar -C "$root" -c . | docker import - "$debian" >/dev/null
echo "built $debian"

sysroot=$(rustc --print sysroot)
toolchain=$(basename "$sysroot")
mkdir -p "$root/usr/local/rustup/toolchains/$toolchain" "$root/usr/local/cargo/bin"
tar -C "$sysroot" -c --exclude=share . | tar -C "$root/usr/local/rustup/toolchains/$toolchain" -x
printf 'version = "12"\ndefault_toolchain = "%s"\nprofile = "minimal"\n' "$toolchain" \
    >"$root/usr/local/rustup/settings.toml"
cp "$(command -v rustup)" "$root/usr/local/cargo/bin/rustup"
for tool in cargo rustc; do ln -s rustup "$root/usr/local/cargo/bin/$tool"; done
settings=${CARGO_HOME:-$HOME/.cargo}/config.toml
if [ -f "$settings" ]; then cp "$settings" "$root/usr/local/cargo/config.toml"; fi
tar -C "$root" -c . | docker import \
    --change 'ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo' \
    --change 'ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    - "$rust" >/dev/null
echo "built $rust"
rm -rf "$root"
