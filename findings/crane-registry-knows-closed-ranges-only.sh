#!/bin/bash
# The registry inside crane (0.22.1) serves ranges of blobs, but only those that name their last byte and end within the blob.
# A range without an end (`bytes=5-`, what a client sends that goes on with a broken download), a suffix (`bytes=-4`, what one
# sends that looks for a footer) and one that reaches over the end are 416, where RFC 9110 (14.1.2) takes all three, and
# distribution 3.1.2 answers them with 206.  Of two ranges it serves the first alone.
#
# Needs: go, python3, curl.  Seen on 2026-11-30 with github.com/google/go-containerregistry v0.22.1, of a blob of 100 bytes:
#   bytes=0-4: 206 5; bytes=5-: 416; bytes=-4: 416; bytes=0-999: 416; bytes=0-0,2-3: 206 1
set -euo pipefail
work=$(mktemp -d)
pid=
trap 'kill $pid 2>/dev/null || true; wait; chmod -R u+w "$work" && rm -rf "$work"' EXIT
GOBIN=$work CGO_ENABLED=0 GOFLAGS=-modcacherw go install github.com/google/go-containerregistry/cmd/crane@v0.22.1 2>"$work/log" \
    || { cat "$work/log"; exit 1; }
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/crane" registry serve --address "127.0.0.1:$port" >"$work/serve.log" 2>&1 &
pid=$!
base=http://127.0.0.1:$port
for _ in $(seq 100); do curl -sf "$base/v2/" >/dev/null && break; sleep 0.1; done

head -c 100 /dev/zero >"$work/blob"
digest=sha256:$(sha256sum "$work/blob" | cut -d' ' -f1)
location=$(curl -sf -X POST -D - -o /dev/null "$base/v2/r/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
[[ $location == http* ]] || location=$base$location
curl -sf -X PUT --data-binary "@$work/blob" "$location?digest=$digest"
seen=
for range in 0-4 5- -4 0-999 0-0,2-3; do
    answer=$(curl -s -o /dev/null -w '%{http_code} %{size_download}' -H "Range: bytes=$range" "$base/v2/r/blobs/$digest")
    [[ $answer == 416* ]] && answer=416
    seen+="bytes=$range: $answer; "
done
echo "${seen%; }"
[[ $seen == "bytes=0-4: 206 5; bytes=5-: 416; bytes=-4: 416; bytes=0-999: 416; bytes=0-0,2-3: 206 1; " ]] \
    || { echo "this has changed" >&2; exit 1; }
