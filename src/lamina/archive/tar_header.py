"""The numbers and the checksum of a tar header (POSIX.1-2017 pax; GNU base-256 numbers)."""

from __future__ import annotations

import zlib

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
            "This is no tar archive, whatever its media type says: its first block is no tar "
            "header.",
            hint="It may be an artifact that is no image, or an image that was built wrongly.",
        ) from None


def _verify_checksum(header: bytes, field: bytes, offset: int) -> None:
    """Compare modulo 65521 first: adler32 has the sum of the bytes, plus one, in its low half."""
    found = octal(field, "checksum", offset)
    expected = found + sum(field) - 8 * 0x20 + 1
    if expected % 65521 == zlib.adler32(header) & 0xFFFF:
        return
    # Some old writers summed signed bytes.
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:])
    if signed + 8 * 0x20 != found:
        raise FormatError(
            f"The tar header at offset {offset} is damaged: its checksum does not match.",
            hint="The layer is damaged or is not a tar archive.",
        )


def octal(field: bytes, what: str, offset: int) -> int:
    """Return a number field: octal text, empty (0), or base-256 if the first bit is set (GNU)."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if value >> (bits - 1) else value
    text = field.partition(b"\0")[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise FormatError(
            f"The {what} field of the tar header at offset {offset} is {field!r}, not a number."
        ) from None
