"""Compressors of chunks and tables: one small registry over zstd, lz4 and gzip.

Every call takes and returns whole buffers and releases the GIL while it works.  Formats are those
of RAFS v6 §3.2: an lz4 *block* without a size prefix, one gzip member, one zstd frame with its
content size and without a checksum.
"""

from __future__ import annotations

import threading
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING

from lamina.errors import FormatError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zstandard
    from typing_extensions import Buffer

GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS
LARGE_BYTES = 4 << 20
"""What malloc gives as pages of its own (``M_MMAP_THRESHOLD``)."""


class Compressor(IntEnum):
    """Compression algorithms with the numbers they have on disk (RAFS v6 §0)."""

    NONE = 0
    LZ4_BLOCK = 1
    GZIP = 2
    ZSTD = 3


DEFAULT_LEVEL = {
    Compressor.NONE: 0,
    Compressor.LZ4_BLOCK: 0,
    Compressor.GZIP: 6,
    Compressor.ZSTD: 3,
}

LEVELS = {Compressor.ZSTD: range(-131072, 23), Compressor.LZ4_BLOCK: range(65538)}
"""Levels that the libraries take, of the compressors that have some."""


class _ThreadContexts(threading.local):
    """zstd contexts are not thread-safe, and making one costs more than a small chunk."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor: zstandard.ZstdDecompressor | None = None


_contexts = _ThreadContexts()


def compress(kind: Compressor, data: Buffer, level: int | None = None) -> bytes:
    """Return *data* compressed, even where that is longer than *data* itself.

    *level* is the algorithm's own scale (None: its default; lz4 takes it as acceleration, 0 or 1
    being the normal fast mode).
    """
    if level is None:
        level = DEFAULT_LEVEL[kind]
    if kind == Compressor.ZSTD:
        view = memoryview(data)
        frame = _zstd_compressor(level).compress(view)
        # The library's bytes take as much memory as the longest possible frame; of a large one, the
        # kernel has never given what is not used.
        return bytes(memoryview(frame)) if view.nbytes < LARGE_BYTES else frame
    if kind == Compressor.LZ4_BLOCK:
        import lz4.block

        packed: bytes = lz4.block.compress(
            data, mode="fast", acceleration=max(level, 1), store_size=False
        )
        return packed
    if kind == Compressor.GZIP:
        return zlib.compress(data, level, GZIP_WINDOW_BITS)
    return bytes(data)


def compress_all(
    kind: Compressor, pieces: Sequence[Buffer], level: int | None = None
) -> list[bytes]:
    """Return some buffers compressed, each as :func:`compress` does.

    Where the library can, the interpreter's lock is given up once for all of them: a thread that
    wants it back after each small piece waits for milliseconds while another one has it.
    """
    if kind == Compressor.ZSTD and len(pieces) > 1:
        compressor = _zstd_compressor(DEFAULT_LEVEL[kind] if level is None else level)
        together = getattr(compressor, "multi_compress_to_buffer", None)
        if together is not None:
            return [frame.tobytes() for frame in together(pieces)]
    return [compress(kind, piece, level) for piece in pieces]


def decompress(kind: Compressor, data: Buffer, size_bytes: int) -> bytes:
    """Return the plaintext of *data*, which must be exactly *size_bytes* long.

    Never allocates more than about *size_bytes*, whatever the compressed data claims.

    Raises FormatError: *data* is not valid for the algorithm; IntegrityError: it decodes to another
    length than promised.
    """
    if kind == Compressor.ZSTD:
        plain = _decompress_zstd(memoryview(data), size_bytes)
    elif kind == Compressor.LZ4_BLOCK:
        plain = _decompress_lz4(data, size_bytes)
    elif kind == Compressor.GZIP:
        plain = _decompress_gzip(data, size_bytes)
    else:
        plain = bytes(data)
    if len(plain) != size_bytes:
        raise _wrong_length(kind, len(plain), size_bytes)
    return plain


def _zstd_compressor(level: int) -> zstandard.ZstdCompressor:
    found = _contexts.compressors.get(level)
    if found is None:
        import zstandard

        found = zstandard.ZstdCompressor(level=level, write_content_size=True)
        _contexts.compressors[level] = found
    return found


def _decompress_zstd(data: memoryview, size_bytes: int) -> bytes:
    import zstandard

    if _contexts.decompressor is None:
        _contexts.decompressor = zstandard.ZstdDecompressor()
    try:
        # The library allocates what the frame header claims, so the claim is checked first.
        claimed = zstandard.frame_content_size(data)
        if claimed not in (-1, size_bytes):
            raise _wrong_length(Compressor.ZSTD, claimed, size_bytes)
        if size_bytes == 0:
            return b""
        return _contexts.decompressor.decompress(
            data, max_output_size=size_bytes, allow_extra_data=False
        )
    except (zstandard.ZstdError, ValueError) as error:
        raise FormatError(f"compressed data is not a valid zstd frame: {error}") from error


def _decompress_lz4(data: Buffer, size_bytes: int) -> bytes:
    import lz4.block

    try:
        plain: bytes = lz4.block.decompress(data, uncompressed_size=size_bytes)
    except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
        raise FormatError(f"compressed data is not a valid lz4 block: {error}") from error
    return plain


def _decompress_gzip(data: Buffer, size_bytes: int) -> bytes:
    engine = zlib.decompressobj(GZIP_WINDOW_BITS)
    try:
        plain = engine.decompress(data, size_bytes + 1)
    except zlib.error as error:
        raise FormatError(f"compressed data is not a valid gzip member: {error}") from error
    if len(plain) == size_bytes and not engine.eof:
        raise FormatError("compressed data is a gzip member that ends early")
    if engine.unused_data:
        raise FormatError("compressed data has bytes after its gzip member")
    return plain


def _wrong_length(kind: Compressor, found: int, expected: int) -> IntegrityError:
    return IntegrityError(
        f"compressed data ({kind.name.lower()}) holds {found} bytes where {expected} were promised"
    )
