// Command estargz turns a tar archive into a layer with a table of contents, by stargz's own library.
//
// usage: estargz -kind estargz|zstdchunked [-chunk BYTES] [-min-chunk BYTES] -in TAR -out LAYER
//
// It prints, as JSON, the annotations that the layer's descriptor gets and the digest of the tar inside.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
)

type result struct {
	MediaType   string            `json:"mediaType"`
	DiffID      string            `json:"diffID"`
	Annotations map[string]string `json:"annotations"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "estargz:", err)
		os.Exit(1)
	}
}

func run() error {
	kind := flag.String("kind", "estargz", "estargz or zstdchunked")
	chunk := flag.Int("chunk", 0, "bytes of a chunk (0: the library's default)")
	minChunk := flag.Int("min-chunk", 0, "least bytes of a compressed member")
	in := flag.String("in", "", "tar archive")
	out := flag.String("out", "", "layer to write")
	flag.Parse()

	source, err := os.Open(*in)
	if err != nil {
		return err
	}
	defer source.Close()
	status, err := source.Stat()
	if err != nil {
		return err
	}
	made := result{"application/vnd.oci.image.layer.v1.tar+gzip", "", map[string]string{}}
	options := []estargz.Option{estargz.WithChunkSize(*chunk), estargz.WithMinChunkSize(*minChunk)}
	switch *kind {
	case "estargz":
	case "zstdchunked":
		made.MediaType = "application/vnd.oci.image.layer.v1.tar+zstd"
		options = append(options, estargz.WithCompression(compression{
			&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: made.Annotations},
			&zstdchunked.Decompressor{},
		}))
	default:
		return fmt.Errorf("unknown kind %q", *kind)
	}
	layer, err := estargz.Build(io.NewSectionReader(source, 0, status.Size()), options...)
	if err != nil {
		return err
	}
	defer layer.Close()
	target, err := os.Create(*out)
	if err != nil {
		return err
	}
	if _, err := io.Copy(target, layer); err != nil {
		return err
	}
	if err := target.Close(); err != nil {
		return err
	}
	made.Annotations[estargz.TOCJSONDigestAnnotation] = layer.TOCDigest().String()
	made.DiffID = layer.DiffID().String()
	return json.NewEncoder(os.Stdout).Encode(made)
}

type compression struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}
