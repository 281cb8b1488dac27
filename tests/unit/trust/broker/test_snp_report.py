"""SNP reports in the form that trustee reads, by vectors that its own parser gave."""

from __future__ import annotations

import hashlib
import json
import struct
import uuid

import pytest

from lamina.errors import FormatError, UnsupportedError
from lamina.trust.broker.snp_report import REPORT_BYTES, encode_certificates, encode_report

TCBS = (0x38, 0x180, 0x1E0, 0x1F0)
MILAN, GENOA, TURIN = bytes([0x19, 1, 1]), bytes([0x19, 0x11, 1]), bytes([0x1A, 2, 1])


def made_up_report(version: int, processor: bytes) -> bytes:
    """Byte i is 7 i + 3, reserved bytes are zero."""
    report = bytearray((7 * i + 3) % 256 for i in range(REPORT_BYTES))
    mitigations = 0x208 if version == 5 else 0x1F8
    zeroed = [(0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (mitigations, 0x2A0)]
    zeroed.append((0x330, 0x4A0))
    if processor[0] != 0x1A:
        zeroed += [(tcb + 2, tcb + 6) for tcb in TCBS]
    for start, end in zeroed:
        report[start:end] = bytes(end - start)
    report[:4] = version.to_bytes(4, "little")
    report[0x188:0x18B] = processor
    return bytes(report)


def shown(report: bytes) -> str:
    return json.dumps(encode_report(report), separators=(",", ":"))


@pytest.mark.parametrize(
    ("version", "processor", "begins", "size", "digest"),
    [
        (3, MILAN, "fc68372161fea438", 2804,
         "b43d24b9702d54cbb8f4cb7feb26f2e01b5a6b917f479278c594e55c780c6178"),
        (3, GENOA, "0a49528239283f4f", 2805,
         "a2359614fe62b29e90e761eaca35c2ddc98bb6c86d1f1bb301b4c17976df62df"),
        (3, TURIN, "4671489fd683905b", 2799,
         "16df1e26467413479b192674a7b70f99cd55ce7d52b88540fcbda9e3c66c82fc"),
        (5, TURIN, "ab6927764c83a9d3", 2830,
         "a874f88e1e2338f57f792f1be12b9232c5e0f505a6e6412c93986e60a4d55fb7"),
    ],
    ids=["milan", "genoa", "turin", "turin-v5"],
)  # fmt: skip
def test_vectors(version: int, processor: bytes, begins: str, size: int, digest: str) -> None:
    report = made_up_report(version, processor)
    assert hashlib.sha256(report).hexdigest().startswith(begins)
    text = shown(report)
    assert len(text) == size
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_version_2_names_no_processor() -> None:
    found = encode_report(made_up_report(2, MILAN))
    assert [found[f"cpuid_{name}"] for name in ("fam_id", "mod_id", "step")] == [None] * 3
    assert found["current_tcb"]["fmc"] is None


@pytest.mark.parametrize("version", [0, 1, 6, 2**32 - 1])
def test_versions_that_nobody_knows(version: int) -> None:
    with pytest.raises(UnsupportedError, match=f"version {version} "):
        encode_report(made_up_report(version, MILAN))


@pytest.mark.parametrize("size", [0, 4, REPORT_BYTES - 1, REPORT_BYTES + 1])
def test_reports_of_another_length(size: int) -> None:
    with pytest.raises(FormatError, match=f"{size} bytes"):
        encode_report(bytes(size))


def table(*certificates: tuple[str, bytes]) -> bytes:
    """As a host lays it out: entries, an empty one, then the certificates."""
    head, data = b"", b""
    begin = 24 * (len(certificates) + 1)
    for name, content in certificates:
        head += uuid.UUID(name).bytes + struct.pack("<II", begin + len(data), len(content))
        data += content
    return head + bytes(24) + data


def test_certificates() -> None:
    other = "01234567-89ab-cdef-0123-456789abcdef"
    made = table(
        ("63da758d-e664-4564-adc5-f4b93be8accd", b"\x01\x02"),
        ("a8074bc2-a25a-483e-aae6-39c045a0b8a1", b"\x03"),
        ("4ab7b379-bbac-4fe4-a02f-05aef327c782", b"\x04"),
        ("c0b406a4-a803-4952-9743-3fb6014cd0ae", b"\x05"),
        ("92f81bc3-5811-4d3d-97ff-d19f88dc67ea", b"\x06"),
        (other, b"\x07"),
    )
    found = encode_certificates(made + bytes(100))
    kinds = ["VCEK", "VLEK", "ASK", "ARK", "CRL", {"OTHER": other}]
    assert [entry["cert_type"] for entry in found] == kinds
    assert [entry["data"] for entry in found] == [[1, 2], [3], [4], [5], [6], [7]]


@pytest.mark.parametrize("empty", [b"", bytes(10), bytes(24), bytes(4096)])
def test_no_certificates(empty: bytes) -> None:
    assert encode_certificates(empty) == []


def test_damaged_certificates() -> None:
    made = table(("63da758d-e664-4564-adc5-f4b93be8accd", b"certificate"))
    with pytest.raises(FormatError, match="damaged"):
        encode_certificates(made[:-1])
    with pytest.raises(FormatError, match="damaged"):
        encode_certificates(made[:16] + b"\xff" * 8 + made[24:])
    many = (uuid.UUID(int=5).bytes + bytes(8)) * 65
    with pytest.raises(FormatError, match="damaged"):
        encode_certificates(many)
