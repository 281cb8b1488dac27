"""The start artifact: the pages of an image that a start reads, in the order in which it does.

A prefix of fixed size, tables that say which pages follow, then frames with the pages, so that a
reader of the stream can use each frame as it arrives.  Nothing in it is trusted: its pages are
proven by the chunk digests of the image (:mod:`lamina.blob.page_proof`), and its tables are bounded
here.  All numbers are little-endian; a page has 4096 bytes.

Prefix, 88 bytes::

    0   8   b"LAMSTART"
    8   2   version, 1
    10  2   zeros
    12  4   stored size of the tables, bytes: one zstd frame
    16  4   size of the tables, bytes
    20  4   zeros
    24  32  BLAKE3 of the tables as stored
    56  32  SHA-256 digest of the manifest whose pages these are

Tables::

    0   4   number of blobs
    4   4   number of frames
    8   4   number of page ranges
    12  4   number of file ranges
    16  4   length of the paths, bytes
    20  32  id of a blob, for each blob
        48  for each frame:
            0   4   stored size, bytes: one zstd frame
            4   4   number of siblings
            8   4   number of page ranges
            12  4   number of file ranges
            16  32  BLAKE3 of the frame as stored
        12  for each page range, those of the first frame first:
            0   4   number of the blob in this table
            4   4   first page, in the uncompressed address space of the blob
            8   4   number of pages
        12  for each file range, those of the first frame first:
            0   4   number of the path
            4   4   first page of the file
            8   4   number of pages
            paths, absolute in the image, each ended by a NUL

A frame holds, once decompressed, its siblings, 32 bytes each, and then its pages.  Ranges of pages
are in the order of (blob, page) within a frame.  The siblings are those of the chunks in that
order, for each chunk as :func:`lamina.blob.page_proof.make_siblings` gives them.  All pages of a
chunk are in the same frame.  The bootstrap of the image may be among the blobs, under its BLAKE3
digest, as one chunk: its pages are in a frame of their own, the first.  The file ranges say where a
mounted image has these pages; they are for asking the kernel to read them, and prove nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import Final, NamedTuple

from lamina.blob.page_proof import PAGE_BYTES, SIBLING_BYTES
from lamina.codec.compress import Compressor, compress, decompress
from lamina.codec.digest import DIGEST_SIZE, Digester, digest
from lamina.erofs.layout import MAX_BLOBS
from lamina.errors import FormatError, IntegrityError

MAGIC: Final = b"LAMSTART"
VERSION: Final = 1
LEVEL: Final = 19
"""zstd's; an artifact is made once."""

MAX_TABLES_BYTES: Final = 8 << 20
MAX_FRAME_BYTES: Final = 16 << 20
MAX_PAGES: Final = 1 << 16
"""256 MiB: what a reader keeps at most."""
MAX_FILES: Final = 1 << 16

_PREFIX: Final = struct.Struct("<8sHHIII32s32s")
PREFIX_BYTES: Final = _PREFIX.size
_COUNTS: Final = struct.Struct("<5I")
_FRAME: Final = struct.Struct("<4I32s")
_RANGE: Final = struct.Struct("<3I")


class PageRange(NamedTuple):
    """``pages`` of them from ``first`` on, of a blob or path given by its number in the tables."""

    owner: int
    first: int
    pages: int

    @property
    def stop(self) -> int:
        """The first page behind."""
        return self.first + self.pages


class Prefix(NamedTuple):
    """What the first bytes say of the tables behind them."""

    stored_bytes: int
    tables_bytes: int
    tables_digest: bytes
    manifest_digest: bytes
    """32 bytes."""


class Frame(NamedTuple):
    """One frame: what it holds, and what it is as stored."""

    stored_bytes: int
    sibling_count: int
    digest: bytes
    pages: tuple[PageRange, ...]
    files: tuple[PageRange, ...]

    @property
    def page_count(self) -> int:
        """How many pages it has."""
        return sum(part.pages for part in self.pages)


class Tables(NamedTuple):
    """What is in the frames; ``blob_ids`` are hex, ``paths`` absolute in the image."""

    blob_ids: tuple[str, ...]
    paths: tuple[bytes, ...]
    frames: tuple[Frame, ...]


class FrameContent(NamedTuple):
    """What a writer puts into a frame; see :class:`Frame`."""

    siblings: bytes
    data: bytes
    pages: tuple[PageRange, ...]
    files: tuple[PageRange, ...]


def encode(
    manifest_digest: bytes,
    blob_ids: Sequence[str],
    paths: Sequence[bytes],
    frames: Sequence[FrameContent],
) -> bytes:
    """Return the artifact."""
    stored = [compress(Compressor.ZSTD, frame.siblings + frame.data, LEVEL) for frame in frames]
    names = b"".join(path + b"\0" for path in paths)
    page_ranges = [part for frame in frames for part in frame.pages]
    file_ranges = [part for frame in frames for part in frame.files]
    counts = len(blob_ids), len(frames), len(page_ranges), len(file_ranges), len(names)
    tables = b"".join(
        (
            _COUNTS.pack(*counts),
            *map(bytes.fromhex, blob_ids),
            *(_frame_record(*pair) for pair in zip(frames, stored, strict=True)),
            *(_RANGE.pack(*part) for part in [*page_ranges, *file_ranges]),
            names,
        )
    )
    packed = compress(Compressor.ZSTD, tables, LEVEL)
    found = digest(Digester.BLAKE3, packed)
    prefix = _PREFIX.pack(MAGIC, VERSION, 0, len(packed), len(tables), 0, found, manifest_digest)
    return b"".join((prefix, packed, *stored))


def _frame_record(frame: FrameContent, stored: bytes) -> bytes:
    siblings = len(frame.siblings) // SIBLING_BYTES
    found = digest(Digester.BLAKE3, stored)
    return _FRAME.pack(len(stored), siblings, len(frame.pages), len(frame.files), found)


def parse_prefix(data: bytes) -> Prefix:
    """Read the first ``PREFIX_BYTES``.  Raises FormatError."""
    if len(data) != PREFIX_BYTES:
        raise FormatError(f"the start artifact has {len(data)} bytes, less than its prefix")
    magic, version, zeros, stored, plain, more_zeros, found, manifest = _PREFIX.unpack(data)
    if magic != MAGIC:
        raise FormatError("this is no start artifact")
    if version != VERSION or zeros or more_zeros:
        raise FormatError(f"the start artifact has the version {version}, which is not known here")
    if not 0 < stored <= MAX_TABLES_BYTES or not _COUNTS.size <= plain <= MAX_TABLES_BYTES:
        raise FormatError(f"the start artifact claims tables of {stored} and {plain} bytes")
    return Prefix(stored, plain, found, manifest)


def parse_tables(prefix: Prefix, stored: bytes) -> Tables:
    """Read the tables.

    Raises IntegrityError if they are not those of the prefix, FormatError if they claim too much,
    contradict themselves, or have a page twice.
    """
    if digest(Digester.BLAKE3, stored) != prefix.tables_digest:
        raise IntegrityError("the tables of the start artifact are damaged")
    data = decompress(Compressor.ZSTD, stored, prefix.tables_bytes)
    blobs, frames, page_ranges, file_ranges, names = _COUNTS.unpack_from(data)
    sizes = (
        blobs * DIGEST_SIZE,
        frames * _FRAME.size,
        page_ranges * _RANGE.size,
        file_ranges * _RANGE.size,
        names,
    )
    ends = list(accumulate(sizes, initial=_COUNTS.size))
    if ends[-1] != len(data) or blobs > MAX_BLOBS:
        raise FormatError("the tables of the start artifact contradict themselves")
    parts = [data[start:end] for start, end in pairwise(ends)]
    ids = tuple(
        parts[0][start : start + DIGEST_SIZE].hex() for start in range(0, sizes[0], DIGEST_SIZE)
    )
    paths = _paths(parts[4])
    pages = map(PageRange._make, _RANGE.iter_unpack(parts[2]))
    files = map(PageRange._make, _RANGE.iter_unpack(parts[3]))
    found = tuple(_frames(parts[1], pages, files))
    if next(pages, None) is not None or next(files, None) is not None:
        raise FormatError("the start artifact has ranges that belong to no frame")
    _check_pages(found, len(ids))
    _check_files(found, len(paths))
    return Tables(ids, paths, found)


def open_frame(frame: Frame, stored: bytes) -> tuple[memoryview, memoryview]:
    """Return the siblings and the pages of a frame, which are not proven yet.

    Raises IntegrityError or FormatError if it is damaged.
    """
    if digest(Digester.BLAKE3, stored) != frame.digest:
        raise IntegrityError("a frame of the start artifact is damaged")
    siblings = frame.sibling_count * SIBLING_BYTES
    size = siblings + frame.page_count * PAGE_BYTES
    plain = memoryview(decompress(Compressor.ZSTD, stored, size))
    return plain[:siblings], plain[siblings:]


def _paths(data: bytes) -> tuple[bytes, ...]:
    names = data.split(b"\0")
    if names.pop() or len(names) > MAX_FILES or not all(map(_is_path, names)):
        raise FormatError("the start artifact has names that are no paths in an image")
    return tuple(names)


def _is_path(name: bytes) -> bool:
    return name.startswith(b"/") and len(name) <= 4096


def _frames(
    records: bytes, pages: Iterator[PageRange], files: Iterator[PageRange]
) -> Iterator[Frame]:
    for stored, siblings, page_ranges, file_ranges, found in _FRAME.iter_unpack(records):
        frame = Frame(
            stored, siblings, found, _taken(pages, page_ranges), _taken(files, file_ranges)
        )
        size = siblings * SIBLING_BYTES + frame.page_count * PAGE_BYTES
        if not 0 < stored <= MAX_FRAME_BYTES or not 0 < size <= MAX_FRAME_BYTES:
            raise FormatError(f"a frame of the start artifact claims {size} bytes in {stored}")
        yield frame


def _taken(ranges: Iterator[PageRange], count: int) -> tuple[PageRange, ...]:
    found = tuple(islice(ranges, count))
    if len(found) != count:
        raise FormatError("the start artifact has fewer ranges than its frames claim")
    return found


def _check_pages(frames: Sequence[Frame], blob_count: int) -> None:
    """Raise FormatError for too many pages, an unknown blob, disorder, or a page that is twice."""
    if sum(frame.page_count for frame in frames) > MAX_PAGES:
        raise FormatError(f"the start artifact claims more than {MAX_PAGES} pages")
    for frame in frames:
        if any(part.owner >= blob_count or not part.pages for part in frame.pages):
            raise FormatError("the start artifact has pages of a blob that it does not name")
        if list(frame.pages) != sorted(frame.pages):
            raise FormatError("the pages of a frame of the start artifact are out of order")
    ordered = sorted(part for frame in frames for part in frame.pages)
    for before, after in pairwise(ordered):
        if before.owner == after.owner and before.stop > after.first:
            raise FormatError("the start artifact has the same page twice")


def _check_files(frames: Sequence[Frame], path_count: int) -> None:
    if any(part.owner >= path_count for frame in frames for part in frame.files):
        raise FormatError("the start artifact has ranges of a file that it does not name")
    if sum(part.pages for frame in frames for part in frame.files) > 4 * MAX_PAGES:
        raise FormatError("the start artifact has more pages of files than of the image")
