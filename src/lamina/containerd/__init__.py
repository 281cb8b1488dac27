"""Images for containerd: a snapshotter that it asks over gRPC, and a puller for its clients."""
