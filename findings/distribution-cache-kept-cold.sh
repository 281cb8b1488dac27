#!/bin/bash
# A registry of distribution 3.1.2 as a pull-through cache answers a range of a blob that it has not got by 200 and the
# whole blob, and keeps a blob only for a client that reads it to its end.  While one such answer is under way, which its
# client may never read on, nobody else's download is kept: another client reads all of the blob, and ranges are still
# answered by the whole blob afterwards.  Only a download that begins when the first has hung up warms the cache.
# So a node that reads lazily keeps a cold cache cold for the others, and a client that gives its first answer up must
# wait for a moment before it reads the blob.
#
# Needs: go, python3, curl.  Seen on 2026-11-30 with github.com/distribution/distribution/v3 v3.1.2:
#   read while the first answer is open:         200 (the whole blob) afterwards
#   read a second after the first has hung up:   206 afterwards
set -euo pipefail
work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; chmod -R u+w "$work" && rm -rf "$work"' EXIT
GOBIN=$work CGO_ENABLED=0 GOFLAGS=-modcacherw go install github.com/distribution/distribution/v3/cmd/registry@v3.1.2 2>"$work/log" \
    || { cat "$work/log"; exit 1; }

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
serve() { # NAME PORT [UPSTREAM]
    printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "127.0.0.1:%s"}\nlog: {level: error}\n%s\n' \
        "$work/$1" "$2" "${3:+proxy: {remoteurl: \"http://127.0.0.1:$3\"\}}" >"$work/$1.yml"
    OTEL_TRACES_EXPORTER=none "$work/registry" serve "$work/$1.yml" >"$work/$1.log" 2>&1 &
    pids+=($!)
    for _ in $(seq 100); do curl -sf "http://127.0.0.1:$2/v2/" >/dev/null && return; sleep 0.1; done
    cat "$work/$1.log"
    exit 1
}
upstream=$(free_port)
serve upstream "$upstream"

push() { # NUMBER: a blob of 40 MiB; prints its digest
    head -c $((40 << 20)) /dev/zero | tr '\0' "$1" >"$work/blob"
    local digest location
    digest=sha256:$(sha256sum "$work/blob" | cut -d' ' -f1)
    location=$(curl -sf -X POST -D - -o /dev/null "http://127.0.0.1:$upstream/v2/r/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    curl -sf -X PUT --data-binary "@$work/blob" -H 'Content-Type: application/octet-stream' "$location&digest=$digest" >/dev/null
    echo "$digest"
}
# The status of a range in the end, when a ranged answer was left, by hanging up PAUSE seconds before the whole blob is
# read, or with a PAUSE of 0 by keeping its connection open meanwhile.
status_after() { # PAUSE DIGEST
    python3 - "$cache" "$2" "$1" <<'PY'
import http.client, sys, time
port, digest, pause = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def ask(headers, most=None):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", f"/v2/r/blobs/{digest}", headers=headers)
    answer = connection.getresponse()
    got = len(answer.read(most) if most else answer.read())
    connection.close()
    return answer.status, got
some = {"Range": "bytes=31457280-31458279"}
first = http.client.HTTPConnection("127.0.0.1", port)
first.request("GET", f"/v2/r/blobs/{digest}", headers=some)
answer = first.getresponse()
assert (answer.status, len(answer.read(1000))) == (200, 1000)
if pause:
    first.close()
    time.sleep(pause)
assert ask({}) == (200, 40 << 20)
first.close()
time.sleep(2)
print(ask(some, 1000)[0])
PY
}
cache=$(free_port)
serve cache "$cache" "$upstream"
one=$(push a) two=$(push b)
meanwhile=$(status_after 0 "$one")
later=$(status_after 1 "$two")
echo "read while the first answer is open:         $meanwhile afterwards"
echo "read a second after the first has hung up:   $later afterwards"
[[ $meanwhile == 200 && $later == 206 ]] || { echo "this has changed" >&2; exit 1; }
