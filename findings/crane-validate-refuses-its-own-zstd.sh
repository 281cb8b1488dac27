#!/bin/bash
# `crane append` (0.22.1) takes a layer that zstd has compressed, names it `application/vnd.oci.image.layer.v1.tar+zstd`, and
# writes the right diff_id; `crane export` reads it.  `crane validate` calls the same image invalid: it takes each layer for
# gzip, whatever its media type says.  So its "FAIL" says nothing about an image with a zstd layer, `--fast` passes it.
#
# Needs: go, python3, tar, zstd.  Seen on 2026-11-30 with github.com/google/go-containerregistry v0.22.1:
#   application/vnd.oci.image.layer.v1.tar+zstd; export: hello; validate: exit code 1, gzip: invalid header; --fast: exit code 0
set -euo pipefail
work=$(mktemp -d)
pid=
trap 'kill $pid 2>/dev/null || true; wait; chmod -R u+w "$work" && rm -rf "$work"' EXIT
GOBIN=$work CGO_ENABLED=0 GOFLAGS=-modcacherw go install github.com/google/go-containerregistry/cmd/crane@v0.22.1 2>"$work/log" \
    || { cat "$work/log"; exit 1; }
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/crane" registry serve --address "127.0.0.1:$port" >"$work/serve.log" 2>&1 &
pid=$!
for _ in $(seq 100); do "$work/crane" catalog --insecure "127.0.0.1:$port" >/dev/null 2>&1 && break; sleep 0.1; done

cd "$work"
echo hello >file && tar -cf layer.tar file && zstd -q layer.tar
image=127.0.0.1:$port/image:1
./crane append --insecure --oci-empty-base -f layer.tar.zst -t "$image" >/dev/null 2>&1
type=$(./crane manifest --insecure "$image" | python3 -c 'import json, sys; print(json.load(sys.stdin)["layers"][0]["mediaType"])')
content=$(./crane export --insecure "$image" - | tar -xOf - file)
code=0
./crane validate --insecure --remote "$image" >validate.log 2>&1 || code=$?
reason=$(grep -o 'gzip: invalid header' validate.log | head -n 1)
fast=0
./crane validate --insecure --remote "$image" --fast >/dev/null 2>&1 || fast=$?
echo "$type; export: $content; validate: exit code $code, $reason; --fast: exit code $fast"
[[ "$type/$content/$code/$reason/$fast" == "application/vnd.oci.image.layer.v1.tar+zstd/hello/1/gzip: invalid header/0" ]] \
    || { echo "this has changed" >&2; exit 1; }
