"""Fuzz the tar walker, and the merge of what it finds."""

from __future__ import annotations

import io
import tarfile

from lamina.archive.stream import LayerStream
from lamina.build.layer_tree import apply_layer
from lamina.build.merge import MergedTree
from lamina.build.scan import scan_layer
from lamina.codec.digest import Digester
from lamina.errors import Error
from tests.support import layers
from tests.support.layers import Item, folder, hard_link, opaque, symlink, tar_bytes, whiteout


def target(data: bytes) -> None:
    """Scan the bytes as a layer and apply it twice; only our errors may come out."""
    try:
        scan = scan_layer(LayerStream(io.BytesIO(data), 1 << 24), None, 4096, Digester.BLAKE3)
        tree = MergedTree()
        for _ in range(2):
            apply_layer(tree, scan, bytes(8 * len(scan.chunk_sizes)), lambda node: node)
    except Error:
        return
    for path, node in tree.root.walk():
        assert b".." not in path.split(b"/")
        assert node.children is None or not node.target


def seeds() -> list[bytes]:
    """Archives of every format and kind of entry."""
    long = "/".join(["d" * 90] * 3)
    items = [
        folder("d"),
        Item("d/f", b"x" * 5000, xattrs={"user.a": "b"}),
        hard_link("d/h", "d/f"),
        symlink("l", "../d"),
        Item("l/through", b"y"),
        Item(long, mtime=1.5),
        symlink("long", long),
        Item("c", kind=layers.CHARACTER, device=(1, 3)),
        whiteout("d/f"),
        opaque("d"),
    ]
    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    archives = [tar_bytes(items, tar_format) for tar_format in formats]
    archives += [tar_bytes([item]) for item in items]
    return [b"", *archives]
