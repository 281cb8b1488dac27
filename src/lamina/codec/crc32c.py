"""CRC-32C (Castagnoli), reflected, all ones at both ends (RFC 3720 B.4, RAFS v6 §3.3).

A table in pure Python, meant for records of a few KiB.  Chunks are verified by their digests
instead.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

POLYNOMIAL = 0x82F63B78


@cache
def _table() -> tuple[int, ...]:
    values = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        values.append(value)
    return tuple(values)


def crc32c(data: Buffer, value: int = 0) -> int:
    """Return the CRC-32C of *data*, continuing from *value*, the CRC of what came before."""
    table = _table()
    value ^= 0xFFFFFFFF
    for byte in memoryview(data).cast("B"):
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
