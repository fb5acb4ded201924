#!/usr/bin/env bash
# Fetches compose 2 from the Debian release that has it, for a machine whose own has compose 1:
# docker/compose-2.sh DIRECTORY puts it there as docker-compose, and installs nothing.
set -euo pipefail
release=trixie
mkdir -p "$1"
cd "$1"
mkdir -p state/lists/partial cache/archives/partial unpacked
# What this machine fetches Debian from; either file, or both, may not be there.
mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } |
    sed -nE 's#^(URIs:|deb( \[[^]]*\])?) *(https?://[^ ]*/debian)/?( .*)?$#\3#p' | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" >sources.list
: >status
options=(-o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State=$PWD/state" -o "Dir::State::status=$PWD/status" -o "Dir::Cache=$PWD/cache"
    -o APT::Sandbox::User=root)
apt-get "${options[@]}" update -qq
apt-get "${options[@]}" download -qq docker-compose
dpkg-deb --fsys-tarfile docker-compose_*.deb | tar -x -C unpacked
mv "$(find unpacked -type f -name docker-compose -perm -u+x | head -n 1)" docker-compose
rm -rf unpacked state cache docker-compose_*.deb
./docker-compose version
