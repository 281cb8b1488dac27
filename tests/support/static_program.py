"""A program without libraries, for images that have none."""

from __future__ import annotations

import platform
import struct

import pytest

_BASE = 0x400000
_HEADERS_BYTES = 64 + 56
# geteuid(); exit(what it said)
_CODE = bytes.fromhex("b86b0000000f05 89c7 b83c0000000f05")


def euid_program() -> bytes:
    """An ELF program whose exit code is its effective user modulo 256; skips where it is none."""
    if platform.machine() != "x86_64":
        pytest.skip("the program is for x86-64")
    size = _HEADERS_BYTES + len(_CODE)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS_BYTES, 64, 0, 0, 64, 56, 1,
                         0, 0, 0)  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return ident + header + segment + _CODE
