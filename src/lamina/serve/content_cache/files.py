"""The names and sizes of a layer content cache, as containerd's EROFS snapshotter looks for them.

::

    DIR/sha256/<first two digits of HEX>/HEX.erofs            the layer with the diff_id sha256:HEX
    DIR/sha256/<first two digits of HEX>/HEX.erofs.dmverity   root hash and place of its hash tree

Source: containerd 2.4, ``internal/erofsutils/mount.go`` (``CacheBlobPath``), ``internal/dmverity``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.block.base import BytesDisk

if TYPE_CHECKING:
    from lamina.block.base import Disk
    from lamina.block.hash_area import VerityDisk

SALT: Final = bytes(32)
"""What containerd gives a hash tree that it makes itself."""


LAYER_ENDING: Final = ".erofs"


class CacheFile(NamedTuple):
    """A file of the cache: its path in it, and what is in it."""

    path: str
    disk: Disk
    identity: bytes
    """Differs if what is in it does: one that is mounted must not become another."""
    image: str = ""
    """Which it comes with: all of an image wait for the same registry."""


def layer_file(diff_id: str, disk: Disk, identity: bytes, image: str = "") -> CacheFile:
    """Return the file of a layer."""
    algorithm, _, digits = diff_id.partition(":")
    return CacheFile(f"{algorithm}/{digits[:2]}/{digits}{LAYER_ENDING}", disk, identity, image)


def diff_id_of(layer: CacheFile) -> str:
    """Return the diff_id that the file of a layer is named by."""
    algorithm, _, name = layer.path.split("/")
    return f"{algorithm}:{name.removesuffix(LAYER_ENDING)}"


def verity_file(layer: CacheFile, verity: VerityDisk) -> CacheFile:
    """Return what tells containerd of the hash tree behind a layer."""
    told = {"roothash": verity.root.hex(), "hashoffset": verity.hash_offset_bytes}
    content = json.dumps(told).encode()
    return CacheFile(f"{layer.path}.dmverity", BytesDisk(content), content)


def unique_files(files: Iterable[CacheFile]) -> list[CacheFile]:
    """Return files without those that an earlier one has the path of: images share layers."""
    found: dict[str, CacheFile] = {}
    for file in files:
        found.setdefault(file.path, file)
    return list(found.values())
