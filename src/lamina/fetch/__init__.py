"""Where blobs come from: sources, retry, one fetch for many readers, spans."""
