#!/bin/bash
# containers/storage 1.43.0, the library in the skopeo 1.9.3 of Debian 12, writes zstd:chunked layers without the zeros
# that stand behind the two end blocks of a tar.  GNU tar fills its archives to 10240 bytes, so most layers that it made
# have some.  `skopeo copy --dest-compress-format zstd:chunked` keeps the configuration, whose diff_id is the SHA-256 of
# the longer archive: nothing in the image has that digest any more.  containers/storage 1.59.1 keeps the zeros.
# So a reader that checks diff_ids refuses such images, and cannot tell them from damaged ones; a reader of the layer's
# table of contents gets all files right.
#
# Needs: go, tar.  Seen on 2026-11-30:
#   1.43.0: 10240 bytes in, 2048 bytes out; 1.59.1: 10240 bytes in, 10240 bytes out
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
export GOFLAGS=-modcacherw CGO_ENABLED=0
echo hello >"$work/file"
tar -C "$work" -cf "$work/layer.tar" file
cat >"$work/main.go" <<'END'
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/containers/storage/pkg/chunked/compressor"
	"github.com/klauspost/compress/zstd"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	layer, err := io.ReadAll(os.Stdin)
	check(err)
	var stored, plain bytes.Buffer
	writer, err := compressor.ZstdCompressor(&stored, map[string]string{}, nil)
	check(err)
	_, err = writer.Write(layer)
	check(err)
	check(writer.Close())
	reader, err := zstd.NewReader(&stored)
	check(err)
	_, err = io.Copy(&plain, reader)
	check(err)
	fmt.Printf("%d bytes in, %d bytes out\n", len(layer), plain.Len())
}
END
said=
for version in 1.43.0 1.59.1; do
    mkdir "$work/$version"
    cp "$work/main.go" "$work/$version"
    cd "$work/$version"
    { go mod init example.org/finding && go get "github.com/containers/storage@v$version" && go mod tidy && go build -o finding .; } \
        >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    said+="$version: $(./finding <"$work/layer.tar"); "
done
echo "${said%; }"
[[ $said == "1.43.0: 10240 bytes in, 2048 bytes out; 1.59.1: 10240 bytes in, 10240 bytes out; " ]] || { echo "this has changed" >&2; exit 1; }
