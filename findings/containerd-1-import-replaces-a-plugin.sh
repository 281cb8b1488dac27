#!/bin/bash
# A configuration file of containerd may import others, for settings that an administrator or a package adds.  In containerd
# 1.6.20 a plugin's table in an imported file takes the place of the whole table of that plugin in the importing one: a file
# that sets one key of CRI gives every other key that the main file sets its default again, such as the sandbox image and the
# registry's folder.  containerd 2.4.2 puts them together key by key.
#
# Needs: apt-get of Debian 12 for amd64, go, python3.  Seen on 2026-11-30 with Debian's containerd 1.6.20~ds1-1+deb12u3 and
# github.com/containerd/containerd/v2 v2.4.2 (image of the sandbox, whether unpacked layers are dropped):
#   1.6.20: main file alone: example.com/pause:1 False; with the import: registry.k8s.io/pause:3.6 True
#   2.4.2:  main file alone: example.com/pause:1 False; with the import: example.com/pause:1 True
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
apt-get download -qq containerd=1.6.20~ds1-1+deb12u3 2>log || { cat log; exit 1; }
dpkg-deb -x containerd_*.deb root
GOBIN=$work CGO_ENABLED=0 GOFLAGS=-modcacherw go install github.com/containerd/containerd/v2/cmd/containerd@v2.4.2 2>log || { cat log; exit 1; }

show() { # CONTAINERD FILE
    "$1" --config "$2" config dump 2>/dev/null | python3 -c '
import sys
import tomllib

plugins = tomllib.load(sys.stdin.buffer)["plugins"]
old = plugins.get("io.containerd.grpc.v1.cri", {})
if "sandbox_image" in old:
    print(old["sandbox_image"], old["containerd"]["discard_unpacked_layers"])
else:
    images = plugins["io.containerd.cri.v1.images"]
    print(images["pinned_images"]["sandbox"], images["discard_unpacked_layers"])'
}
seen=
for version in 1.6.20 2.4.2; do
    if [[ $version == 1* ]]; then
        program=root/usr/bin/containerd
        printf 'version = 2\n\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "example.com/pause:1"\n' >main.toml
        printf 'version = 2\n\n[plugins."io.containerd.grpc.v1.cri".containerd]\n  discard_unpacked_layers = true\n' >other.toml
    else
        program=$work/containerd
        printf 'version = 3\n\n[plugins."io.containerd.cri.v1.images".pinned_images]\n  sandbox = "example.com/pause:1"\n' >main.toml
        printf 'version = 3\n\n[plugins."io.containerd.cri.v1.images"]\n  discard_unpacked_layers = true\n' >other.toml
    fi
    sed "1a imports = [\"$work/other.toml\"]" main.toml >importing.toml
    line="$version: main file alone: $(show "$program" main.toml); with the import: $(show "$program" importing.toml)"
    echo "$line"
    seen+="$line/"
done
[[ $seen == "1.6.20: main file alone: example.com/pause:1 False; with the import: registry.k8s.io/pause:3.6 True/2.4.2: main file alone: example.com/pause:1 False; with the import: example.com/pause:1 True/" ]] \
    || { echo "this has changed" >&2; exit 1; }
