"""The hash tree of a disk and what a kernel has to be told of it (dm-verity)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

from lamina.block.base import BytesDisk, Disk, DiskReader, JoinedDisk
from lamina.block.verity import (
    MAX_SALT_BYTES,
    SUPERBLOCK,
    VerityOptions,
    dm_verity,
    level_sizes,
    superblock,
    tree_root,
)
from lamina.errors import FormatError, IntegrityError, UnsupportedError, UsageError

_SECTOR_BYTES: Final = 512
MAX_AREA_BYTES: Final = 1 << 30
"""It is kept in memory: that of a disk of 127 GiB."""


class VerityDisk(NamedTuple):
    """What a kernel has to be told to check a disk by its hash tree."""

    root: bytes
    options: VerityOptions
    data_blocks: int
    hash_offset_bytes: int
    """Where the superblock is, or without one the tree, in the file that has it."""
    has_superblock: bool

    def table(self, data: str, hashes: str) -> str:
        """Return the line for ``dmsetup create --readonly``, with the names of the two devices."""
        options = self.options
        sectors = self.data_blocks * options.data_block_bytes // _SECTOR_BYTES
        start = self.hash_offset_bytes // options.hash_block_bytes + self.has_superblock
        return (
            f"0 {sectors} verity {options.version} {data} {hashes} {options.data_block_bytes} "
            f"{options.hash_block_bytes} {self.data_blocks} {start} {options.algorithm} "
            f"{self.root.hex()} {options.salt.hex() or '-'}"
        )

    def facts(self, data: str, hashes: str) -> dict[str, object]:
        """Return all of it as JSON, the line for the devices too."""
        return {
            "root_hash": self.root.hex(),
            "data_blocks": self.data_blocks,
            "hash_offset": self.hash_offset_bytes,
            "salt": self.options.salt.hex(),
            "table": self.table(data, hashes),
        }


class HashArea(NamedTuple):
    """A tree as it lies behind a disk or in a file of its own, and what it is of.

    ``verity.hash_offset_bytes`` is 0, as in a file.
    """

    data: bytes
    verity: VerityDisk

    def behind(self, disk: Disk) -> tuple[JoinedDisk, VerityDisk]:
        """Return a disk that has its own tree behind it, and where that begins.

        Raises IntegrityError for a disk of another size.
        """
        verity = self.verity
        if verity.data_blocks * verity.options.data_block_bytes != disk.size_bytes:
            raise IntegrityError("the hash tree is of a disk of another size")
        parts = [(0, disk), (disk.size_bytes, BytesDisk(self.data))]
        return JoinedDisk(parts), self.verity._replace(hash_offset_bytes=disk.size_bytes)


def make_hash_area(
    disk: Disk,
    options: VerityOptions,
    uuid: bytes | None,
    progress: Callable[[int], None] = lambda _: None,
) -> HashArea:
    """Return the tree of all of *disk*, with a superblock unless *uuid* is None.

    Raises what reading the disk raises.
    """
    reader = DiskReader(disk, progress)
    tree = dm_verity(cast("BinaryIO", reader), options)
    head = b"" if uuid is None else superblock(options, tree.data_blocks, uuid)
    described = VerityDisk(tree.root, options, tree.data_blocks, 0, uuid is not None)
    return HashArea(head + tree.tree, described)


def read_hash_area(data: bytes, root: bytes | None = None) -> HashArea:
    """Read a tree with its superblock, and hold all its levels against each other and *root*.

    Whether it is the tree of some data, only their reader can tell.  Raises FormatError for
    anything else, and IntegrityError for a tree that is not of that root.
    """
    options, blocks = _read_superblock(data)
    sizes = level_sizes(blocks, options)
    if len(data) != options.hash_block_bytes + sum(sizes):
        raise FormatError(f"a hash tree has {len(data)} bytes, which is not what its blocks take")
    levels, at = [], options.hash_block_bytes
    for size in sizes:
        levels.append(data[at : at + size])
        at += size
    found = tree_root(levels, options)
    if root is not None and found != root:
        raise IntegrityError(f"the hash tree has the root {found.hex()}, not {root.hex()}")
    return HashArea(data, VerityDisk(found, options, blocks, 0, has_superblock=True))


def read_hash_file(path: Path, root: bytes | None = None) -> HashArea:
    """Read a tree from a file as :func:`read_hash_area` does.  Raises UsageError too."""
    try:
        if path.stat().st_size > MAX_AREA_BYTES:
            raise UsageError(f"{path} is too large to be a hash tree")
        return read_hash_area(path.read_bytes(), root)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _read_superblock(data: bytes) -> tuple[VerityOptions, int]:
    """Return the parameters and the number of data blocks."""
    try:
        fields = SUPERBLOCK.unpack_from(data)
    except struct.error:
        raise FormatError("a hash tree ends inside its superblock") from None
    magic, form, version, _, name, data_block, hash_block, blocks, salt_bytes, salt = fields
    if magic != b"verity\0\0" or form != 1:
        raise FormatError("a hash tree does not begin with a superblock of dm-verity")
    if salt_bytes > MAX_SALT_BYTES or blocks == 0 or blocks * 32 > MAX_AREA_BYTES:
        raise FormatError("a hash tree has sizes in its superblock that cannot be")
    algorithm = name.rstrip(b"\0").decode("ascii", "replace")
    try:
        options = VerityOptions(algorithm, data_block, hash_block, salt[:salt_bytes], version)
    except UsageError as error:
        raise FormatError(f"a hash tree cannot be used: {error}") from error
    if blocks == 1:
        raise UnsupportedError("a disk of one block has no hash tree")
    return options, blocks
