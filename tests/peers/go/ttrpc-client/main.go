// Ask for an image by containerd's own client of ttrpc, as an agent in a guest does.
// usage: ttrpc-client SOCKET IMAGE BUNDLE; prints the digest of the manifest.
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/apipb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func main() {
	conn, err := net.Dial("unix", os.Args[1])
	if err == nil {
		// Messages of other names with the same fields: two texts, and one.
		request := &apipb.Method{Name: os.Args[2], RequestTypeUrl: os.Args[3]}
		var answer wrapperspb.StringValue
		client := ttrpc.NewClient(conn)
		err = client.Call(context.Background(), "api.ImagePullService", "PullImage", request, &answer)
		if err == nil {
			fmt.Println(answer.Value)
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
