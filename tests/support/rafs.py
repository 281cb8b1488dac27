"""Small images made in memory: a tree, its one blob, and the bootstrap that joins them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple

from lamina.blob.builder import BlobColumns, encode_chunk_entries
from lamina.blob.framing import BlobOptions, BlobTail
from lamina.blob.layout import CHUNK_COMPRESSED, CHUNK_ZRAN, ZRAN_CONTEXT, CiHeader, pack_v2
from lamina.blob.split_table import StoredTable, encode_split, pack_window
from lamina.blob.toc import ReadAt
from lamina.codec.compress import Compressor, compress
from lamina.codec.digest import Digester, digest
from lamina.erofs.layout import BlobEntry, BlobFeature, ChunkIndex, round_up
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


WINDOWS = [hashlib.shake_128(b"%d" % size).digest(size) for size in (100, 32768, 7)]
WINDOW_OWNERS = (0, None, 1, 2, 2)
"""Which of them each context of :func:`split_table` has."""


def split_table() -> tuple[StoredTable, BlobEntry, bytes]:
    """A table of five chunks of a page, its entry, and its header."""
    features = BlobFeature.CHUNK_INFO_V2 | BlobFeature.ZRAN | BlobFeature.SEPARATE
    places = list(accumulate(map(len, WINDOWS), initial=0))
    flags = CHUNK_COMPRESSED | CHUNK_ZRAN
    words: list[int] = []
    contexts = b""
    for number, owner in enumerate(WINDOW_OWNERS):
        words += pack_v2(number * 4096, 4096, number * 1000, 900, flags, number << 32)
        place, size = (0, 0) if owner is None else (places[owner], len(WINDOWS[owner]))
        contexts += ZRAN_CONTEXT.pack(
            number * 1000, number * 4096, place, 1000, 4096, size, number, number % 8
        )
    records = b"".join(word.to_bytes(8, "little") for word in words)
    encoded = encode_split(records + contexts, list(map(pack_window, WINDOWS)), len(WINDOW_OWNERS))
    extra_size = len(contexts) + places[-1]
    plain_size = len(records) + extra_size
    header = CiHeader(
        features=features,
        compressor=Compressor.ZSTD,
        entries=len(WINDOW_OWNERS),
        offset=0,
        compressed_size=len(encoded.stored),
        uncompressed_size=plain_size,
        context_offset=len(records),
        context_size=extra_size,
        context_count=len(WINDOW_OWNERS),
    )
    entry = blob_entry(
        chunk_count=len(WINDOW_OWNERS),
        features=features,
        compressor=Compressor.GZIP,
        compressed_size=5000,
        uncompressed_size=len(WINDOW_OWNERS) * 4096,
        ci_compressor=Compressor.ZSTD,
        ci_offset=0,
        ci_compressed_size=len(encoded.stored),
        ci_uncompressed_size=plain_size,
    )
    return encoded, entry, header.pack()
