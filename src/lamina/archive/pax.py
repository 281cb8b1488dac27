"""Pax extended headers: the records that replace or extend fields of a tar header.

Each record is ``LENGTH SP KEYWORD = VALUE LF`` with the decimal length of the whole record
(POSIX.1-2017, pax, "pax Extended Header").  Values are kept as bytes: paths and extended attributes
need not be UTF-8.
"""

from __future__ import annotations

from lamina.errors import FormatError

SCHILY_XATTR = b"SCHILY.xattr."
LIBARCHIVE_XATTR = b"LIBARCHIVE.xattr."
SPARSE_OFFSET = b"GNU.sparse.offset"
SPARSE_BYTES = b"GNU.sparse.numbytes"
SPARSE_MAP = b"GNU.sparse.map"

NANOSECOND_DIGITS = 9
MAX_SECONDS = 1 << 62


def parse_records(data: bytes, offset: int) -> dict[bytes, bytes]:
    """Return the records of one extended header whose data starts at ``offset`` in the archive.

    The pairs of records in which GNU's sparse form 0.0 repeats two keywords become the one record
    that form 0.1 has.  Raises FormatError for a record that is not well-formed.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        length_text = data[position:space] if space > 0 else b""
        if not length_text.isdigit():
            if not data[position:].strip(b"\0"):
                break
            raise _malformed(offset + position, "it has no length")
        end = position + int(length_text)
        equals = data.find(b"=", space, end)
        if end > len(data) or equals < 0 or data[end - 1 : end] != b"\n":
            raise _malformed(offset + position, "its length is wrong")
        keyword, value = data[space + 1 : equals], data[equals + 1 : end - 1]
        if keyword in (SPARSE_OFFSET, SPARSE_BYTES):
            if b"," in value or keyword != (SPARSE_OFFSET, SPARSE_BYTES)[len(sparse) % 2]:
                raise _malformed(offset + position, "it is out of order")
            sparse.append(value)
        else:
            records[keyword] = value
        position = end
    return {**records, SPARSE_MAP: b",".join(sparse)} if sparse else records


def parse_number(records: dict[bytes, bytes], keyword: bytes) -> int | None:
    """Return a decimal record as a non-negative number, None if it is absent or empty."""
    text = records.get(keyword)
    if not text:
        return None
    if not text.isdigit() or len(text) > 20:
        raise FormatError(f"the pax record {keyword.decode()} is {text[:40]!r}, not a number")
    return int(text)


def parse_time(text: bytes) -> tuple[int, int]:
    """Return (seconds, nanoseconds) of a decimal time, rounded down; nanoseconds are never
    negative.
    """
    whole, _, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    digits = whole.removeprefix(b"-")
    if not (digits or fraction) or not (digits + fraction).isdigit() or len(digits) > 20:
        raise FormatError(f"the pax time {text[:40]!r} is not a decimal number")
    seconds = int(digits or b"0")
    nanoseconds = int(fraction[:NANOSECOND_DIGITS].ljust(NANOSECOND_DIGITS, b"0"))
    if seconds > MAX_SECONDS:
        raise FormatError(f"the pax time {text[:40]!r} is out of range")
    if not negative:
        return seconds, nanoseconds
    lost = bool(fraction[NANOSECOND_DIGITS:].strip(b"0"))
    total = -(seconds * 1_000_000_000 + nanoseconds + lost)
    return divmod(total, 1_000_000_000)


def parse_xattrs(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the extended attributes among the records; star's raw form wins over libarchive's
    base64.
    """
    xattrs: dict[bytes, bytes] = {}
    for keyword, value in records.items():
        if keyword.startswith(LIBARCHIVE_XATTR):
            xattrs.setdefault(*_decode_libarchive(keyword, value))
        elif keyword.startswith(SCHILY_XATTR):
            xattrs[keyword[len(SCHILY_XATTR) :]] = value
    return xattrs


def _decode_libarchive(keyword: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return (name, value) of an attribute with its name in percent-encoding, its value base64."""
    import base64
    import binascii
    from urllib.parse import unquote_to_bytes

    name = unquote_to_bytes(keyword[len(LIBARCHIVE_XATTR) :])
    try:
        return name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise FormatError(f"the pax record {keyword[:80]!r} is not base64") from error


def _malformed(offset: int, why: str) -> FormatError:
    return FormatError(f"the pax record at offset {offset} is malformed: {why}")
