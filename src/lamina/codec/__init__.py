"""Compression and digests: one small registry each."""
