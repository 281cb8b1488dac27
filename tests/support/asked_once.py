"""Sources for what wants a fetcher."""

from __future__ import annotations

from lamina.source.blob_source import BlobSource
from lamina.source.fetcher import Fetcher
from lamina.source.retry import ONCE


def asked_once(source: BlobSource) -> Fetcher:
    """Return *source* if it is a fetcher, else one that asks it once."""
    return source if isinstance(source, Fetcher) else Fetcher([source], policy=ONCE)
