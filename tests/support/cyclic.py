"""An image whose tree is none: a directory that is its own grandchild."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

from lamina.erofs.reader import Bootstrap
from tests.support.native_images import BuiltImage, build_image, push_image

FILES = {b"a/b/file": b"content" * 100, b"top": b"t"}


def cyclic_image() -> BuiltImage:
    """Build an image in which ``/a/b`` leads to ``/a`` once more."""
    built = build_image(FILES)
    bootstrap = Bootstrap(built.bootstrap)
    above = bootstrap.lookup(bootstrap.inode(bootstrap.root_nid), b"a")
    assert above is not None
    inode = bootstrap.inode(above)
    start, _ = bootstrap.data_extent(inode, 0, bootstrap.block_size)
    number = [entry.name for entry in bootstrap.entries(inode)].index(b"b")
    changed = bytearray(built.bootstrap)
    struct.pack_into("<Q", changed, start + 12 * number, above)
    return replace(built, bootstrap=bytes(changed))


def push_cyclic(folder: Path) -> str:
    """Push it into an OCI layout in *folder*; return its reference."""
    push_image(cyclic_image(), folder / "cyclic")
    return f"oci:{folder / 'cyclic'}:latest"
