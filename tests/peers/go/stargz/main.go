// Command stargz serves stargz-snapshotter to containerd: the same service as its own program, whose module
// `go install` does not take.
//
// usage: stargz ROOT SOCKET INSECURE-REGISTRY
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"google.golang.org/grpc"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}

func run(root, socket, registry string) error {
	plain := resolver.HostConfig{Mirrors: []resolver.MirrorConfig{{Host: registry, Insecure: true}}}
	config := service.Config{}
	config.ResolverConfig.Host = map[string]resolver.HostConfig{registry: plain}
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), root, &config)
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return server.Serve(listener)
}
