"""A disk with a GUID partition table, whose partitions are found without a configuration.

UEFI specification 2.10, chapter 5 (numbers are little-endian); the types are those of the UAPI
group's Discoverable Partitions Specification: a root file system and the hash tree that verifies
it, whose identifiers are the two halves of the root hash, so that who knows the hash finds both.
"""

from __future__ import annotations

import binascii
import struct
import uuid
from collections.abc import Sequence
from typing import Final, NamedTuple

from lamina.block.base import BytesDisk, Disk, JoinedDisk
from lamina.errors import UnsupportedError

SECTOR_BYTES: Final = 512
ALIGNMENT_BYTES: Final = 1 << 20
ENTRIES: Final = 128
READ_ONLY: Final = 1 << 60
"""Attribute: the partition is to be mounted read-only (Discoverable Partitions Specification)."""

ROOT_TYPES: Final = {
    "amd64": uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    "arm64": uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"),
}
VERITY_TYPES: Final = {
    "amd64": uuid.UUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"),
    "arm64": uuid.UUID("df3300ce-d69f-4c92-978c-9bfb0f38d820"),
}
_NAMES: Final = uuid.UUID("5e2b9ae2-95ac-4b51-8dd3-4e1fb2cf2f1c")
"""Name space of the identifiers of disks and partitions that are made of an image's own."""

# 0 "EFI PART", 8 revision 1.0, 12 size, 16 checksum, 20 zero, 24 this sector, 32 the other header,
# 40 first and 48 last usable sector, 56 GUID, 72 sector of the entries, 80 number, 84 size of one,
# 88 their checksum
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
# 0 type, 16 GUID, 32 first and 40 last sector, 48 attributes, 56 name in UTF-16
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
# Of the master boot record: 446 status, CHS of the first sector, type 0xEE, CHS of the last,
# first sector, sectors
_PROTECTIVE: Final = struct.Struct("<B3sB3sII")
_ENTRY_SECTORS: Final = ENTRIES * _ENTRY.size // SECTOR_BYTES
_FIRST_USABLE: Final = 2 + _ENTRY_SECTORS


class Partition(NamedTuple):
    """One partition: its type, its identifier, a name for people, and what is in it."""

    kind: uuid.UUID
    identifier: uuid.UUID
    name: str
    disk: Disk


def image_partitions(
    architecture: str, image: tuple[Disk, bytes], tree: tuple[bytes, bytes] | None = None
) -> list[Partition]:
    """Return the partitions of an image (its disk and UUID) and of its hash tree (the root hash,
    and the tree as it lies on the disk).

    Raises UnsupportedError for an architecture without types here.
    """
    if architecture not in ROOT_TYPES:
        raise UnsupportedError(
            f"there is no partition type here for {architecture or 'an image of no'} architecture",
            hint=f"there are those of {' and '.join(ROOT_TYPES)}; write the disk without --gpt",
        )
    disk, name = image
    if tree is None:
        identifier = uuid.uuid5(_NAMES, f"root {name.hex()}")
        return [Partition(ROOT_TYPES[architecture], identifier, "root", disk)]
    root, area = tree
    first, last = uuid.UUID(bytes=root[:16]), uuid.UUID(bytes=root[-16:])
    return [
        Partition(ROOT_TYPES[architecture], first, "root", disk),
        Partition(VERITY_TYPES[architecture], last, "root-verity", BytesDisk(area)),
    ]


def partitioned_disk(partitions: Sequence[Partition]) -> JoinedDisk:
    """Return a disk with these partitions, in order, each at a whole MiB."""
    parts: list[tuple[int, Disk]] = []
    entries = bytearray(ENTRIES * _ENTRY.size)
    offset = ALIGNMENT_BYTES
    for number, each in enumerate(partitions):
        parts.append((offset, each.disk))
        end = offset + each.disk.size_bytes
        _ENTRY.pack_into(
            entries,
            number * _ENTRY.size,
            each.kind.bytes_le,
            each.identifier.bytes_le,
            offset // SECTOR_BYTES,
            end // SECTOR_BYTES - 1,
            READ_ONLY,
            each.name.encode("utf-16-le"),
        )
        offset = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    # The other table has the last MiB.
    size = offset + ALIGNMENT_BYTES
    sectors = size // SECTOR_BYTES
    disk_id = uuid.uuid5(_NAMES, " ".join(str(each.identifier) for each in partitions)).bytes_le
    table = bytes(entries)
    first = _header((1, sectors - 1, 2), sectors, disk_id, table)
    last = _header((sectors - 1, 1, sectors - 1 - _ENTRY_SECTORS), sectors, disk_id, table)
    head = _protective(sectors) + first + table
    parts.insert(0, (0, BytesDisk(head)))
    parts.append((size - len(table) - len(last), BytesDisk(table + last)))
    return JoinedDisk(parts, size)


def _header(places: tuple[int, int, int], sectors: int, disk_id: bytes, table: bytes) -> bytes:
    """Return a header; *places* are the sectors of itself, of the other one, and of its table."""
    here, other, entries = places

    def packed(checksum: int) -> bytes:
        return _HEADER.pack(
            b"EFI PART",
            0x10000,
            _HEADER.size,
            checksum,
            0,
            here,
            other,
            _FIRST_USABLE,
            sectors - 2 - _ENTRY_SECTORS,
            disk_id,
            entries,
            ENTRIES,
            _ENTRY.size,
            binascii.crc32(table),
        )

    return packed(binascii.crc32(packed(0))).ljust(SECTOR_BYTES, b"\0")


def _protective(sectors: int) -> bytes:
    """Return a master boot record by which old programs see that the disk is taken."""
    entry = _PROTECTIVE.pack(
        0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF)
    )
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"
