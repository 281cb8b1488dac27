"""Small images made in memory: a tree, its one blob, and the bootstrap that joins them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lamina.blob.builder import BlobColumns, encode_chunk_entries
from lamina.blob.framing import BlobOptions, BlobTail
from lamina.blob.toc import ReadAt
from lamina.codec.compress import Compressor, compress
from lamina.codec.digest import Digester, digest
from lamina.erofs.layout import BlobEntry, ChunkIndex, round_up
from lamina.erofs.tree import Node
from lamina.erofs.writer import BootstrapOptions, write_bootstrap

Content = bytes | Node


class Image(NamedTuple):
    """A bootstrap and the file of its blob; ``chunks`` are the plain chunks in storage order."""

    bootstrap: bytes
    layer_bootstrap: bytes
    blob: bytes
    meta: bytes
    entry: BlobEntry | None
    chunks: list[bytes]
    root: Node
    chunk_table: bytes

    @property
    def device(self) -> bytes:
        """The blob's uncompressed address space."""
        return b"".join(chunk.ljust(round_up(len(chunk), 4096), b"\0") for chunk in self.chunks)

    @property
    def read_at(self) -> ReadAt:
        """Read a range of the blob file."""
        return lambda offset, size: self.blob[offset : offset + size]


def directory(mode: int = 0o755, **fields: object) -> Node:
    """Return an empty directory node."""
    return Node(mode | 0o040000, children={}, **fields)  # type: ignore[arg-type]


def make_tree(entries: Mapping[bytes, Content], chunk_size: int) -> tuple[Node, list[bytes]]:
    """Return the tree of path -> content or node, and the chunks of its files in order."""
    root = directory()
    chunks: list[bytes] = []
    address = 0
    for path, content in entries.items():
        node = content if isinstance(content, Node) else Node(0o100644, mtime=1_700_000_000)
        if isinstance(content, bytes):
            node.size = len(content)
            for start in range(0, len(content), chunk_size):
                chunk = content[start : start + chunk_size]
                node.chunks += ChunkIndex(0, len(chunks), address // 4096).pack()
                address += round_up(len(chunk), 4096)
                chunks.append(chunk)
        *above, name = path.split(b"/")
        parent = root
        for part in above:
            assert parent.children is not None
            parent = parent.children.setdefault(part, directory())
        assert parent.children is not None
        parent.children[name] = node
    return root, chunks


def store_chunks(
    chunks: Iterable[bytes], pack_size: int, compressor: Compressor
) -> tuple[bytes, BlobColumns]:
    """Return the data of a blob with neighbouring chunks packed up to ``pack_size`` bytes."""
    pieces: list[list[bytes]] = []
    for chunk in chunks:
        if pieces and sum(map(len, pieces[-1])) + len(chunk) <= pack_size:
            pieces[-1].append(chunk)
        else:
            pieces.append([chunk])
    stored = []
    for piece in pieces:
        plain = b"".join(piece)
        packed = compress(compressor, plain)
        stored.append(packed if len(packed) < len(plain) else plain)
    columns = BlobColumns(
        array("I", [len(chunk) for piece in pieces for chunk in piece]),
        array("I", map(len, pieces)),
        array("I", map(len, stored)),
    )
    return b"".join(stored), columns


def make_image(
    entries: Mapping[bytes, Content],
    *,
    chunk_size: int = 1 << 20,
    pack_size: int = 0,
    compressor: Compressor = Compressor.ZSTD,
    digester: Digester = Digester.BLAKE3,
    inlined_digests: bool = False,
    prefetch: Iterable[bytes] = (),
) -> Image:
    """Build an image of path -> content (or node); ``pack_size`` 0 makes every chunk a piece."""
    root, chunks = make_tree(entries, chunk_size)
    data, columns = store_chunks(chunks, pack_size, compressor)
    digests = b"".join(digest(digester, chunk) for chunk in chunks)
    options = BlobOptions(chunk_size, compressor, digester, inlined_digests)
    tail = BlobTail(columns, hashlib.sha256(data), options, digests)
    table = encode_chunk_entries(columns, digests, 0)
    image_options = BootstrapOptions(chunk_size, compressor, digester, tuple(prefetch))
    blobs = [tail.entry] if tail.entry else []
    layer_bootstrap = write_bootstrap(root, blobs, table, image_options)
    done = tail.finish(layer_bootstrap)
    blobs = [done.entry] if done.entry else []
    bootstrap = write_bootstrap(root, blobs, table, image_options)
    blob = data + done.tail
    assert len(blob) == done.size
    return Image(bootstrap, layer_bootstrap, blob, done.meta, done.entry, chunks, root, table)


def blob_entry(**fields: object) -> BlobEntry:
    """Return a plausible blob table entry of one 4096-byte chunk, changed by ``fields``."""
    entry = BlobEntry(
        blob_id="ab" * 32,
        index=0,
        chunk_size=1 << 20,
        chunk_count=1,
        compressor=Compressor.ZSTD,
        digester=Digester.BLAKE3,
        features=0x70000001,
        compressed_size=10_000,
        uncompressed_size=4096,
        toc_size=0,
        ci_compressor=0,
        ci_offset=5_000,
        ci_compressed_size=16,
        ci_uncompressed_size=16,
    )
    return entry._replace(**fields)  # type: ignore[arg-type]
