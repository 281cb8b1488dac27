"""The start artifacts that a node keeps, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator

from lamina.blob.start_artifact import PREFIX_BYTES, parse_prefix
from lamina.errors import FormatError
from lamina.store.node import NodeStore


def kept_starts(store: NodeStore) -> Iterator[tuple[str, str]]:
    """Yield (digest, digest of the manifest whose pages it has) of each start artifact in the
    store, but for sealed ones, which do not say whose they are.  Raises StoreError.
    """
    for digest, head in store.metadata_heads(PREFIX_BYTES):
        try:
            yield digest, f"sha256:{parse_prefix(head).manifest_digest.hex()}"
        except FormatError:
            continue
