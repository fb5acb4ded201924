#!/usr/bin/env python3
"""Makes the image without a container engine, the same to the bit each time, and for a machine of another kind too:
package/image.py PROGRAM ARCHITECTURE TAG FILE

It has what the last stage of docker/Dockerfile says, of which it knows the instructions that are used there and no
others; what that stage copies from the first is made here. For `docker load` and `podman load`.
"""

import gzip, hashlib, io, json, os, re, shlex, sys, tarfile
from datetime import datetime, timezone

EPOCH = int(os.environ["SOURCE_DATE_EPOCH"])
CREATED = datetime.fromtimestamp(EPOCH, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def last_stage(dockerfile):
    """Its instructions: (word, rest)."""
    text = re.sub(r"^#.*\n", "", open(dockerfile).read(), flags=re.M).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    start = max(place for place, (word, _) in enumerate(lines) if word == "FROM")
    assert lines[start][1] == "scratch", "the image is no longer made from nothing"
    return [(word, rest.strip()) for word, rest in lines[start + 1 :]]


def pairs(rest):
    return dict(word.split("=", 1) for word in shlex.split(rest))


def nanoseconds(text):
    return int(text.removesuffix("s")) * 10**9


def settings(instructions):
    """What an engine keeps of the instructions, but for those that copy."""
    config = {}
    for word, rest in instructions:
        match word:
            case "LABEL":
                config.setdefault("Labels", {}).update(pairs(rest))
            case "ENV":
                config.setdefault("Env", []).extend(f"{name}={value}" for name, value in pairs(rest).items())
            case "USER":
                config["User"] = rest
            case "EXPOSE":
                config.setdefault("ExposedPorts", {})[f"{rest}/tcp"] = {}
            case "STOPSIGNAL":
                config["StopSignal"] = rest
            case "VOLUME":
                config.setdefault("Volumes", {})[rest] = {}
            case "ENTRYPOINT":
                config["Entrypoint"] = json.loads(rest)
            case "HEALTHCHECK":
                options, command = rest.split("CMD", 1)
                given = dict(option.removeprefix("--").split("=") for option in options.split())
                config["Healthcheck"] = {
                    "Test": ["CMD", *json.loads(command)],
                    "Interval": nanoseconds(given.pop("interval")),
                    "Timeout": nanoseconds(given.pop("timeout")),
                    "StartPeriod": nanoseconds(given.pop("start-period")),
                    "Retries": int(given.pop("retries")),
                }
                assert not given, f"HEALTHCHECK has {given}"
            case "COPY":
                pass
            case _:
                sys.exit(f"image.py: {word} of docker/Dockerfile is not known here")
    config["Env"] = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *config.get("Env", [])]
    return config


class Layer:
    """The files, all of one time."""

    def __init__(self):
        self.bytes = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.bytes, mode="w", format=tarfile.USTAR_FORMAT)
        self.directories = set()

    def directory(self, path, mode=0o755, user=0):
        if path and path not in self.directories:
            self.directory(os.path.dirname(path))
            self.directories.add(path)
            self.add(path, mode, user, tarfile.DIRTYPE)

    def file(self, path, source, mode=0o644):
        self.directory(os.path.dirname(path))
        with open(source, "rb") as file:
            self.add(path, mode, 0, tarfile.REGTYPE, file.read())

    def add(self, path, mode, user, kind, content=b""):
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode, entry.uid, entry.mtime, entry.size = kind, mode, user, EPOCH, len(content)
        self.tar.addfile(entry, io.BytesIO(content))

    def finish(self):
        self.tar.close()
        return self.bytes.getvalue()


def copy(layer, instructions, program):
    for rest in (rest for word, rest in instructions if word == "COPY"):
        words = rest.split()
        target = words[-1].strip("/")
        match [word for word in words[:-1] if not word.startswith("--chown=65532:0")]:
            case ["--from=build", "/image/tallyring"]:
                layer.file(target, program, 0o755)
            case ["--from=build", "/image/root/"]:
                layer.directory("var/lib")
            case ["--from=build", "/image/state/"]:
                layer.directory(f"{target}/tallyring", 0o2770, 65532)
            case sources if not any(source.startswith("--") for source in sources):
                for source in sources:
                    layer.file(f"{target}/{os.path.basename(source)}", source)
            case _:
                sys.exit(f"image.py: COPY {rest} of docker/Dockerfile is not known here")


def main(program, architecture, tag, path):
    instructions = last_stage("docker/Dockerfile")
    layer = Layer()
    copy(layer, instructions, program)
    layer = layer.finish()
    config = json.dumps({
        "architecture": architecture,
        "os": "linux",
        "created": CREATED,
        "config": settings(instructions),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": CREATED, "created_by": "package/image.py"}],
    }).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}]).encode()
    archive = Layer()
    for entry, content in ((name, config), ("layer.tar", layer), ("manifest.json", manifest)):
        archive.add(entry, 0o644, 0, tarfile.REGTYPE, content)
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 9, file, EPOCH) as packed:
        packed.write(archive.finish())


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
