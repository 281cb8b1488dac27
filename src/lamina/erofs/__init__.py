"""EROFS images with RAFS v6 metadata: layout, reader, writer, checker."""
