"""Reading and writing the archives that layers are: tar in gzip, in zstd, or plain."""
