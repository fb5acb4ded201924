#!/usr/bin/env python3
"""Prints docker/seccomp.json in the form that Kubernetes takes.

Docker's profiles have conditions (which architecture, which capabilities), and Docker decides them for
each container. Kubernetes hands a profile to the runtime as it is, and a runtime that does not know the
conditions reads what is allowed under one as allowed to all. So they are decided here: for x86-64 and
arm64, for a container without capabilities, on a kernel from 4.8 on.

    docker/seccomp-kubernetes.py >docker/seccomp-kubernetes.json
"""

import json
import pathlib

ARCHITECTURES = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}


def applies(rule):
    includes, excludes = rule.get("includes", {}), rule.get("excludes", {})
    here = set(ARCHITECTURES)
    if includes.get("caps"):
        return False
    if not here & set(includes.get("arches", here)):
        return False
    return not here <= set(excludes.get("arches", []))


def main():
    path = pathlib.Path(__file__).with_name("seccomp.json")
    profile = json.loads(path.read_text())
    architectures = []
    for entry in profile["archMap"]:
        if entry["architecture"] in ARCHITECTURES.values():
            architectures += [entry["architecture"], *entry["subArchitectures"]]
    conditions = ("includes", "excludes", "comment")
    rules = [
        {key: value for key, value in rule.items() if key not in conditions}
        for rule in profile["syscalls"]
        if applies(rule)
    ]
    flat = {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": architectures,
        "syscalls": rules,
    }
    print(json.dumps(flat, indent="\t"))


main()
