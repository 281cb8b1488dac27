"""From ranges of blobs to verified chunks, and images whose files are filled as they are read."""
