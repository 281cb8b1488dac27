"""Fuzz the tar walker, and the merge of what it finds."""

from __future__ import annotations

import io
import tarfile
import tempfile

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
    stream = LayerStream(io.BytesIO(data), 1 << 24)
    try:
        with tempfile.TemporaryFile(buffering=0) as spool:
            scan = scan_layer(stream, spool, 4096, Digester.BLAKE3)
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
        Item(".wh..wh.plnk/1", b"x"),
        Item("a/../b"),
    ]
    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    archives = [tar_bytes(items, tar_format) for tar_format in formats]
    archives += [tar_bytes([item]) for item in items]
    archives += [sparse("0,100,8000,100", 20_000, b"z" * 200), archives[0][:-2048]]
    return [b"", *archives]


def sparse(numbers: str, size: int, data: bytes) -> bytes:
    """A file with holes in GNU's form 0.1."""
    info = Item("s", data).info()
    info.pax_headers = {"GNU.sparse.size": str(size), "GNU.sparse.map": numbers}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
