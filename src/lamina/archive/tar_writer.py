"""Write tar archives that depend on nothing but their content: pax headers only where ustar has no
room.

The order of records, the names of extended headers and every unused field are fixed, so equal
entries give equal bytes.
Sources: POSIX.1-2017 pax; extended attributes as ``SCHILY.xattr.`` records, as every container tool
reads them.
"""

from __future__ import annotations

from struct import Struct

from lamina.archive.tar import BLOCK, BLOCK_DEVICE, CHARACTER, DIRECTORY, REGULAR, Entry

# 0 name, 100 mode, 108 uid, 116 gid, 124 size, 136 mtime, 148 chksum, 156 typeflag, 157 linkname,
# 257 magic and version, 265 uname and gname, 329 devmajor, 337 devminor, 345 prefix
_HEADER = Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_MAGIC = b"ustar\x0000"
_MAX_SMALL = 0o7777777
_MAX_LARGE = 0o77777777777
PAX_NAME = b"././@PaxHeader"
END_MARK = bytes(2 * BLOCK)


def encode_entry(entry: Entry) -> bytes:
    """Return the header blocks of an entry; ``data_offset`` is ignored.  The data, then
    :func:`padding`, follow.
    """
    name = entry.path or b"."
    if entry.kind == DIRECTORY:
        name += b"/"
    records = _pax_records(entry, name)
    header = _header(entry, name)
    if not records:
        return header
    body = b"".join(_record(keyword, value) for keyword, value in sorted(records.items()))
    size = len(body)
    extension = _pack(PAX_NAME, 0o644, (0, 0, size, 0), b"x", b"", (0, 0), b"")
    return extension + body + padding(size) + header


def padding(size_bytes: int) -> bytes:
    """Return the zeros that follow ``size_bytes`` of data."""
    return bytes(-size_bytes % BLOCK)


def _pax_records(entry: Entry, name: bytes) -> dict[bytes, bytes]:
    records = {b"SCHILY.xattr." + key: value for key, value in entry.xattrs.items()}
    if _split(name) is None or not name.isascii():
        records[b"path"] = name
    if len(entry.link) > 100 or not entry.link.isascii():
        records[b"linkpath"] = entry.link
    for keyword, value, limit in (
        (b"uid", entry.uid, _MAX_SMALL),
        (b"gid", entry.gid, _MAX_SMALL),
        (b"size", entry.size, _MAX_LARGE),
    ):
        if value > limit:
            records[keyword] = b"%d" % value
    if entry.mtime_ns or not 0 <= entry.mtime <= _MAX_LARGE:
        records[b"mtime"] = _time(entry.mtime, entry.mtime_ns)
    return records


def _time(seconds: int, nanoseconds: int) -> bytes:
    total = seconds * 1_000_000_000 + nanoseconds
    whole, fraction = divmod(abs(total), 1_000_000_000)
    sign = b"-" if total < 0 else b""
    digits = b".%09d" % fraction if fraction else b""
    return sign + b"%d" % whole + digits.rstrip(b"0")


def _record(keyword: bytes, value: bytes) -> bytes:
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, keyword, value)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """Return (prefix, name) of a path that fits in an ustar header, else None."""
    if len(name) <= 100:
        return b"", name
    slash = name.rfind(b"/", 0, min(156, len(name) - 1))
    if slash <= 0 or len(name) - slash - 1 > 100:
        return None
    return name[:slash], name[slash + 1 :]


def _header(entry: Entry, name: bytes) -> bytes:
    prefix, short = _split(name) or (b"", name[:100])
    size = entry.size if entry.kind == REGULAR else 0
    mtime = entry.mtime if 0 <= entry.mtime <= _MAX_LARGE else 0
    numbers = (
        entry.uid if entry.uid <= _MAX_SMALL else 0,
        entry.gid if entry.gid <= _MAX_SMALL else 0,
        size if size <= _MAX_LARGE else 0,
        mtime,
    )
    device = entry.kind in (CHARACTER, BLOCK_DEVICE)
    numbers_of_device = (entry.device_major, entry.device_minor) if device else (0, 0)
    flag = bytes((entry.kind,))
    return _pack(short, entry.mode, numbers, flag, entry.link[:100], numbers_of_device, prefix)


def _pack(
    name: bytes,
    mode: int,
    numbers: tuple[int, int, int, int],
    flag: bytes,
    link: bytes,
    device: tuple[int, int],
    prefix: bytes,
) -> bytes:
    uid, gid, size, mtime = numbers
    fields = [
        name,
        b"%07o\0" % mode,
        b"%07o\0" % uid,
        b"%07o\0" % gid,
        b"%011o\0" % size,
        b"%011o\0" % mtime,
        b" " * 8,
        flag,
        link,
        _MAGIC,
        b"%07o\0" % device[0],
        b"%07o\0" % device[1],
        prefix,
    ]
    checksum = sum(_HEADER.pack(*fields))
    fields[6] = b"%06o\0 " % checksum
    return _HEADER.pack(*fields)


def file_entry(path: bytes, size_bytes: int, mode: int = 0o644) -> Entry:
    """Return the entry of a regular file of root's from 1970."""
    return Entry(path, REGULAR, mode, 0, 0, 0, 0, size_bytes, b"", 0, 0, {}, 0)
