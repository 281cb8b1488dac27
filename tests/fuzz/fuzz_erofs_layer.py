"""Layers that are EROFS file systems: any bytes give an archive that can be read, or an error."""

from __future__ import annotations

import io
import stat
import tempfile
from array import array
from contextlib import closing

from lamina.archive.erofs_layer import ErofsTar
from lamina.archive.stream import LayerStream
from lamina.build.scan import scan_layer
from lamina.codec.digest import Digester
from lamina.erofs.plain_writer import lay_out_plain
from lamina.erofs.tree import Node
from lamina.errors import Error

MOST_BYTES = 1 << 22
CHUNK = 4096


def target(data: bytes) -> None:
    """Scan the bytes as a layer; what is said of a place is inside of them."""
    try:
        stored = LayerStream(io.BytesIO(data), MOST_BYTES)
        with closing(
            ErofsTar(stored, tempfile.gettempdir(), MOST_BYTES, is_placed=True)
        ) as archive:
            scan = scan_layer(archive, None, CHUNK, Digester.BLAKE3)
            for chunk in zip(scan.chunk_offsets, scan.chunk_sizes, strict=True):
                place = archive.place_in_layer(*chunk)
                assert 0 <= place <= archive.size_bytes - chunk[1]
    except Error:
        return


def seeds() -> list[bytes]:
    """What is written here, with an inode of each kind."""
    times = {"mtime": 1_600_000_000, "mtime_ns": 5}
    sizes = (1, CHUNK, 2 * CHUNK + 7)
    files = {b"f%d" % size: _file(size) for size in sizes}
    below = {
        **files,
        b"again": files[b"f1"],
        b"gone": Node(stat.S_IFCHR),
        b"null": Node(stat.S_IFCHR | 0o666, rdev=0x103, **times),
        b"link": Node(stat.S_IFLNK | 0o777, size=3, target=b"f/1", **times),
        b"pipe": Node(stat.S_IFIFO | 0o600),
    }
    opaque = {b"trusted.overlay.opaque": b"y", b"user.a": b"b"}
    folder = Node(stat.S_IFDIR | 0o755, xattrs=opaque, children=below)
    root = Node(stat.S_IFDIR | 0o755, children={b"d": folder, b"empty": _file(0)})
    layout = lay_out_plain(root, CHUNK, b"seed")
    image = bytearray(layout.metadata) + bytes(layout.size_bytes - len(layout.metadata))
    for source, size, offset in layout.extents:
        image[offset : offset + size] = bytes([source & 0xFF]) * size
    return [b"", bytes(image), bytes(layout.metadata)]


def _file(size: int) -> Node:
    places = array("Q", range(-(-size // CHUNK)))
    return Node(stat.S_IFREG | 0o644, size=size, chunks=places.tobytes())
