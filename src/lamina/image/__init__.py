"""An opened image: one interface over tree and blobs."""
