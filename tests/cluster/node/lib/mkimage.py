#!/usr/bin/env python3
"""Writes a one-layer docker-archive by hand: mkimage.py OUT.tar NAME ENTRYPOINT SRC:DST..."""

import hashlib
import io
import json
import sys
import tarfile

out, name, entrypoint, *files = sys.argv[1:]


def clean(info):
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = "root"
    return info


buffer = io.BytesIO()
with tarfile.open(fileobj=buffer, mode="w") as layer:
    for pair in files:
        src, dst = pair.split(":")
        layer.add(src, arcname=dst, filter=clean)
data = buffer.getvalue()
digest = hashlib.sha256(data).hexdigest()
config = json.dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [entrypoint]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]},
    }
).encode()
config_name = hashlib.sha256(config).hexdigest() + ".json"
manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": [digest + ".tar"]}]).encode()
with tarfile.open(out, "w") as archive:
    for path, content in ((digest + ".tar", data), (config_name, config), ("manifest.json", manifest)):
        info = tarfile.TarInfo(path)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
