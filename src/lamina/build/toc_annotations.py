"""What a manifest says of the tables of contents that its layers bring along.

Sources: eStargz document of stargz-snapshotter; its Go module ``estargz/zstdchunked`` 0.18;
containers/storage, ``pkg/chunked``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lamina.oci.manifest import Descriptor

STARGZ_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
"""Digest of a table as JSON, of eStargz and of stargz's zstd:chunked."""

CHUNKED_PREFIX: Final = "io.github.containers.zstd-chunked.manifest-"
"""Of the annotations of containers/storage with a table's checksum and position."""

STARGZ_PREFIX: Final = "io.containers.zstd-chunked.manifest-"
"""The same of stargz's library, and of skopeo 1.9."""


class PinnedTable(NamedTuple):
    """How a manifest pins a table: by the digest of its JSON, and for zstd:chunked by that of its
    stored bytes (``checksum``) at a ``position``.  Empty: not told.
    """

    json_digest: str
    checksum: str
    position: str


def pinned_table(layer: Descriptor) -> PinnedTable | None:
    """Return how the table of a layer is pinned, or None if the manifest tells of none."""
    annotations = layer.annotations
    json_digest = annotations.get(STARGZ_DIGEST, "")
    for prefix in (CHUNKED_PREFIX, STARGZ_PREFIX):
        position = annotations.get(f"{prefix}position", "")
        checksum = annotations.get(f"{prefix}checksum", "")
        if position and checksum:
            return PinnedTable(json_digest, checksum, position)
    return PinnedTable(json_digest, "", "") if json_digest else None


def rounds_times(layer: Descriptor) -> bool:
    """Tell whether the table of a layer has times that are rounded to the nearest second.

    Then everything that reads the layer rounds them, by its table or not: what an image is must not
    depend on how it was read (docs/adr/0015).
    """
    pinned = pinned_table(layer)
    return pinned is not None and (
        bool(pinned.json_digest) or f"{STARGZ_PREFIX}position" in layer.annotations
    )
