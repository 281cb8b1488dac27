"""Walk a tar archive: ustar, pax and GNU headers, every entry that a container layer may hold.

What: :func:`walk` yields one :class:`Entry` an entry with extended headers already applied; the
caller may consume the file data from the reader before it asks for the next entry.  What not:
multi-volume archives, which raise UnsupportedError, and global pax records, which other tools for
containers pass over (docs/adr/0015).  Names and targets are bytes; a path is cleaned to components
joined by ``/`` without a leading or trailing one, and one that leads out of the tree is an error.

Sources: POSIX.1-2017 pax; GNU tar manual, "Basic Tar Format"; tar(5).  Header, 512 bytes::

    0 name 100 | 100 mode 8 | 108 uid 8 | 116 gid 8 | 124 size 12 | 136 mtime 12 | 148 chksum 8
    156 typeflag 1 | 157 linkname 100 | 257 magic 6 | 263 version 2 | 265 uname 32 | 297 gname 32
    329 devmajor 8 | 337 devminor 8 | 345 prefix 155 | 500 padding 12
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from lamina.archive import pax, sparse
from lamina.archive.blocks import BlockReader
from lamina.archive.tar_header import octal, usual_number, verify_first
from lamina.errors import FormatError, UnsupportedError

BLOCK = 512
HEADER = Struct("100s8s8s8s12s12s8sc100s8s64s8s8s155s12x")
ZERO_BLOCK = bytes(BLOCK)

MAX_EXTENSION_BYTES = 1 << 20
"""Longest pax header or GNU long name; Linux allows 64 KiB of extended attributes and 4 KiB of
path.
"""
MAX_RECORDS = 1024
"""Most pax records of one entry: they are looked through for every header."""
MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
MAX_TARGET_BYTES = 4095
MAX_XATTR_NAME_BYTES = 255
MAX_XATTR_BYTES = 65535
MAX_FILE_BYTES = 1 << 44
MAX_ID = 0xFFFFFFFF
MAX_MAJOR = 0xFFF
MAX_MINOR = 0xFFFFF
MAX_SECONDS = 1 << 62

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0123456"
KINDS = frozenset((REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))
CONTIGUOUS = b"7"
USTAR_MAGIC = b"ustar\0"

NO_RECORDS: dict[bytes, bytes] = {}


class Entry(NamedTuple):
    """One entry.  ``kind`` is the type flag's byte (:data:`REGULAR` ...); ``size`` and
    ``data_offset`` are bytes.

    ``path`` is empty for the root.  ``link`` is the target of a symbolic link, or the normalised
    path that a hard link names.  ``mode`` holds the permission bits only (0o7777).  ``segments``
    are the pieces of a sparse file, the data of which lies in order at ``data_offset``; None: the
    data is the whole file.
    """

    path: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    link: bytes
    device_major: int
    device_minor: int
    xattrs: dict[bytes, bytes]
    data_offset: int
    segments: tuple[sparse.Segment, ...] | None = None


class _Extensions:
    """Extended headers waiting for the entry they belong to."""

    __slots__ = ("link", "path", "records")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.records = NO_RECORDS
        self.path: bytes | None = None
        self.link: bytes | None = None

    @property
    def pending(self) -> bool:
        return self.records is not NO_RECORDS or self.path is not None or self.link is not None


def walk(reader: BlockReader, *, with_sparse: bool = False) -> Iterator[Entry]:
    """Yield the entries of an archive in order.

    After each, ``reader`` stands at the entry's data; what the caller leaves of it is skipped.  The
    walk ends at the end mark (two zero blocks) or where the stream ends after an entry, whose last
    block need not be filled up (``umoci insert``); what follows is left in the reader.

    Raises:
        FormatError: a damaged header, a path that leaves the tree, a truncated archive.
        UnsupportedError: multi-volume archives, unknown entry types, and sparse files unless
            ``with_sparse``.
    """
    extensions = _Extensions()
    while True:
        offset = reader.offset
        header = reader.take(BLOCK)
        if len(header) < BLOCK or header == ZERO_BLOCK:
            _check_end(reader, header, offset)
            if extensions.pending:
                raise FormatError("the archive ends after an extended header, before its entry")
            return
        fields = HEADER.unpack(header)
        verify_first(header, fields[6], offset)
        flag = fields[7]
        if flag in b"xXgLKVN":
            _read_extension(reader, flag, fields, extensions, offset)
            continue
        entry = _entry(fields, extensions, offset)
        stored, end = entry.size, entry.data_offset + entry.size
        if flag == sparse.OLD_FLAG or extensions.records:
            entry, end = _with_segments(entry, header, extensions.records, reader, with_sparse)
        if extensions.pending:
            extensions.clear()
        yield entry
        reader.skip_to(end)
        if stored % BLOCK:
            reader.skip_padding(-stored % BLOCK)


def _with_segments(
    entry: Entry, header: bytes, records: dict[bytes, bytes], reader: BlockReader, wanted: bool
) -> tuple[Entry, int]:
    """Return an entry with the map that it has if it is sparse, and where its data ends."""
    flag, stored = header[156:157], entry.size
    if not sparse.is_sparse(flag, records):
        return entry, entry.data_offset + stored
    if not wanted:
        raise sparse.sparse_error(entry.path)
    if entry.kind != REGULAR:
        raise FormatError("an entry of the archive is sparse and no file")
    begin = entry.data_offset
    if flag == sparse.OLD_FLAG:
        file = sparse.read_old_map(header, reader, lambda field: octal(field, "map", begin - BLOCK))
        begin = reader.offset
    else:
        file = sparse.read_pax_map(records, reader, stored)
    sparse.check(file, begin + stored - reader.offset)
    entry = entry._replace(size=file.size, data_offset=reader.offset, segments=file.segments)
    _check_ranges(entry, entry.size)
    return entry, begin + stored


def _check_end(reader: BlockReader, header: bytes, offset: int) -> None:
    if 0 < len(header) < BLOCK:
        if not offset:
            raise FormatError(
                "the archive ends inside its first header: it is no tar archive, or hardly the "
                "beginning of one"
            )
        raise FormatError(
            f"the archive ends inside a header, at offset {offset}",
            hint="the layer is truncated or damaged; fetch it again",
        )
    if header and reader.take(BLOCK).strip(b"\0"):
        raise FormatError(f"a lone zero block at offset {offset} is followed by more data")


def _read_extension(
    reader: BlockReader, flag: bytes, fields: tuple[bytes, ...], into: _Extensions, offset: int
) -> None:
    size = octal(fields[4], "size", offset)
    if flag == b"N":
        raise UnsupportedError(f"the tar entry at offset {offset} is in an old GNU long name form")
    if not 0 <= size <= MAX_EXTENSION_BYTES:
        raise FormatError(f"the extended tar header at offset {offset} claims {size} bytes")
    data = reader.copy(size)
    reader.skip(-size % BLOCK)
    if flag == b"L":
        into.path = data.partition(b"\0")[0]
    elif flag == b"K":
        into.link = data.partition(b"\0")[0]
    elif flag not in b"gV":
        into.records = _bounded({**into.records, **pax.parse_records(data, offset + BLOCK)}, offset)


def _bounded(records: dict[bytes, bytes], offset: int) -> dict[bytes, bytes]:
    """Bound what the headers before one entry may take together; one is not too large by itself."""
    size = sum(map(len, records)) + sum(map(len, records.values()))
    if size > MAX_EXTENSION_BYTES or len(records) > MAX_RECORDS:
        raise FormatError(f"the extended tar headers before offset {offset} are too large together")
    return records


def _entry(fields: tuple[bytes, ...], extensions: _Extensions, offset: int) -> Entry:
    raw_path = _raw_path(fields, extensions)
    kind = _kind(fields[7], raw_path, offset)
    mode, uid, gid, size, mtime = _numbers(fields, offset)
    if kind in (REGULAR, DIRECTORY) and extensions.records is NO_RECORDS:
        path = _normalise(raw_path)
        entry = Entry(
            path, kind, mode, uid, gid, mtime, 0, size if kind == REGULAR else 0, b"", 0, 0,
            NO_RECORDS, offset + BLOCK,
        )  # fmt: skip
        # The common case by one condition; what else can be wrong is worked out where it fails.
        if not (
            0 <= uid <= MAX_ID
            and 0 <= gid <= MAX_ID
            and 0 <= size <= MAX_FILE_BYTES
            and -MAX_SECONDS <= mtime <= MAX_SECONDS
            and 0 < len(path) <= MAX_NAME_BYTES
            and b"\0" not in path
        ):
            _check_ranges(entry, size)
        return entry
    return _full_entry(fields, extensions, raw_path, kind, offset)


def _full_entry(
    fields: tuple[bytes, ...], extensions: _Extensions, raw_path: bytes, kind: int, offset: int
) -> Entry:
    records = extensions.records
    mode, uid, gid, size, mtime = _numbers(fields, offset)
    mtime_ns = 0
    link = extensions.link if extensions.link is not None else fields[8].partition(b"\0")[0]
    xattrs = NO_RECORDS
    if records:
        link = records.get(b"linkpath") or link
        uid = _either(pax.parse_number(records, b"uid"), uid)
        gid = _either(pax.parse_number(records, b"gid"), gid)
        size = _either(pax.parse_number(records, b"size"), size)
        if records.get(b"mtime"):
            mtime, mtime_ns = pax.parse_time(records[b"mtime"])
        xattrs = pax.parse_xattrs(records)
    major = minor = 0
    if kind in (CHARACTER, BLOCK_DEVICE):
        major, minor = octal(fields[11], "major", offset), octal(fields[12], "minor", offset)
    entry = Entry(
        _normalise(raw_path),
        kind,
        mode,
        uid,
        gid,
        mtime,
        mtime_ns,
        size if kind == REGULAR else 0,
        link if kind in (HARD_LINK, SYMLINK) else b"",
        major,
        minor,
        xattrs,
        offset + BLOCK,
    )
    _check_ranges(entry, size)
    return entry._replace(link=_normalise(link)) if kind == HARD_LINK else entry


def _numbers(fields: tuple[bytes, ...], offset: int) -> tuple[int, int, int, int, int]:
    """Return mode, uid, gid, size and mtime."""
    size = octal(fields[4], "size", offset)
    try:
        return (
            usual_number(fields[1]) & 0o7777,
            usual_number(fields[2]),
            usual_number(fields[3]),
            size,
            usual_number(fields[5]),
        )
    except ValueError:
        for number, what in ((2, "uid"), (3, "gid"), (5, "mtime"), (1, "mode")):
            octal(fields[number], what, offset)
        raise


def _either(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _raw_path(fields: tuple[bytes, ...], extensions: _Extensions) -> bytes:
    records = extensions.records
    path = records.get(sparse.NAME) or records.get(b"path") or extensions.path
    if path is None:
        path = fields[0].partition(b"\0")[0]
        # Only POSIX headers have a prefix; GNU ones keep other things there.
        if fields[13][0] and fields[9].startswith(USTAR_MAGIC):
            path = fields[13].partition(b"\0")[0] + b"/" + path
    return path


def _kind(flag: bytes, path: bytes, offset: int) -> int:
    number = flag[0]
    if number in KINDS:
        return number
    if flag == b"\0":
        return DIRECTORY if path.endswith(b"/") else REGULAR
    if flag in (CONTIGUOUS, sparse.OLD_FLAG):
        return REGULAR
    raise UnsupportedError(
        f"the tar entry {path.decode('utf-8', 'replace')!r} at offset {offset} is of type "
        f"{flag!r}, which container layers do not have"
    )


def _normalise(path: bytes) -> bytes:
    trimmed = path.strip(b"/")
    if trimmed.startswith(b"./"):
        trimmed = trimmed[2:].strip(b"/")
    if b"/." not in trimmed and b"//" not in trimmed and not trimmed.startswith(b"."):
        return trimmed
    parts: list[bytes] = []
    for part in trimmed.split(b"/"):
        if part == b"..":
            # By the name alone, as other tools do it, and not through links.
            if not parts:
                raise _upwards(path)
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    if not parts and b".." in trimmed:
        raise _upwards(path)
    return b"/".join(parts)


def _upwards(path: bytes) -> FormatError:
    return FormatError(
        f"the path {path[:200].decode('utf-8', 'replace')!r} in the archive leads upwards",
        hint="no well-made layer has such paths; do not trust this one",
    )


def checked(entry: Entry) -> Entry:
    """Return an entry that was found elsewhere with its paths normalised; raises FormatError for
    what no entry can be.
    """
    entry = entry._replace(path=_normalise(entry.path))
    _check_ranges(entry, entry.size)
    return entry._replace(link=_normalise(entry.link)) if entry.kind == HARD_LINK else entry


def _check_ranges(entry: Entry, size: int) -> None:
    shown = entry.path[:200].decode("utf-8", "replace")
    for value, limit, what in (
        (entry.uid, MAX_ID, "user id"),
        (entry.gid, MAX_ID, "group id"),
        (size, MAX_FILE_BYTES, "size"),
        (abs(entry.mtime), MAX_SECONDS, "modification time"),
        (len(entry.path), MAX_PATH_BYTES, "path length"),
        (max(map(len, entry.path.split(b"/"))), MAX_NAME_BYTES, "name length"),
        (len(entry.link), MAX_TARGET_BYTES, "link target length"),
        (entry.device_major, MAX_MAJOR, "major device number"),
        (entry.device_minor, MAX_MINOR, "minor device number"),
    ):
        if not 0 <= value <= limit:
            raise FormatError(
                f"the entry {shown!r} in the archive has an impossible {what}: {value}"
            )
    _check_texts(entry, shown)


def _check_texts(entry: Entry, shown: str) -> None:
    if b"\0" in entry.path or b"\0" in entry.link:
        raise FormatError(
            f"the entry {shown!r} in the archive has a zero byte in its name or target"
        )
    if entry.kind == SYMLINK and not entry.link:
        raise FormatError(f"the symbolic link {shown!r} in the archive has no target")
    if not entry.path and entry.kind != DIRECTORY:
        raise FormatError(
            "an entry in the archive would replace the root of the tree by something else"
        )
    for name, value in entry.xattrs.items():
        if (
            not 0 < len(name) <= MAX_XATTR_NAME_BYTES
            or len(value) > MAX_XATTR_BYTES
            or b"\0" in name
        ):
            raise FormatError(
                f"the entry {shown!r} in the archive has an impossible extended attribute, "
                f"{name[:80]!r}"
            )
