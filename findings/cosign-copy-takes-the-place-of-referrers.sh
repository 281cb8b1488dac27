#!/bin/bash
# Registries without the referrers API of OCI 1.1 keep the list of what is attached to an image under the tag
# `sha256-HEX`, as an image index.  `cosign copy` (3.1.3) of an image with a signature under `sha256-HEX.sig` leaves the
# image itself, a manifest and no index, under that tag in the repository it copies to.
# So a client that reads the tag as a list fails on each image that was copied so; and one that adds to the list has to
# take the place of the image.
#
# Needs: go.  Seen on 2026-11-30 with cosign 3.1.3 and crane 0.22.1, both registries by `crane registry serve`:
#   tags of the copy: 1, sha256-HEX, sha256-HEX.sig; the digest of sha256-HEX is that of the image
set -euo pipefail
work=$(mktemp -d)
pid=
trap 'kill $pid 2>/dev/null || true; wait; chmod -R u+w "$work" && rm -rf "$work"' EXIT
export GOBIN=$work CGO_ENABLED=0 GOFLAGS=-modcacherw HOME=$work/home GOMODCACHE=${GOMODCACHE:-$(go env GOMODCACHE)} GOCACHE=${GOCACHE:-$(go env GOCACHE)}
mkdir "$HOME" "$work/store"
go install github.com/google/go-containerregistry/cmd/crane@v0.22.1 2>"$work/log" || { cat "$work/log"; exit 1; }
go install github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3 2>"$work/log" || { cat "$work/log"; exit 1; }
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/crane" registry serve --address "127.0.0.1:$port" --disk "$work/store" >"$work/serve.log" 2>&1 &
pid=$!
registry=localhost:$port
for _ in $(seq 100); do "$work/crane" catalog --insecure "$registry" >/dev/null 2>&1 && break; sleep 0.1; done

printf 'hello\n' >"$work/file"
tar -C "$work" -cf "$work/layer.tar" file
"$work/crane" append --insecure --oci-empty-base -f "$work/layer.tar" -t "$registry/app:1" >/dev/null 2>&1
digest=$("$work/crane" digest --insecure "$registry/app:1")
cd "$work"
export COSIGN_PASSWORD=none
"$work/cosign" generate-key-pair >/dev/null 2>&1
"$work/cosign" sign --yes --key cosign.key --tlog-upload=false --use-signing-config=false --new-bundle-format=false \
    --allow-http-registry --allow-insecure-registry "$registry/app@$digest" >"$work/sign.log" 2>&1 || { cat "$work/sign.log"; exit 1; }
"$work/cosign" copy --allow-http-registry --allow-insecure-registry "$registry/app:1" "$registry/moved:1" >"$work/copy.log" 2>&1 \
    || { cat "$work/copy.log"; exit 1; }
tag=${digest/:/-}
"$work/crane" ls --insecure "$registry/moved" | sed "s/$tag/sha256-HEX/"
found=$("$work/crane" digest --insecure "$registry/moved:$tag" || echo none)
echo "the image: $digest"
echo "under the tag of the list: $found"
[[ $found == "$digest" ]] || { echo "this has changed" >&2; exit 1; }
