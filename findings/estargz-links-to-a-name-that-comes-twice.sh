#!/bin/bash
# A tar may have a name twice; the later entry replaces the file, and a hard link between the two keeps what was there when
# the link was made.  estargz.Build (stargz-snapshotter, 0.18.2) drops the first entry and keeps the link, so that in the
# converted layer the link means the later file: other content under that name, by the table of contents and in the tar,
# where moreover the link now comes before its target, which GNU tar refuses.  Layers that were made by appending to an
# archive (`tar -r`, `tar -A`) have such names.
#
# Needs: go, tar.  Seen on 2026-11-30 with github.com/containerd/stargz-snapshotter/estargz v0.18.2, GNU tar 1.34:
#   the tar: a=new b=old; by its table of contents: a=new b=new; unpacked: tar: exit code 2
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
mkdir "$work/program" "$work/files" "$work/before" "$work/after"
cat >"$work/program/main.go" <<'GO'
// Convert layer.tar, print each named file as its table of contents has it, and write the tar inside to converted.tar.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func section(data []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))
}

func main() {
	layer := must(io.ReadAll(must(estargz.Build(section(must(os.ReadFile("layer.tar")))))))
	reader := must(estargz.Open(section(layer)))
	for _, name := range os.Args[1:] {
		file := must(reader.OpenFile(name))
		content := must(io.ReadAll(io.NewSectionReader(file, 0, file.Size())))
		fmt.Printf("%s=%s ", name, strings.TrimSpace(string(content)))
	}
	plain := must(io.ReadAll(must(estargz.Unpack(section(layer), new(estargz.GzipDecompressor)))))
	if err := os.WriteFile("converted.tar", plain, 0o644); err != nil {
		panic(err)
	}
}
GO
(cd "$work/program" && export GOFLAGS=-modcacherw && {
    go mod init convert && go get github.com/containerd/stargz-snapshotter/estargz@v0.18.2 && go mod tidy && CGO_ENABLED=0 go build -o "$work/convert" .
} >"$work/log" 2>&1) || { cat "$work/log"; exit 1; }

cd "$work"
echo old >files/a && ln files/a files/b && tar -C files -cf layer.tar a b
rm files/a && echo new >files/a && tar -C files -rf layer.tar a
tar -C before -xf layer.tar
before="a=$(<before/a) b=$(<before/b)"
table=$(./convert a b)
code=0
tar -C after -xf converted.tar 2>tar.log || code=$?
echo "the tar: $before; by its table of contents: ${table% }; unpacked: tar: exit code $code"
[[ "$before/${table% }/$code" == "a=new b=old/a=new b=new/2" ]] || { echo "this has changed" >&2; exit 1; }
