"""First phase of a conversion: read a layer once, and keep its headers, its chunk digests and its
plaintext.

The tar stream goes to a spool file as it is inflated and hashed, while its bytes are still in the
processor's cache; later phases read chunks back by their offset.  The result travels between
processes, so it is made of a few flat buffers instead of an object per file or chunk.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, Protocol

from lamina.archive import tar
from lamina.archive.blocks import BLOCK_BYTES, BlockReader
from lamina.build.budget import DIRECTORY_BYTES, Budget, Share, attributes_bytes, text_bytes
from lamina.build.sparse_chunks import Chunk, SparseChunks
from lamina.codec.digest import Digester, hasher
from lamina.errors import FormatError

COLUMNS = 8
MTIME_COLUMN = 4
MAX_CHUNKS = 1 << 24
MODE_OF_KIND = {
    tar.REGULAR: stat.S_IFREG,
    tar.HARD_LINK: 0,
    tar.SYMLINK: stat.S_IFLNK,
    tar.CHARACTER: stat.S_IFCHR,
    tar.BLOCK_DEVICE: stat.S_IFBLK,
    tar.DIRECTORY: stat.S_IFDIR,
    tar.FIFO: stat.S_IFIFO,
}
NO_XATTRS: dict[bytes, bytes] = {}


class TarStream(Protocol):
    """A layer as it is decompressed."""

    @property
    def compression(self) -> str:
        """``none``, ``gzip`` or ``zstd``."""

    def read(self, size: int, /) -> bytes | bytearray:
        """Return the next bytes, b"" at the end."""


class ScannedEntry(NamedTuple):
    """One entry of a layer; ``mode`` is the whole ``st_mode`` (0 in the format bits for a hard
    link).

    ``rdev`` is in the kernel's "new" encoding.  The chunks of a regular file are ``chunk_count``
    from ``first_chunk``.
    """

    path: bytes
    link: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    rdev: int
    xattrs: dict[bytes, bytes]
    first_chunk: int
    chunk_count: int


@dataclass(slots=True)
class LayerScan:
    """A scanned layer: entries in columns, chunks in the order of the archive.

    ``digests`` holds 32 bytes a chunk, ``chunk_sizes`` its length and ``chunk_offsets`` its place
    in the tar stream, or behind it in the spool (:mod:`lamina.build.sparse_chunks`), in bytes.
    ``tar_bytes`` is the length of that stream.
    """

    chunk_size: int
    paths: bytes = b""
    links: bytes = b""
    numbers: array[int] = field(default_factory=lambda: array("q"))
    xattrs: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    digests: bytes = b""
    chunk_sizes: array[int] = field(default_factory=lambda: array("I"))
    chunk_offsets: array[int] = field(default_factory=lambda: array("Q"))
    tar_bytes: int = 0
    compression: str = "none"

    @property
    def entry_count(self) -> int:
        """Number of entries."""
        return len(self.numbers) // COLUMNS

    def round_times(self) -> None:
        """Round the times of all entries to seconds, as the tables of stargz do."""
        numbers = self.numbers
        for at in range(MTIME_COLUMN, len(numbers), COLUMNS):
            if numbers[at + 1] or not numbers[at]:
                numbers[at] = rounded_time(numbers[at], numbers[at + 1])
                numbers[at + 1] = 0

    def entries(self) -> Iterator[ScannedEntry]:
        """Yield the entries in the order of the archive."""
        if not self.numbers:
            return
        chunk_size, xattrs = self.chunk_size, self.xattrs
        first = 0
        make = ScannedEntry._make
        rows = zip(*[iter(self.numbers)] * COLUMNS, strict=True)
        texts = zip(_texts(self.paths), _texts(self.links), rows, strict=True)
        for number, (path, link, row) in enumerate(texts):
            count = -(-row[6] // chunk_size)
            extra = xattrs.get(number, NO_XATTRS) if xattrs else NO_XATTRS
            yield make((path, link, *row, extra, first, count))
            first += count


def scan_layer(
    stream: TarStream,
    spool: BinaryIO | None,
    chunk_size: int,
    digester: Digester,
    budget: Share | None = None,
) -> LayerScan:
    """Scan a decompressed layer to its end, copying it to ``spool`` (unbuffered, at its beginning)
    if one is given.  What is kept of its entries is counted in ``budget``.

    Raises:
        UnsupportedError: the budget is spent.
        FormatError, UnsupportedError: what :func:`lamina.archive.tar.walk` says of the archive,
            which may have sparse files where there is a spool to put their chunks together in.
    """
    scan = LayerScan(chunk_size, compression=stream.compression)
    reader = BlockReader(_tee(stream, spool))
    texts = _Texts(budget or Budget().share())
    digests = bytearray()
    start_digest = hasher(digester)
    sparse: SparseChunks | None = None
    add_row = scan.numbers.extend
    for entry in tar.walk(reader, with_sparse=spool is not None):
        texts.add(entry, scan)
        add_row(entry_row(entry))
        if entry.segments is not None:
            assert spool is not None
            sparse = sparse or SparseChunks(spool.fileno(), chunk_size, start_digest)
            _scan_sparse(sparse.cut(reader, entry), scan, digests)
        elif entry.size:
            _scan_data(reader, entry.size, scan, start_digest, digests)
    scan.tar_bytes = reader.drain()
    texts.finish(scan)
    scan.digests = bytes(digests)
    return scan


def rounded_time(seconds: int, nanoseconds: int) -> int:
    """Return a time as the tables of stargz have it: to the nearest second, halves up.

    What is in the first second of 1970 is there as if it had no time.
    """
    return seconds + (nanoseconds >= 500_000_000) if seconds else 0


class _Texts:
    """Collects the names, link targets and extended attributes of a layer."""

    def __init__(self, budget: Share) -> None:
        self._budget = budget
        self._paths, self._links = bytearray(), bytearray()
        self._attributes: dict[tuple[tuple[bytes, bytes], ...], dict[bytes, bytes]] = {}

    def add(self, entry: tar.Entry, scan: LayerScan) -> None:
        """Add those of an entry; equal sets of attributes are kept once."""
        size = text_bytes(entry.path, entry.link)
        if entry.kind == tar.DIRECTORY:
            size += DIRECTORY_BYTES
        if entry.xattrs:
            key = tuple(entry.xattrs.items())
            kept = self._attributes.get(key)
            if kept is None:
                kept = self._attributes[key] = entry.xattrs
                size += attributes_bytes(kept)
            scan.xattrs[scan.entry_count] = kept
        self._budget.add(1, size)
        self._paths += entry.path + b"\0"
        self._links += entry.link + b"\0"

    def finish(self, scan: LayerScan) -> None:
        """Give the names and targets to a scan."""
        self._budget.flush()
        scan.paths, scan.links = bytes(self._paths[:-1]), bytes(self._links[:-1])


def _texts(joined: bytes) -> Iterator[bytes]:
    """Yield the parts between zero bytes, without a list of all of them."""
    start = 0
    while (end := joined.find(b"\0", start)) >= 0:
        yield joined[start:end]
        start = end + 1
    yield joined[start:]


def entry_row(entry: tar.Entry) -> tuple[int, ...]:
    """Return the columns of an entry of a layer, as :attr:`LayerScan.numbers` has them."""
    return (
        entry.kind,
        MODE_OF_KIND[entry.kind] | entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime,
        entry.mtime_ns,
        entry.size,
        encode_rdev(entry.device_major, entry.device_minor),
    )


def _tee(stream: TarStream, spool: BinaryIO | None) -> Callable[[], bytes | bytearray]:
    if spool is None:
        return lambda: stream.read(BLOCK_BYTES)
    write = spool.write

    def read_block() -> bytes | bytearray:
        block = stream.read(BLOCK_BYTES)
        written = write(block)
        while written < len(block):
            written += write(memoryview(block)[written:])
        return block

    return read_block


def _scan_data(
    reader: BlockReader,
    size_bytes: int,
    scan: LayerScan,
    start_digest: Callable[..., Any],
    digests: bytearray,
) -> None:
    """Digest the chunks of one file."""
    chunk_size = scan.chunk_size
    offset = reader.offset
    for start in range(0, size_bytes, chunk_size):
        length = min(chunk_size, size_bytes - start)
        pieces = list(reader.pieces(length))
        state = start_digest(pieces[0])
        for piece in pieces[1:]:
            state.update(piece)
        digests += state.digest()
        scan.chunk_sizes.append(length)
        scan.chunk_offsets.append(offset + start)
    if len(scan.chunk_sizes) >= MAX_CHUNKS:
        raise FormatError(
            f"The layer has {MAX_CHUNKS} or more chunks of {chunk_size} bytes.",
            hint="Choose a larger chunk size.",
        )


def _scan_sparse(chunks: Iterator[Chunk], scan: LayerScan, digests: bytearray) -> None:
    """Note the chunks of one sparse file."""
    for chunk in chunks:
        digests += chunk.digest
        scan.chunk_sizes.append(chunk.size)
        scan.chunk_offsets.append(chunk.offset)


def encode_rdev(major: int, minor: int) -> int:
    """Return a device number in the kernel's "new" encoding (RAFS v6 §1.10)."""
    return minor & 0xFF | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12
