// containerd's own tests of snapshotters, asked of a program that listens at a socket.
//
// usage: snapshots [flags of testing] -- PROGRAM ARGUMENTS...
// For each test the program is started with --root FOLDER --socket SOCKET, and ended by SIGTERM.
package snapshots

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const startLimit = 2 * time.Minute

func TestSnapshotter(t *testing.T) {
	command := flag.Args()
	if len(command) == 0 {
		t.Fatal("name the program after --")
	}
	// By this name the suite does not rename folders of layers below, which no overlayfs does
	// without redirect_dir.
	testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		return serve(command, root)
	})
}

func serve(command []string, root string) (snapshots.Snapshotter, func() error, error) {
	socket := filepath.Join(root, "s")
	words := append(command[1:len(command):len(command)], "--root", filepath.Join(root, "r"), "--socket", socket)
	process := exec.Command(command[0], words...)
	process.Stderr = os.Stderr
	if err := process.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- process.Wait() }()
	if err := listens(socket, ended); err != nil {
		_ = process.Process.Kill()
		return nil, nil, err
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		_ = process.Process.Kill()
		return nil, nil, err
	}
	snapshotter := proxy.NewSnapshotter(api.NewSnapshotsClient(connection), "lamina")
	stop := func() error {
		_ = snapshotter.Close()
		_ = connection.Close()
		return errors.Join(process.Process.Signal(syscall.SIGTERM), <-ended)
	}
	return snapshotter, stop, nil
}

func listens(socket string, ended chan error) error {
	deadline := time.Now().Add(startLimit)
	for time.Now().Before(deadline) {
		if connection, err := net.Dial("unix", socket); err == nil {
			return connection.Close()
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the program ended: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errors.New("the program does not listen")
}
