"""A chunk table of which the inflate windows are read when they are needed.

Most of the table of a gzip layer are windows, and a start needs a few of them.  So each window is a
zstd frame of its own behind the frame of the rest, and before both lies a directory, in a skippable
frame: for whoever decompresses all of it, it is the table of RAFS v6 §2.4 as ever.

========== ====== ==============================================================================
offset     size   field (little endian)
========== ====== ==============================================================================
0          4      0x184D2A5A, which decoders of zstd skip (RFC 8878 §3.1.2)
4          4      bytes of the directory from here on, 24 + 4 n
8          8      ``LMWINDOW``
16         4      stored size of the frame of records and contexts, which follows the directory
20         4      number of contexts
24         4      plain size of the contexts and all windows
28         4      n, the number of windows
32         4 n    stored size of the frame of each window, in the order of their dict_offset
========== ====== ==============================================================================

Nothing vouches for what is read here, as for any chunk table: the digests of the chunks do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from lamina.blob.ci_header import checked_table_size
from lamina.blob.layout import (
    CHUNK_ZRAN,
    CONTEXT_SIZE,
    MAX_ZRAN_DICTIONARY,
    CiHeader,
    ZranContext,
)
from lamina.blob.table import ChunkTable, Piece
from lamina.codec.compress import Compressor, compress, decompress
from lamina.erofs.layout import BlobEntry
from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

SKIPPABLE: Final = 0x184D2A5A
NAME: Final = b"LMWINDOW"
DIRECTORY: Final = Struct("<II8sIIII")
TABLE_LEVEL: Final = 7
WINDOW_LEVEL: Final = 3
"""Level 7 makes windows 4 % smaller in thrice the time."""


class StoredTable(NamedTuple):
    """The stored form of a table, of which opening needs the first ``head_size`` bytes; 0 if it has
    no windows, and so is not split.
    """

    stored: bytes
    head_size: int


class Windows(Protocol):
    """Where the frames of the windows come from."""

    def has(self, number: int) -> bool:
        """Tell whether the frame is here."""
        ...

    def frame(self, number: int) -> bytes:
        """Return the frame; raises what getting it raises."""
        ...

    def forget(self) -> None:
        """Keep no frame any more: one of them turned out to be wrong."""
        ...


class OpenWindows(Protocol):
    """Makes a :class:`Windows` of the place of the first frame in the table and all sizes."""

    def __call__(self, start: int, sizes: Sequence[int]) -> Windows:
        """Return where frames of these sizes come from, the first of which is at *start*."""
        ...


def pack_window(window: bytes) -> tuple[bytes, int]:
    """Return the frame of a window, and the size of the window."""
    return compress(Compressor.ZSTD, window, WINDOW_LEVEL), len(window)


def encode_split(
    head: bytes, windows: Sequence[tuple[bytes, int]], context_count: int
) -> StoredTable:
    """Return the stored form of a table; *head* are its records and its contexts, *windows*
    were packed by :func:`pack_window`.
    """
    if not windows:
        return StoredTable(compress(Compressor.ZSTD, head, TABLE_LEVEL), 0)
    frames = [frame for frame, _ in windows]
    first = compress(Compressor.ZSTD, head, TABLE_LEVEL)
    sizes = Struct(f"<{len(frames)}I").pack(*map(len, frames))
    context_size = context_count * CONTEXT_SIZE + sum(size for _, size in windows)
    directory = DIRECTORY.pack(
        SKIPPABLE,
        DIRECTORY.size - 8 + len(sizes),
        NAME,
        len(first),
        context_count,
        context_size,
        len(frames),
    )
    start = directory + sizes + first
    return StoredTable(b"".join([start, *frames]), len(start))


class SplitTable(ChunkTable):
    """A chunk table without its windows."""

    _head: bytes
    _windows: Windows
    _starts: list[int]

    @classmethod
    def open_head(cls, head: Buffer, entry: BlobEntry, windows: OpenWindows) -> SplitTable:
        """Return the table whose first bytes are *head*.

        Raises FormatError if it contradicts itself or the blob table entry.
        """
        view = memoryview(head).cast("B")
        directory, sizes = _read_directory(view, entry)
        _, _, _, stored_size, context_count, context_size, _ = directory
        records_size = checked_table_size(entry) - context_size
        plain_size = records_size + context_count * CONTEXT_SIZE
        if not 0 <= records_size <= plain_size <= entry.ci_uncompressed_size:
            raise _bad(entry, "its directory contradicts the bootstrap")
        start = len(view) - stored_size
        payload = decompress(Compressor.ZSTD, view[start:], plain_size)
        header = CiHeader(
            features=entry.features,
            compressor=entry.ci_compressor,
            entries=entry.chunk_count,
            offset=entry.ci_offset,
            compressed_size=entry.ci_compressed_size,
            uncompressed_size=entry.ci_uncompressed_size,
            context_offset=records_size,
            context_size=context_size,
            context_count=context_count,
        )
        table = cls(payload, header, entry)
        table._head = bytes(view)
        table._windows = windows(len(view), sizes)
        table._starts = sorted({c.dict_offset for c in table.zran_contexts if c.dict_size})
        if len(table._starts) != len(sizes):
            raise _bad(entry, f"it has {len(sizes)} windows for {len(table._starts)}")
        return table

    def to_meta(self) -> bytes:
        """Return the form that :meth:`open_head` reads."""
        return self._head

    def zran_dictionary(self, context: ZranContext) -> memoryview:
        """Return the inflate window that a context starts with; raises what getting it raises."""
        if not context.dict_size:
            return memoryview(b"")
        if context.dict_size > MAX_ZRAN_DICTIONARY:
            raise self._bad("an inflate dictionary is too large")
        frame = self._windows.frame(self._number(context))
        return memoryview(decompress(Compressor.ZSTD, frame, context.dict_size))

    def preparations(self, pieces: Iterable[Piece]) -> Iterator[Callable[[], None]]:
        """Yield calls that get the windows which decoding needs and which are not here; they raise
        what getting a window raises.
        """
        for piece in pieces:
            number = self._window_of(piece)
            if number is not None and not self._windows.has(number):
                yield partial(self._get_window, number)

    def _get_window(self, number: int) -> None:
        self._windows.frame(number)

    def forget_prepared(self) -> None:
        """Get all windows anew when they are needed."""
        self._windows.forget()

    def _window_of(self, piece: Piece) -> int | None:
        if not self.chunk_flags(piece.first) & CHUNK_ZRAN:
            return None
        context = self.zran_contexts[self.zran_context_of(piece.first)]
        return self._number(context) if context.dict_size else None

    def _number(self, context: ZranContext) -> int:
        return bisect_left(self._starts, context.dict_offset)

    def _plain_size(self) -> int:
        context_bytes = self.header.context_count * CONTEXT_SIZE
        return self.header.context_offset + context_bytes


def _read_directory(view: memoryview, entry: BlobEntry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if len(view) < DIRECTORY.size:
        raise _bad(entry, "its directory is cut off")
    directory = DIRECTORY.unpack_from(view)
    magic, size, name, stored_size, context_count, _, count = directory
    if (magic, name) != (SKIPPABLE, NAME) or entry.ci_compressor != Compressor.ZSTD:
        raise _bad(entry, "it has no directory of windows")
    end = DIRECTORY.size + 4 * count
    if size != end - 8 or len(view) != end + stored_size:
        raise _bad(entry, "its directory has another length than it says")
    sizes = Struct(f"<{count}I").unpack_from(view, DIRECTORY.size)
    if context_count > entry.chunk_count or len(view) + sum(sizes) != entry.ci_compressed_size:
        raise _bad(entry, "its directory contradicts the bootstrap")
    return directory, sizes


def _bad(entry: BlobEntry, what: str) -> FormatError:
    return FormatError(f"chunk table of blob {entry.blob_id}: {what}")
