#!/bin/bash
# `OrasClient.pull` of the Python package oras (0.2.43) given an index, as registries hold for artifacts with several
# platforms, fetches nothing and returns an empty list: no error, no warning, and no folder made.  The client written in Go
# pulls what the index lists.  So a program has to look at what was returned, or ask for the manifest first.
#
# Needs: go, python3 with venv.  Seen on 2026-11-30 with oras 0.2.43 (PyPI), crane's registry and crane 0.22.1, Python 3.11:
#   the manifest: ['file']; an index of it: [], folder made: False
set -euo pipefail
work=$(mktemp -d)
pid=
trap 'kill $pid 2>/dev/null || true; wait; chmod -R u+w "$work" && rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet oras==0.2.43
GOBIN=$work CGO_ENABLED=0 GOFLAGS=-modcacherw go install github.com/google/go-containerregistry/cmd/crane@v0.22.1 2>"$work/log" \
    || { cat "$work/log"; exit 1; }
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/crane" registry serve --address "127.0.0.1:$port" >"$work/serve.log" 2>&1 &
pid=$!
for _ in $(seq 100); do "$work/crane" catalog --insecure "127.0.0.1:$port" >/dev/null 2>&1 && break; sleep 0.1; done

cd "$work"
echo hello >file
cat >both.py <<'PY'
import subprocess
import sys
from pathlib import Path

import oras.client

registry = sys.argv[1]
client = oras.client.OrasClient(hostname=registry, insecure=True)
client.push(target=f"{registry}/artifact:1", files=["file"])
add = ["./crane", "index", "append", "--insecure", "-m", f"{registry}/artifact:1", "-t", f"{registry}/artifact:index"]
subprocess.run(add, check=True, capture_output=True)
by_manifest = [Path(path).name for path in client.pull(target=f"{registry}/artifact:1", outdir="one")]
by_index = client.pull(target=f"{registry}/artifact:index", outdir="two")
seen = f"the manifest: {by_manifest}; an index of it: {by_index}, folder made: {Path('two').exists()}"
print(seen)
assert seen == "the manifest: ['file']; an index of it: [], folder made: False", "this has changed"
PY
venv/bin/python both.py "127.0.0.1:$port" 2>both.log || { cat both.log; exit 1; }
