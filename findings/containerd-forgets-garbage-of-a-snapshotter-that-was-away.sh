#!/bin/bash
# A snapshot is removed (`ctr snapshots rm`) while its proxy snapshotter is away.  containerd answers that it is gone, its
# garbage collection fails to reach the snapshotter, and with that the work is forgotten: when the snapshotter is back, no
# further collection removes the snapshot there, however often one is asked for (`ctr leases delete --sync`), and
# `ctr snapshots ls` does not show it any more.  Only when another snapshot of the same snapshotter is removed does
# containerd look at that snapshotter again, and then both go.  So a node whose snapshotter was restarted at the wrong
# moment keeps what nobody can see, until something else is removed.
#
# Needs: root, go.  The snapshotter is containerd's own overlayfs, served by containerd's own package for proxies.
# Seen on 2026-11-30 with github.com/containerd/containerd/v2 v2.4.2:
#   removed while away, listed by ctr: 0, kept by the snapshotter: 1
#   after 5 collections:               1
#   after one more removal:            0
set -euo pipefail
[[ $(id -u) == 0 ]] || { echo "needs root" >&2; exit 1; }
work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true; chmod -R u+w "$work" && rm -rf "$work"' EXIT
mkdir "$work/program"
cat >"$work/program/main.go" <<'GO'
// Serve containerd's overlayfs snapshotter on a unix socket: ROOT SOCKET.
package main

import (
	"net"
	"os"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"google.golang.org/grpc"
)

func main() {
	snapshotter, err := overlay.NewSnapshotter(os.Args[1])
	if err != nil {
		panic(err)
	}
	listener, err := net.Listen("unix", os.Args[2])
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	panic(server.Serve(listener))
}
GO
(cd "$work/program" && export GOFLAGS=-modcacherw CGO_ENABLED=0 && {
    go mod init proxy && go get github.com/containerd/containerd/v2@v2.4.2 && go mod tidy && go build -o "$work/proxy" .
    for each in containerd ctr; do GOBIN=$work go install "github.com/containerd/containerd/v2/cmd/$each@v2.4.2"; done
} >"$work/log" 2>&1) || { cat "$work/log"; exit 1; }

cat >"$work/config.toml" <<TOML
version = 3
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = "$work/c.sock"
[proxy_plugins.other]
type = "snapshot"
address = "$work/s.sock"
TOML
serve() {
    rm -f "$work/s.sock"
    "$work/proxy" "$work/snapshots" "$work/s.sock" 2>>"$work/proxy.log" &
    proxy=$!
    pids+=("$proxy")
    until [[ -S $work/s.sock ]]; do sleep 0.1; done
}
ctr() { "$work/ctr" -a "$work/c.sock" "$@" 2>>"$work/ctr.log"; }
again() { # COMMAND...: until containerd has noticed that the snapshotter is back, for at most a minute
    for ((try = 0; try < 300; try++)); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
    echo "failed for a minute: $*" >&2
    exit 1
}
collect() { ctr leases create --id now >/dev/null && ctr leases delete --sync now >/dev/null; }
kept() { find "$work/snapshots/snapshots" -mindepth 1 -maxdepth 1 -name '[0-9]*' | wc -l; }

serve
"$work/containerd" -c "$work/config.toml" 2>"$work/containerd.log" &
pids+=("$!")
again ctr snapshots --snapshotter other prepare first
kill "$proxy"
wait "$proxy" || true
ctr snapshots --snapshotter other rm first
collect
serve
again ctr snapshots --snapshotter other ls
listed=$(ctr snapshots --snapshotter other ls | grep -c first || true)
away=$(kept)
for ((round = 0; round < 5; round++)); do collect; done
collected=$(kept)
again ctr snapshots --snapshotter other prepare second
ctr snapshots --snapshotter other rm second
collect
removed=$(kept)
echo "removed while away, listed by ctr: $listed, kept by the snapshotter: $away"
echo "after 5 collections:               $collected"
echo "after one more removal:            $removed"
[[ "$listed $away $collected $removed" == "0 1 1 0" ]] || { echo "this has changed" >&2; exit 1; }
