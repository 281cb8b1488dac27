"""Tables of contents that layers bring along: what those of eStargz and zstd:chunked share.

Both are JSON with the fields of tar headers and, for each part of a file, where in the compressed
layer it can be decompressed by itself and its SHA-256.  Sources: eStargz document of
stargz-snapshotter ("TOC, TOCEntries"); containers/storage, ``pkg/chunked`` ("FileMetadata").
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Final, NamedTuple

import msgspec

from lamina.archive import tar
from lamina.errors import FormatError

MAX_TOC_BYTES: Final = 64 << 20
"""Longest table that is read, in bytes of JSON."""

MAX_TOC_OBJECTS: Final = 1 << 18
"""Most entries of a table, with their lists of extended attributes.  It bounds memory: a layer with
more is read instead.
"""
SHA256: Final = re.compile(r"sha256:([0-9a-f]{64})")
TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII
)
KINDS: Final = {
    "reg": tar.REGULAR,
    "hardlink": tar.HARD_LINK,
    "symlink": tar.SYMLINK,
    "char": tar.CHARACTER,
    "block": tar.BLOCK_DEVICE,
    "dir": tar.DIRECTORY,
    "fifo": tar.FIFO,
}
CHUNK: Final = "chunk"
REPLACEMENT: Final = "\ufffd"
"""What Go writes for bytes of a name that are not UTF-8."""

_Size = Annotated[int, msgspec.Meta(ge=0, le=tar.MAX_FILE_BYTES)]


class JsonEntry(msgspec.Struct, rename="camel"):
    """An entry as it is written; absent fields are zero."""

    name: str
    type: str
    size: _Size = 0
    modtime: str = ""
    link_name: str = ""
    mode: _Size = 0
    uid: _Size = 0
    gid: _Size = 0
    dev_major: _Size = 0
    dev_minor: _Size = 0
    xattrs: dict[str, bytes] = {}
    digest: str = ""
    offset: _Size = 0
    inner_offset: _Size = 0
    end_offset: _Size = 0
    chunk_size: _Size = 0
    chunk_offset: _Size = 0
    chunk_digest: str = ""


class _Document(msgspec.Struct):
    version: int
    entries: list[JsonEntry]


class TocChunk(NamedTuple):
    """A part of a file: ``size`` bytes from ``inner_offset`` of what the layer yields from
    ``offset`` on.
    """

    offset: int
    inner_offset: int
    size: int
    sha256: bytes


class TocFile(NamedTuple):
    """An entry as it would be in the tar stream (``data_offset`` is 0), and its data in order."""

    entry: tar.Entry
    chunks: list[TocChunk]


class TocMember(NamedTuple):
    """The file in the tar stream that the table itself is, which it does not list."""

    entry: tar.Entry
    data: bytes
    offset: int
    inner_offset: int


class LayerToc(NamedTuple):
    """What a table says of a layer; its data ends before ``end``, in bytes of the layer."""

    compression: str
    files: list[TocFile]
    end: int
    itself: TocMember | None = None


def parse_entries(data: bytes) -> list[JsonEntry]:
    """Parse the JSON of a table.  Raises FormatError if it is malformed or too large."""
    if len(data) > MAX_TOC_BYTES or data.count(b"{") > MAX_TOC_OBJECTS:
        raise FormatError(f"the table of contents of {len(data)} bytes is too large")
    try:
        document = msgspec.json.decode(data, type=_Document)
    except RecursionError:
        raise FormatError("the table of contents is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise FormatError(f"the table of contents is malformed: {error}") from None
    if document.version != 1:
        raise FormatError(f"the table of contents has version {document.version}, not 1")
    return document.entries


def group_chunks(entries: list[JsonEntry]) -> Iterator[tuple[JsonEntry, list[JsonEntry]]]:
    """Yield each entry with those of its chunks that follow it.

    Raises FormatError for a chunk of another file than the one before it.
    """
    place = 0
    while place < len(entries):
        entry, start = entries[place], place + 1
        if entry.type == CHUNK:
            raise _bad(entry, "has a chunk that belongs to no file")
        place = start
        while place < len(entries) and entries[place].type == CHUNK:
            if entry.type != "reg" or entries[place].name != entry.name:
                raise _bad(entries[place], "has a chunk behind another file")
            place += 1
        yield entry, entries[start:place]


def tar_entry(entry: JsonEntry) -> tar.Entry:
    """Return an entry as :func:`lamina.archive.tar.walk` would; raises FormatError."""
    kind = KINDS.get(entry.type)
    if kind is None:
        raise _bad(entry, f"is of the unknown type {entry.type!r}")
    if REPLACEMENT in entry.name or REPLACEMENT in entry.link_name:
        raise _bad(entry, "has a name that the table cannot hold")
    is_device = kind in (tar.CHARACTER, tar.BLOCK_DEVICE)
    mtime, mtime_ns = _time(entry)
    try:
        return tar.checked(
            tar.Entry(
                entry.name.encode(),
                kind,
                entry.mode & 0o7777,
                entry.uid,
                entry.gid,
                mtime,
                mtime_ns,
                entry.size if kind == tar.REGULAR else 0,
                entry.link_name.encode() if kind in (tar.HARD_LINK, tar.SYMLINK) else b"",
                entry.dev_major if is_device else 0,
                entry.dev_minor if is_device else 0,
                {name.encode(): value for name, value in entry.xattrs.items()},
                0,
            )
        )
    except UnicodeError:
        raise _bad(entry, "has a name that is no text") from None


def file_parts(size_bytes: int, first: JsonEntry, others: list[JsonEntry]) -> list[TocChunk]:
    """Return the parts of a file, each of which is found by itself.

    Raises FormatError unless they make up the file, each with a SHA-256.
    """
    chunks: list[TocChunk] = []
    done = 0
    for part in (first, *others) if size_bytes else ():
        size = part.chunk_size or size_bytes - done
        if part.chunk_offset != done or not 0 < size <= size_bytes - done:
            raise _incomplete(first, size_bytes)
        is_all = size == size_bytes
        digest = sha256_of(part, part.chunk_digest or (part.digest if is_all else ""))
        chunks.append(TocChunk(part.offset, part.inner_offset, size, digest))
        done += size
    if done != size_bytes or len(chunks) < len(others):
        raise _incomplete(first, size_bytes)
    return chunks


def _incomplete(entry: JsonEntry, size_bytes: int) -> FormatError:
    return FormatError(f"the chunks of {entry.name[:200]!r} do not make up its {size_bytes} bytes")


def sha256_of(entry: JsonEntry, text: str) -> bytes:
    """Return the bytes of a digest of an entry; raises FormatError unless it is a SHA-256."""
    match = SHA256.fullmatch(text)
    if match is None:
        raise _bad(entry, "has data without a SHA-256")
    return bytes.fromhex(match[1])


def _time(entry: JsonEntry) -> tuple[int, int]:
    """Return seconds and nanoseconds of an RFC 3339 time; none is 0, as in the tar header."""
    if not entry.modtime:
        return 0, 0
    match = TIME.fullmatch(entry.modtime)
    if match is not None:
        with suppress(ValueError, OverflowError):
            when = datetime.fromisoformat(match[1] + match[3])
            return calendar.timegm(when.utctimetuple()), int((match[2] or "").ljust(9, "0"))
    raise _bad(entry, f"has the impossible time {entry.modtime[:40]!r}")


def _bad(entry: JsonEntry, what: str) -> FormatError:
    return FormatError(f"the table of contents is unusable: {entry.name[:200]!r} {what}")
