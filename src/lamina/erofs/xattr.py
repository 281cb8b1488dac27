"""Inline extended attributes: a header of 12 bytes and entries padded to 4 (RAFS v6 §1.15)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lamina.erofs.layout import (
    MAX_NAME_SIZE,
    MAX_XATTR_VALUE_SIZE,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_PREFIXES,
    XATTR_WHOLE_NAMES,
    round_up,
)
from lamina.errors import FormatError

HEADER = XATTR_HEADER.pack(0, 0)
MAX_AREA_SIZE = XATTR_HEADER.size + (0xFFFF - 1) * 4


def encode_xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    """Return the area that follows an inode, sorted by name; ``xattrs`` maps full names to values.

    Raises:
        FormatError: a name outside the namespaces that EROFS knows, or something too long for its
            field.
    """
    parts = [HEADER]
    for name, value in sorted(xattrs.items()):
        index, suffix = _split_name(name)
        if len(suffix) > MAX_NAME_SIZE or len(value) > MAX_XATTR_VALUE_SIZE:
            raise FormatError(f"extended attribute {name!r} is too long")
        entry = XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value
        parts.append(entry.ljust(round_up(len(entry), 4), b"\0"))
    area = b"".join(parts)
    if len(area) > MAX_AREA_SIZE:
        raise FormatError(
            f"extended attributes take {len(area)} bytes; at most {MAX_AREA_SIZE} fit"
        )
    return area


def is_storable(name: bytes) -> bool:
    """Say whether EROFS has a place for an attribute of this full name."""
    try:
        _split_name(name)
    except FormatError:
        return False
    return True


class XattrEntry(NamedTuple):
    """One attribute: its full name, its value, and where its entry begins in the area."""

    position: int
    name: bytes
    value: bytes


def decode_xattrs(area: bytes, nid: int) -> dict[bytes, bytes]:
    """Return full name -> value of the attribute area of inode ``nid``.

    Raises:
        FormatError: as :func:`xattr_entries`, or a name twice.
    """
    found: dict[bytes, bytes] = {}
    for _, name, value in xattr_entries(area, nid):
        if name in found:
            raise FormatError(f"inode {nid}: extended attribute {name!r} is not valid")
        found[name] = value
    return found


def xattr_entries(area: bytes, nid: int) -> Iterator[XattrEntry]:
    """Yield the attributes in the area of inode ``nid``.

    Raises:
        FormatError: shared attributes, an unknown prefix, or an entry that leaves the area.
    """
    if len(area) < XATTR_HEADER.size or XATTR_HEADER.unpack_from(area)[1] != 0:
        raise FormatError(f"inode {nid}: its extended attributes are shared, which RAFS never does")
    position = XATTR_HEADER.size
    while position < len(area):
        name_size, index, value_size = XATTR_ENTRY.unpack_from(area, position)
        name_start = position + XATTR_ENTRY.size
        value_start = name_start + name_size
        end = value_start + value_size
        prefix = XATTR_PREFIXES.get(index)
        if prefix is None or end > len(area):
            raise FormatError(f"inode {nid}: damaged extended attribute at byte {position}")
        name = prefix + area[name_start:value_start]
        whole = index in XATTR_WHOLE_NAMES
        if b"\0" in name or whole != (name_size == 0):
            raise FormatError(f"inode {nid}: extended attribute {name!r} is not valid")
        yield XattrEntry(position, name, area[value_start:end])
        position = round_up(end, 4)


def _split_name(name: bytes) -> tuple[int, bytes]:
    for index, prefix in XATTR_PREFIXES.items():
        if index in XATTR_WHOLE_NAMES:
            if name == prefix:
                return index, b""
        elif name.startswith(prefix) and len(name) > len(prefix) and b"\0" not in name:
            return index, name[len(prefix) :]
    raise FormatError(
        f"extended attribute {name!r} is in no namespace that EROFS can store",
        hint="user.*, trusted.*, security.* and the two POSIX ACLs can be stored",
    )
