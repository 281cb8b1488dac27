#!/bin/bash
# The registry inside crane (0.22.1, `crane registry serve --disk FOLDER`) takes a blob that is pushed by its sha512,
# answers 201 with `Docker-Content-Digest: sha512:...`, and writes it to FOLDER/sha512/HEX.  Asked for by that name it
# says 404 from then on, to HEAD and to GET.  Without --disk the blob is there; distribution 3.1.2 has it by both names.
# So a client cannot believe the answer to its push; it has to look for the blob by the name it means to use.
#
# Needs: go, python3, curl.  Seen on 2026-11-30 with github.com/google/go-containerregistry v0.22.1:
#   PUT 201, Docker-Content-Digest sha512:..., one file below sha512; HEAD 404, GET 404
set -euo pipefail
work=$(mktemp -d)
pid=
trap 'kill $pid 2>/dev/null || true; wait; chmod -R u+w "$work" && rm -rf "$work"' EXIT
GOBIN=$work CGO_ENABLED=0 GOFLAGS=-modcacherw go install github.com/google/go-containerregistry/cmd/crane@v0.22.1 2>"$work/log" \
    || { cat "$work/log"; exit 1; }
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir "$work/store"
"$work/crane" registry serve --address "127.0.0.1:$port" --disk "$work/store" >"$work/serve.log" 2>&1 &
pid=$!
base=http://127.0.0.1:$port
for _ in $(seq 100); do curl -sf "$base/v2/" >/dev/null && break; sleep 0.1; done

printf 'hello, a blob\n' >"$work/blob"
sha512=sha512:$(sha512sum "$work/blob" | cut -d' ' -f1)
location=$(curl -sf -X POST -D - -o /dev/null "$base/v2/r/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
[[ $location == http* ]] || location=$base$location
put=$(curl -s -X PUT --data-binary "@$work/blob" -D "$work/head" -o /dev/null -w '%{http_code}' "$location?digest=$sha512")
stored=$(tr -d '\r' <"$work/head" | sed -n 's/^[Dd]ocker-[Cc]ontent-[Dd]igest: //p')
files=$(find "$work/store/sha512" -type f | wc -l)
head=$(curl -s -o /dev/null -w '%{http_code}' -I "$base/v2/r/blobs/$sha512")
get=$(curl -s -o /dev/null -w '%{http_code}' "$base/v2/r/blobs/$sha512")
echo "PUT $put, Docker-Content-Digest ${stored:0:14}..., $files file below sha512; HEAD $head, GET $get"
[[ "$put $stored $files $head $get" == "201 $sha512 1 404 404" ]] || { echo "this has changed" >&2; exit 1; }
