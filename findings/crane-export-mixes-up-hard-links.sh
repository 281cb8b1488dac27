#!/bin/bash
# `crane export` and `crane flatten` (0.22.1) read an image's layers from the top and keep the first entry of each name.  A
# hard link of a lower layer is kept as it stands, by the name of its target, although that name may mean another file by
# then: when an upper layer replaces one of two names of a file, the other name gets the new content too, and when an upper
# layer removes it, the archive has a link to a name that is not in it, which tar cannot unpack.  As overlayfs, umoci or
# docker show such an image, the other name keeps the old content.  A package that is upgraded or removed in a layer of its
# own leaves such links behind.
#
# Needs: go, python3, tar.  Seen on 2026-11-30 with github.com/google/go-containerregistry v0.22.1:
#   one name replaced: a=new b=new   (b was a link to the old a)
#   one name removed:  b is a link to a, which is not there; tar: exit code 2
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
mkdir lower upper gone
echo old >lower/a && ln lower/a lower/b && tar -C lower -cf lower.tar a b
echo new >upper/a && tar -C upper -cf upper.tar a
touch gone/.wh.a && tar -C gone -cf gone.tar .wh.a
for top in upper gone; do
    ./crane append --insecure --oci-empty-base -f lower.tar -f $top.tar -t "127.0.0.1:$port/image:$top" >/dev/null 2>&1
    ./crane export --insecure "127.0.0.1:$port/image:$top" $top.flat.tar
done
mkdir replaced removed
tar -C replaced -xf upper.flat.tar
replaced="a=$(<replaced/a) b=$(<replaced/b)"
code=0
tar -C removed -xf gone.flat.tar 2>tar.log || code=$?
removed=$(tar -tvf gone.flat.tar | grep -c 'b link to a$')
echo "one name replaced: $replaced"
echo "one name removed:  $removed link to a name that is not there, tar: exit code $code"
[[ "$replaced/$removed/$code" == "a=new b=new/1/2" ]] || { echo "this has changed" >&2; exit 1; }
