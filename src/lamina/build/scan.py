"""Read a layer once, and keep its headers and its chunk digests.

A conversion is handed the chunks as they come (:func:`stream_layer`); an index needs their offsets
alone, and a comparison reads them back from a copy of the tar stream (:func:`scan_layer`).  What is
kept of entries travels between processes, so it is made of a few flat buffers instead of an object
per file or chunk.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, Protocol

from lamina.archive import tar
from lamina.archive.blocks import BLOCK_BYTES, Block, BlockReader
from lamina.build.budget import (
    PUBLISHED_BYTES,
    PUBLISHED_ENTRIES,
    Budget,
    ChunkCounter,
    Share,
    attributes_bytes,
    text_bytes,
)
from lamina.build.sparse_chunks import SparseChunks, SpooledChunks
from lamina.codec.digest import Digester, chosen_digests, hasher, keeping_hasher

COLUMNS = 8
MTIME_COLUMN = 4
SIZE_COLUMN = 6
BATCH_ENTRIES = 1024
BATCH_TEXT_BYTES = 1 << 20
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
_DEVICES = (tar.CHARACTER, tar.BLOCK_DEVICE)


class TarStream(Protocol):
    """A layer as it is decompressed."""

    @property
    def compression(self) -> str:
        """``none``, ``gzip`` or ``zstd``."""

    def read(self, size: int, /) -> Block:
        """Return the next bytes, an empty block at the end."""


class LayerSink(Protocol):
    """Takes what is in a layer while it is read."""

    def add_entries(self, entries: LayerScan) -> None:
        """Take some more entries, without chunks."""

    def add_chunk(self, digest: bytes, pieces: Sequence[memoryview], size: int) -> None:
        """Take the next chunk: its digest, and its bytes in pieces."""


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
    digests: bytes | bytearray = b""
    chunk_sizes: array[int] = field(default_factory=lambda: array("I"))
    chunk_offsets: array[int] = field(default_factory=lambda: array("Q"))
    tar_bytes: int = 0
    compression: str = "none"

    @property
    def entry_count(self) -> int:
        """Number of entries."""
        return len(self.numbers) // COLUMNS

    def digests_of(self, chunks: Sequence[int]) -> bytearray:
        """Return the digests of some chunks, 32 bytes each."""
        return chosen_digests(self.digests, chunks)

    def round_times(self) -> None:
        """Round the times of all entries to seconds, as the tables of stargz do."""
        numbers = self.numbers
        for at in range(MTIME_COLUMN, len(numbers), COLUMNS):
            if numbers[at + 1] or not numbers[at]:
                numbers[at] = rounded_time(numbers[at], numbers[at + 1])
                numbers[at + 1] = 0

    @property
    def columns(self) -> list[array[int]]:
        """Return the numbers of all entries, a column each: kind, mode, user, group, seconds and
        nanoseconds of the time, size, and device.
        """
        return [self.numbers[column::COLUMNS] for column in range(COLUMNS)]

    def texts(self) -> tuple[Iterator[bytes], Iterator[bytes]]:
        """Return the paths and the link targets of all entries."""
        empty = not self.numbers
        return (iter(()), iter(())) if empty else (_texts(self.paths), _texts(self.links))

    def entry(self, number: int, path: bytes, link: bytes, first_chunk: int = 0) -> ScannedEntry:
        """Return an entry, whose texts are known."""
        row = self.numbers[number * COLUMNS : (number + 1) * COLUMNS]
        extra = self.xattrs.get(number, NO_XATTRS)
        count = -(-row[SIZE_COLUMN] // self.chunk_size)
        return ScannedEntry._make((path, link, *row, extra, first_chunk, count))

    def entries(self) -> Iterator[ScannedEntry]:
        """Yield the entries in the order of the archive."""
        first = 0
        for number, (path, link) in enumerate(zip(*self.texts(), strict=True)):
            entry = self.entry(number, path, link, first)
            yield entry
            first += entry.chunk_count


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
    budget = budget or Budget().share()
    texts = _Texts(budget)
    digests = bytearray()
    counter = ChunkCounter(budget, chunk_size)
    start_digest = hasher(digester)
    sparse = SparseChunks(chunk_size, start_digest)
    spooled: SpooledChunks | None = None
    add_row = scan.numbers.extend
    for entry in tar.walk(reader, with_sparse=spool is not None):
        texts.add(entry, scan)
        add_row(entry_row(entry))
        if entry.segments is not None:
            assert spool is not None
            spooled = spooled or SpooledChunks(spool.fileno())
            for chunk in sparse.cut(reader, entry):
                digests += chunk.digest
                scan.chunk_sizes.append(chunk.size)
                scan.chunk_offsets.append(spooled.place(chunk))
                counter.count(len(scan.chunk_sizes))
        elif entry.size:
            _scan_data(reader, entry.size, scan, start_digest, digests, counter)
    counter.count(len(scan.chunk_sizes))
    scan.tar_bytes = reader.drain()
    texts.finish(scan)
    scan.digests = digests
    return scan


def stream_layer(
    stream: TarStream,
    chunk_size: int,
    digester: Digester,
    budget: Share,
    sink: LayerSink,
    *,
    round_times: bool = False,
) -> None:
    """Read a decompressed layer to its end, and hand out its entries, some at a time, and chunks.
    What is kept of entries is counted in ``budget``; ``round_times`` as a table of stargz does.

    Raises as :func:`scan_layer`.
    """
    reader = BlockReader(lambda: stream.read(BLOCK_BYTES))
    batch, texts = LayerScan(chunk_size), _Texts(budget)
    start_digest = keeping_hasher(digester)
    sparse = SparseChunks(chunk_size, start_digest)

    def hand_out() -> None:
        texts.finish(batch)
        if round_times:
            batch.round_times()
        sink.add_entries(batch)

    for entry in tar.walk(reader, with_sparse=True):
        texts.add(entry, batch)
        batch.numbers.extend(entry_row(entry))
        if entry.segments is not None:
            for chunk in sparse.cut(reader, entry):
                sink.add_chunk(
                    chunk.digest, chunk.pieces or [memoryview(bytes(chunk.size))], chunk.size
                )
        elif entry.size:
            _stream_data(reader, entry.size, chunk_size, start_digest, sink)
        if batch.entry_count >= BATCH_ENTRIES or texts.size_bytes >= BATCH_TEXT_BYTES:
            hand_out()
            batch, texts = LayerScan(chunk_size), _Texts(budget)
    reader.drain()
    hand_out()


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
        self._attribute_bytes = 0
        self._counted = self._counted_bytes = self._counted_directories = 0

    @property
    def size_bytes(self) -> int:
        """Return the bytes that wait."""
        return len(self._paths) + len(self._links) + self._attribute_bytes

    def add(self, entry: tar.Entry, scan: LayerScan) -> None:
        """Add those of an entry; equal sets of attributes are kept once."""
        path, link = entry.path, entry.link
        size = text_bytes(path, link)
        if entry.kind == tar.DIRECTORY:
            self._counted_directories += 1
        if entry.xattrs:
            size += self._add_attributes(entry.xattrs, scan)
        self._counted += 1
        self._counted_bytes += size
        if self._counted >= PUBLISHED_ENTRIES or self._counted_bytes >= PUBLISHED_BYTES:
            self._count()
        self._paths += path
        self._paths.append(0)
        if link:
            self._links += link
        self._links.append(0)

    def finish(self, scan: LayerScan) -> None:
        """Give the names and targets to a scan."""
        self._count()
        self._budget.flush()
        scan.paths, scan.links = bytes(self._paths[:-1]), bytes(self._links[:-1])

    def _add_attributes(self, xattrs: dict[bytes, bytes], scan: LayerScan) -> int:
        """Return the bytes to be counted for a set of attributes of the next entry."""
        key = tuple(xattrs.items())
        kept = self._attributes.get(key)
        size = attributes_bytes(xattrs, is_new=kept is None)
        if kept is None:
            kept = self._attributes[key] = xattrs
            self._attribute_bytes += size
        scan.xattrs[scan.entry_count] = kept
        return size

    def _count(self) -> None:
        self._budget.add(self._counted, self._counted_bytes, self._counted_directories)
        self._counted = self._counted_bytes = self._counted_directories = 0


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
        encode_rdev(entry.device_major, entry.device_minor) if entry.kind in _DEVICES else 0,
    )


def _tee(stream: TarStream, spool: BinaryIO | None) -> Callable[[], Block]:
    if spool is None:
        return lambda: stream.read(BLOCK_BYTES)
    write = spool.write

    def read_block() -> Block:
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
    counter: ChunkCounter,
) -> None:
    """Digest the chunks of one file."""
    chunk_size = scan.chunk_size
    offset = reader.offset
    for start in range(0, size_bytes, chunk_size):
        length = min(chunk_size, size_bytes - start)
        digest, _ = _next_chunk(reader, length, start_digest)
        digests += digest
        scan.chunk_sizes.append(length)
        scan.chunk_offsets.append(offset + start)
        if len(scan.chunk_sizes) >= counter.due:
            counter.count(len(scan.chunk_sizes))


def _stream_data(
    reader: BlockReader,
    size_bytes: int,
    chunk_size: int,
    start_digest: Callable[..., Any],
    sink: LayerSink,
) -> None:
    """Hand out the chunks of one file."""
    for start in range(0, size_bytes, chunk_size):
        length = min(chunk_size, size_bytes - start)
        sink.add_chunk(*_next_chunk(reader, length, start_digest), length)


def _next_chunk(
    reader: BlockReader, size_bytes: int, start_digest: Callable[..., Any]
) -> tuple[bytes, Sequence[memoryview]]:
    """Return the digest of the next bytes, and themselves in pieces."""
    whole = reader.view(size_bytes)
    if whole is not None:
        return start_digest(whole).digest(), (whole,)
    state, pieces = start_digest(), []
    for piece in reader.pieces(size_bytes):
        state.update(piece)
        pieces.append(piece)
    return state.digest(), pieces


def encode_rdev(major: int, minor: int) -> int:
    """Return a device number in the kernel's "new" encoding (RAFS v6 §1.10)."""
    return minor & 0xFF | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12
