"""A layer's bytes as the tar stream inside: gzip of any number of members, zstd of any frames, or
plain tar.

What is inside is told by its first bytes, not by the media type, which registries often get wrong.
Output is bounded in every call, so a small file that claims to be huge costs no memory;
``max_bytes`` bounds the sum.
Sources: RFC 1952 (gzip), RFC 8878 (zstd).
"""

from __future__ import annotations

import gzip
import io
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from lamina.archive import zstd_frames
from lamina.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

INPUT_BYTES = 128 << 10
READ_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
MAX_ZSTD_WINDOW_BYTES = 1 << 27
"""What ``zstd --long`` uses; larger windows would let one layer take gigabytes of memory."""
DEFAULT_MAX_BYTES = 1 << 40
"""Longest tar stream accepted unless the caller says otherwise."""

TAR_MEDIA_TYPES = ("", "application/octet-stream", "application/x-tar", "application/gzip")


class _Decoder(Protocol):
    def read(self, size_bytes: int) -> bytes:
        """Return up to ``size_bytes`` decoded bytes; b"" only at the end."""


class _Input:
    """The compressed bytes, with a look ahead."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._raw_readinto: Callable[[memoryview], int] | None = getattr(raw, "readinto", None)
        self.pending: bytes = b""
        self.ended = False

    def peek(self, size_bytes: int) -> bytes:
        """Return at least ``size_bytes`` of what comes next (fewer at the end) without consuming
        it.
        """
        while len(self.pending) < size_bytes and self.refill():
            pass
        return self.pending[:size_bytes]

    def refill(self) -> bool:
        """Append a piece to ``pending``; False at the end."""
        more = self._raw.read(INPUT_BYTES)
        if not more:
            self.ended = True
            return False
        self.pending = self.pending + more if self.pending else bytes(more)
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes."""
        if not self.pending:
            return self._raw.read(size)
        data, self.pending = self.pending, b""
        if 0 <= size < len(data):
            data, self.pending = data[:size], data[size:]
        return data

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a buffer as far as one read goes."""
        view = memoryview(buffer).cast("B")
        if not self.pending and self._raw_readinto is not None:
            return self._raw_readinto(view)
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def take_all(self) -> bytes:
        """Return what is pending or, if nothing is, the next piece; b"" at the end."""
        if not self.pending and not self.refill():
            return b""
        data, self.pending = self.pending, b""
        return data


class _PlainDecoder:
    def __init__(self, source: _Input) -> None:
        self._source = source
        self._raw_read = source._raw.read

    def read(self, size_bytes: int) -> bytes:
        if self._source.pending:
            data = self._source.take_all()
            self._source.pending = data[size_bytes:]
            return data[:size_bytes]
        return self._raw_read(size_bytes)


class _GzipDecoder:
    """Members one after the other; zeros after the last one are padding, all else is an error."""

    def __init__(self, source: _Input) -> None:
        open_file, self._error = _gzip_reader()
        self._file: BinaryIO = open_file(fileobj=source, mode="rb")
        self._is_begun = False

    def read(self, size_bytes: int) -> bytes:
        try:
            plain = self._file.read(size_bytes)
        except EOFError:
            raise _truncated("gzip") from None
        except gzip.BadGzipFile as error:
            if self._is_begun and str(error).startswith("Not a gzipped file"):
                raise FormatError(
                    "the layer has bytes after its last gzip member that are not gzip"
                ) from None
            raise _not_gzip(error) from error
        except (self._error, OverflowError) as error:
            # The latter for a header that is larger than any buffer.
            raise _not_gzip(error) from error
        self._is_begun = True
        return plain


def _not_gzip(error: Exception) -> FormatError:
    return FormatError(
        f"the layer is not valid gzip: {error}", hint="the layer is damaged; fetch it again"
    )


def _gzip_reader() -> tuple[Any, Any]:
    """Return (the file class of gzip members, the error of its inflate); isal is twice as fast as
    zlib.
    """
    try:
        from isal import igzip, isal_zlib
    except ImportError:
        return gzip.GzipFile, zlib.error
    return igzip.IGzipFile, isal_zlib.error


class _ZstdDecoder:
    """Frames and skippable frames one after the other."""

    def __init__(self, source: _Input) -> None:
        import zstandard

        self._source = source
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
        self._engine: Any = None
        self._cursor: zstd_frames.FrameCursor | None = None
        self._ready = b""

    def read(self, size_bytes: int) -> bytes:
        while not self._ready:
            if self._cursor is None and not self._next_frame():
                return b""
            self._ready = self._decode()
        plain, self._ready = self._ready[:size_bytes], self._ready[size_bytes:]
        return plain

    def _decode(self) -> bytes:
        cursor, source = self._cursor, self._source
        assert cursor is not None
        data = source.pending
        length = cursor.advance(data, READ_BYTES)
        if not length and not cursor.finished:
            if not source.refill():
                raise _truncated("zstd")
            return b""
        source.pending = data[length:]
        try:
            plain: bytes = self._engine.decompress(data[:length])
        except self._error as error:
            raise FormatError(
                f"the layer is not valid zstd: {error}",
                hint="the layer is damaged; fetch it again",
            ) from error
        if cursor.finished:
            self._cursor = None
        return plain

    def _next_frame(self) -> bool:
        source = self._source
        while True:
            magic = source.peek(4)
            if not magic.strip(b"\0") and not self._skip_padding():
                return False
            magic = source.peek(4)
            if magic == zstd_frames.MAGIC:
                head = source.peek(zstd_frames.MAX_FRAME_HEADER_BYTES)
                if len(head) < 5:
                    raise _truncated("zstd")
                self._cursor = zstd_frames.FrameCursor(head)
                self._engine = self._decompressor.decompressobj()
                return True
            if len(magic) < 4 or not zstd_frames.is_skippable(magic):
                raise FormatError(
                    "the layer has bytes between or after its zstd frames that are not zstd"
                )
            self._skip_frame()

    def _skip_padding(self) -> bool:
        source = self._source
        source.pending = source.pending.lstrip(b"\0")
        while not source.pending and source.refill():
            source.pending = source.pending.lstrip(b"\0")
        return bool(source.pending)

    def _skip_frame(self) -> None:
        head = self._source.peek(8)
        if len(head) < 8:
            raise _truncated("zstd")
        left = 8 + int.from_bytes(head[4:8], "little")
        while left:
            data = self._source.take_all()
            if not data:
                raise _truncated("zstd")
            self._source.pending = data[left:]
            left -= min(left, len(data))


def _truncated(what: str) -> FormatError:
    return FormatError(
        f"the layer ends in the middle of its {what} data",
        hint="the layer is truncated; fetch it again",
    )


class LayerStream(io.RawIOBase):
    """The decompressed layer.  ``compression`` is "gzip", "zstd" or "none"; closing it leaves the
    source open.
    """

    def __init__(self, raw: BinaryIO, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        source = _Input(raw)
        self.compression, self._decoder = _sniff(source)
        self._max_bytes = max_bytes
        self._total = 0

    def readable(self) -> bool:
        """Tell that it can be read (:class:`io.RawIOBase`)."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes (all that is left if negative); b"" only at the end.

        Raises FormatError for damaged or truncated data, and where the stream grows past
        ``max_bytes``.
        """
        if size < 0:
            return b"".join(iter(lambda: self.read(READ_BYTES), b""))
        data = self._decoder.read(size) if size else b""
        self._total += len(data)
        if self._total > self._max_bytes:
            raise FormatError(
                f"the layer decompresses to more than the allowed {self._max_bytes} bytes",
                hint="if it is really that large, raise the limit; else it is a bomb",
            )
        return data

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a buffer as far as one :meth:`read` goes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def _sniff(source: _Input) -> tuple[str, _Decoder]:
    magic = source.peek(4)
    if magic[:2] == GZIP_MAGIC:
        return "gzip", _GzipDecoder(source)
    if magic == zstd_frames.MAGIC or (len(magic) == 4 and zstd_frames.is_skippable(magic)):
        return "zstd", _ZstdDecoder(source)
    return "none", _PlainDecoder(source)


def open_layer(
    raw: BinaryIO, media_type: str = "", max_bytes: int = DEFAULT_MAX_BYTES
) -> LayerStream:
    """Return the tar stream of a layer blob.  ``raw`` stays the caller's to close.

    Raises UnsupportedError for a media type that is no tar layer (encrypted layers, artifacts).
    """
    check_media_type(media_type)
    return LayerStream(raw, max_bytes)


def check_media_type(media_type: str) -> None:
    """Raise UnsupportedError unless ``media_type`` is one of a tar layer in any compression."""
    base = media_type.partition(";")[0].strip()
    if base in TAR_MEDIA_TYPES:
        return
    if base.endswith("+encrypted"):
        raise UnsupportedError(
            f"the layer is encrypted (media type {base})", hint="decrypt the image first"
        )
    stem = base.partition("+")[0]
    if not stem.endswith((".tar", ".tar.gzip", ".tar.zstd", ".diff.tar")):
        raise UnsupportedError(f"the layer is no tar archive (media type {base or 'missing'})")
