#!/bin/bash
# containerd 2.4.2 reads configuration files of version 2, as containerd 1.x had them, and moves CRI's settings to where they
# are now.  `snapshotter`, `discard_unpacked_layers` and `disable_snapshot_annotations` are moved only if the same file has a
# table of `runtimes` too; a file without one, which says nothing else than which snapshotter to use, is taken without a
# warning, and containers run on overlayfs.  `sandbox_image` and `config_path` beside them arrive either way.  So who writes
# to a node's file has to look at `containerd config dump`, or write version 3.
#
# Needs: go, python3.  Seen on 2026-11-30 with github.com/containerd/containerd/v2 v2.4.2 (snapshotter of CRI's images, sandbox):
#   snapshotter alone:     overlayfs example.com/pause:1
#   beside a runtime:      native example.com/pause:1
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
GOBIN=$work CGO_ENABLED=0 GOFLAGS=-modcacherw go install github.com/containerd/containerd/v2/cmd/containerd@v2.4.2 2>"$work/log" \
    || { cat "$work/log"; exit 1; }
cat >"$work/alone.toml" <<TOML
version = 2
root = "$work/root"
state = "$work/state"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "example.com/pause:1"

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
TOML
cat "$work/alone.toml" - >"$work/beside.toml" <<'TOML'

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
TOML
show() { # FILE
    "$work/containerd" --config "$work/$1.toml" config dump 2>/dev/null | python3 -c '
import sys
import tomllib

plugins = tomllib.load(sys.stdin.buffer)["plugins"]
images = plugins["io.containerd.cri.v1.images"]
print(images["snapshotter"], images["pinned_images"]["sandbox"])'
}
alone=$(show alone)
beside=$(show beside)
echo "snapshotter alone:     $alone"
echo "beside a runtime:      $beside"
[[ "$alone/$beside" == "overlayfs example.com/pause:1/native example.com/pause:1" ]] || { echo "this has changed" >&2; exit 1; }
