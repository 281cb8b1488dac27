#!/bin/bash
# A layer that first hides a folder of the layers below (`.wh.a`) and then brings a folder of that name (`a/`, `a/new`)
# means, by the OCI image specification, a folder with `new` alone: whiteouts hide what lower layers have.  containerd
# (2.4.2, and 1.6.20) writes the whiteout as overlayfs wants it, a character device `a`, and then makes a folder in its
# place that nothing marks as opaque, so that overlayfs shows the lower layer's files in it again.  The same layer with an
# opaque marker in `a/` is right.  And an opaque marker in the layer's root hides nothing at all: overlayfs does not look
# for one there, so that all of the lower layers stays.
#
# Needs: root (device nodes, overlayfs mounts), go, tar.  Seen on 2026-11-30 with github.com/containerd/containerd/v2 v2.4.2
# on Linux 6.18:
#   whiteout, then folder:  a/new a/old b
#   opaque folder:          a/new
#   opaque root:            a/old b
set -euo pipefail
[[ $(id -u) == 0 ]] || { echo "needs root" >&2; exit 1; }
work=$(mktemp -d)
trap 'umount "$work"/*/merged 2>/dev/null || true; chmod -R u+w "$work" && rm -rf "$work"' EXIT
mkdir "$work/program"
cat >"$work/program/main.go" <<'GO'
// Unpack a layer from standard input into a folder, as containerd's overlayfs snapshotter has it done.
package main

import (
	"context"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
)

func main() {
	convert := archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)
	if _, err := archive.Apply(context.Background(), os.Args[1], os.Stdin, convert); err != nil {
		panic(err)
	}
}
GO
(cd "$work/program" && export GOFLAGS=-modcacherw && {
    go mod init unpack && go get github.com/containerd/containerd/v2@v2.4.2 && go mod tidy && CGO_ENABLED=0 go build -o "$work/unpack" .
} >"$work/log" 2>&1) || { cat "$work/log"; exit 1; }

layer() { # FOLDER NAME...: a tar with these entries in this order, folders and empty files
    tar -C "$1" --no-recursion --owner=0 --group=0 -cf - "${@:2}"
}
tree() { # a tree on disk to take entries from: folders by a trailing /
    local folder
    folder=$(mktemp -d "$work/tree.XXXX")
    for name in "$@"; do
        if [[ $name == */ ]]; then mkdir -p "$folder/$name"; else mkdir -p "$folder/$(dirname "$name")"; touch "$folder/$name"; fi
    done
    echo "$folder"
}
show() { # NAME ENTRY...: the files of the lower layer with one more laid over it
    local at=$work/$1 from
    mkdir -p "$at"/{lower,upper,merged}
    layer "$(tree a/ a/old b)" a/ a/old b | "$work/unpack" "$at/lower"
    from=$(tree "${@:2}")
    layer "$from" "${@:2}" | "$work/unpack" "$at/upper"
    mount -t overlay overlay -o "ro,lowerdir=$at/upper:$at/lower" "$at/merged"
    (cd "$at/merged" && find . -type f -printf '%P\n' | sort | tr '\n' ' ')
}
again=$(show again .wh.a a/ a/new)
folder=$(show folder a/ a/.wh..wh..opq a/new .wh.b)
root=$(show root .wh..wh..opq)
echo "whiteout, then folder:  $again"
echo "opaque folder:          $folder"
echo "opaque root:            $root"
[[ $again == "a/new a/old b " && $folder == "a/new " && $root == "a/old b " ]] || { echo "this has changed" >&2; exit 1; }
