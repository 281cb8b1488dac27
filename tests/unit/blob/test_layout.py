from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.blob.layout import CiHeader, pack_v1, pack_v2, parse_tar_header, tar_header


def test_ci_header_known_answer() -> None:
    header = CiHeader(0, 3, 0, 0, 0, 0, 0, 0, 0).pack()
    assert hashlib.sha256(header).hexdigest() == (
        "f56a1129d3df9fc7d60b26dbf495a60bda3dfc265f4f37854e4a36b826b660fc"
    )


@given(st.sampled_from(["image.blob", "blob.meta", "rafs.blob.toc"]), st.integers(0, 1 << 60))
def test_tar_headers_as_tarfile_reads_them(name: str, size: int) -> None:
    header = tar_header(name, size)
    assert parse_tar_header(header) == (name, size)
    info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    assert (info.name, info.size, info.type, info.mode) == (name, size, tarfile.REGTYPE, 0)


def test_headers_of_tarfile_are_understood() -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("image.boot")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"12345"))
    assert parse_tar_header(data.getvalue()[:512]) == ("image.boot", 5)


@pytest.mark.parametrize("offset", [0, 124, 148, 156, 257, 300])
def test_changed_headers_are_none(offset: int) -> None:
    header = bytearray(tar_header("image.boot", 77))
    header[offset] ^= 0x41
    assert parse_tar_header(bytes(header)) is None


@pytest.mark.parametrize("data", [b"", bytes(512), b"\xff" * 512, bytes(511)])
def test_noise_is_no_header(data: bytes) -> None:
    assert parse_tar_header(data) is None


def test_record_bits() -> None:
    # RAFS v6 §2.4: size-1 in 63-44 and 11-8, the offset in place in 43-12.
    assert pack_v1(0x3000, 0x123456, 0x77, 0xABCDEF) == (
        0x23455 << 44 | 0x3000 | 1 << 8,
        (0xBCDEE << 44) | (0xA << 40) | 0x77,
    )
    assert pack_v2(0x3000, 0x123456, 0x77, 0xABCDEF, 5, 9) == (
        5 << 56 | 0x123455 << 32 | 3,
        0xABCDEF << 40 | 0x77,
        9,
    )
