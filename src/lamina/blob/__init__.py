"""Data blobs: chunk table, table of contents, framing, decoding of pieces; nothing of networks."""
