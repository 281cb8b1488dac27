"""The BLAKE3 root of an image's bootstrap, in the manifest: what proves single pages of it.

It is an annotation of the metadata layer, ``dev.lamina.bootstrap.root``: the digest of the file in
that layer in hex, a space, and its size in bytes.  An image without it is opened as ever.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from lamina.oci.manifest import Descriptor, Manifest

BOOTSTRAP_ROOT: Final = "dev.lamina.bootstrap.root"
MAX_PROVABLE_BYTES: Final = 768 << 20
_ROOT: Final = re.compile(r"([0-9a-f]{64}) ([1-9][0-9]{0,9})")
_PAGE_BYTES: Final = 4096


class BootstrapRoot(NamedTuple):
    """The BLAKE3 digest of a bootstrap in hex, and its length, whole pages."""

    hex: str
    size_bytes: int

    @property
    def annotation(self) -> dict[str, str]:
        """What the metadata layer says of it."""
        return {BOOTSTRAP_ROOT: f"{self.hex} {self.size_bytes}"}


def bootstrap_root(manifest: Manifest) -> BootstrapRoot | None:
    """Return what a manifest says of its bootstrap; None if that is nothing which can be used."""
    return read_root(manifest.layers[-1]) if manifest.layers else None


def read_root(layer: Descriptor) -> BootstrapRoot | None:
    """Return what the descriptor of a metadata layer says of the bootstrap in it, as above."""
    found = _ROOT.fullmatch(layer.annotations.get(BOOTSTRAP_ROOT, ""))
    if found is None or int(found[2]) > MAX_PROVABLE_BYTES or int(found[2]) % _PAGE_BYTES:
        return None
    return BootstrapRoot(found[1], int(found[2]))
