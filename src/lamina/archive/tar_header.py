"""The numbers and the checksum of a tar header (POSIX.1-2017 pax; GNU base-256 numbers)."""

from __future__ import annotations

import zlib
from functools import lru_cache

from lamina.errors import FormatError


def verify_first(header: bytes, field: bytes, offset: int) -> None:
    """Verify the checksum of a header at ``offset``; what does not even begin as a tar is none.

    Raises:
        FormatError: the checksum is another, or the first header is none.
    """
    try:
        _verify_checksum(header, field, offset)
    except FormatError:
        if offset or header[257:262] == b"ustar":
            raise
        raise FormatError(
            "this is no tar archive, whatever its media type says: its first block is no tar "
            "header",
            hint="it may be an artifact that is no image, or an image that was built wrongly",
        ) from None


def _verify_checksum(header: bytes, field: bytes, offset: int) -> None:
    """Compare modulo 65521 first: adler32 has the sum of the bytes, plus one, in its low half."""
    try:
        if _expected(field) == zlib.adler32(header) & 0xFFFF:
            return
    except ValueError:
        pass
    found = octal(field, "checksum", offset)
    # Some old writers summed signed bytes.
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:])
    if signed + 8 * 0x20 != found:
        raise FormatError(
            f"the tar header at offset {offset} is damaged: its checksum does not match",
            hint="the layer is damaged or is not a tar archive",
        )


@lru_cache(4096)
def _expected(field: bytes) -> int:
    return (_number(field) + sum(field) - 8 * 0x20 + 1) % 65521


def octal(field: bytes, what: str, offset: int) -> int:
    """Return a number field: octal text, empty (0), or base-256 if the first bit is set (GNU)."""
    try:
        return _number(field)
    except ValueError:
        raise FormatError(
            f"the {what} field of the tar header at offset {offset} is {field!r}, not a number"
        ) from None


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if value >> (bits - 1) else value
    text = field.partition(b"\0")[0].strip()
    return int(text, 8) if text else 0


@lru_cache(4096)
def usual_number(field: bytes) -> int:
    """Return a number field that many headers have alike, as mode, owner and times.

    Raises:
        ValueError: it is no number; :func:`octal` says it in words.
    """
    return _number(field)
