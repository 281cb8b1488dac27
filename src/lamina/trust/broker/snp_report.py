"""Reports of SEV-SNP in the JSON form that trustee's verifier reads.

It is how the Rust crate ``sev`` (6.3 and 7.1) writes its structures: integers as numbers, byte
fields as lists of numbers, what a version of the report lacks as null.
Sources: AMD 56860 (SEV-SNP firmware ABI, table of the attestation report), AMD 56421 (GHCB,
certificate table of an extended guest request).
"""

from __future__ import annotations

import struct
import uuid
from typing import Any, Final

from lamina.errors import FormatError, UnsupportedError

REPORT_BYTES: Final = 0x4A0
HOST_DATA: Final = slice(0xC0, 0xE0)
_FIRST_VERSION, _LAST_VERSION = 2, 5
_TURIN_FAMILY: Final = 0x1A
_ENTRY: Final = struct.Struct("<16sII")
_MAX_CERTIFICATES: Final = 64
_CERTIFICATES: Final = {
    "63da758d-e664-4564-adc5-f4b93be8accd": "VCEK",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1": "VLEK",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ASK",
    "c0b406a4-a803-4952-9743-3fb6014cd0ae": "ARK",
    "92f81bc3-5811-4d3d-97ff-d19f88dc67ea": "CRL",
}


def encode_report(report: bytes) -> dict[str, Any]:
    """Return a report as an object, its members in the order of the report.

    Raises FormatError for another length, UnsupportedError for a version that is not known.
    """
    if len(report) != REPORT_BYTES:
        raise FormatError(f"the SNP report has {len(report)} bytes, not {REPORT_BYTES}")
    version = _number(report, 0, 4)
    if not _FIRST_VERSION <= version <= _LAST_VERSION:
        raise UnsupportedError(f"SNP reports of version {version} are not known here")
    named = version > _FIRST_VERSION
    turin = named and report[0x188] == _TURIN_FAMILY
    mitigations = version == _LAST_VERSION
    return {
        "version": version,
        "guest_svn": _number(report, 0x04, 4),
        "policy": _number(report, 0x08, 8),
        "family_id": list(report[0x10:0x20]),
        "image_id": list(report[0x20:0x30]),
        "vmpl": _number(report, 0x30, 4),
        "sig_algo": _number(report, 0x34, 4),
        "current_tcb": _tcb(report, 0x38, turin),
        "plat_info": _number(report, 0x40, 8),
        "key_info": _number(report, 0x48, 4),
        "report_data": list(report[0x50:0x90]),
        "measurement": list(report[0x90:0xC0]),
        "host_data": list(report[HOST_DATA]),
        "id_key_digest": list(report[0xE0:0x110]),
        "author_key_digest": list(report[0x110:0x140]),
        "report_id": list(report[0x140:0x160]),
        "report_id_ma": list(report[0x160:0x180]),
        "reported_tcb": _tcb(report, 0x180, turin),
        "cpuid_fam_id": report[0x188] if named else None,
        "cpuid_mod_id": report[0x189] if named else None,
        "cpuid_step": report[0x18A] if named else None,
        "chip_id": list(report[0x1A0:0x1E0]),
        "committed_tcb": _tcb(report, 0x1E0, turin),
        "current": _firmware(report, 0x1E8),
        "committed": _firmware(report, 0x1EC),
        "launch_tcb": _tcb(report, 0x1F0, turin),
        "launch_mit_vector": _number(report, 0x1F8, 8) if mitigations else None,
        "current_mit_vector": _number(report, 0x200, 8) if mitigations else None,
        "signature": {"r": list(report[0x2A0:0x2E8]), "s": list(report[0x2E8:0x330])},
    }


def encode_certificates(table: bytes) -> list[dict[str, Any]]:
    """Return the certificates of a table that the host gave along; none for an empty table.

    Raises FormatError.
    """
    found: list[dict[str, Any]] = []
    for offset in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        name, start, size = _ENTRY.unpack_from(table, offset)
        if not any(name):
            break
        if start + size > len(table) or len(found) >= _MAX_CERTIFICATES:
            raise FormatError("the certificates beside the SNP report are damaged")
        # The digits as they are written, not the mixed order that other tables use.
        identifier = str(uuid.UUID(bytes=name))
        kind = _CERTIFICATES.get(identifier)
        data = list(table[start : start + size])
        found.append({"cert_type": kind or {"OTHER": identifier}, "data": data})
    return found


def _number(report: bytes, offset: int, size_bytes: int) -> int:
    return int.from_bytes(report[offset : offset + size_bytes], "little")


def _tcb(report: bytes, offset: int, turin: bool) -> dict[str, int | None]:
    """Security versions of the parts of the platform; Turin has one part more."""
    fmc: int | None
    if turin:
        fmc, bootloader, tee, snp = report[offset : offset + 4]
    else:
        fmc, bootloader, tee, snp = None, report[offset], report[offset + 1], report[offset + 6]
    return {
        "fmc": fmc,
        "bootloader": bootloader,
        "tee": tee,
        "snp": snp,
        "microcode": report[offset + 7],
    }


def _firmware(report: bytes, offset: int) -> dict[str, int]:
    build, minor, major = report[offset : offset + 3]
    return {"major": major, "minor": minor, "build": build}
