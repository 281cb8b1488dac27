"""Digests that the kernel verifies block by block: dm-verity of a device, fs-verity of a file.

They pin a file that the kernel mounts, a bootstrap above all, by 32 bytes: in measured anchors, or
on a dm table.  Computed here without the kernel, byte for byte as veritysetup and fsverity do.
Sources: Linux, ``Documentation/admin-guide/device-mapper/verity.rst`` and
``Documentation/filesystems/fsverity.rst``; cryptsetup, ``lib/verity``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple

from lamina.errors import FormatError, IntegrityError, UsageError

ALGORITHMS: Final = {"sha256": 1, "sha512": 2}
MAX_SALT_BYTES: Final = 256
_MAX_FSVERITY_SALT: Final = 32
# Signature, version, hash type, UUID, algorithm, data and hash block size, blocks, salt size, salt.
SUPERBLOCK: Final = struct.Struct("<8sII16s32sIIQH6x256s168x")
# Version, algorithm, log2 of the block size, salt size, reserved, file size, root, salt, reserved.
_DESCRIPTOR: Final = struct.Struct("<BBBBIQ64s32s144x")


@dataclass(frozen=True, slots=True)
class VerityOptions:
    """Parameters of dm-verity; ``version`` 1 is the normal one, 0 that of Chrome OS."""

    algorithm: str = "sha256"
    data_block_bytes: int = 4096
    hash_block_bytes: int = 4096
    salt: bytes = b""
    version: int = 1
    spare_digest: bytes = b""
    """What unused places of a hash block hold in place of zeros, as Nydus has it."""

    def __post_init__(self) -> None:
        sizes = (self.data_block_bytes, self.hash_block_bytes)
        if any(size & size - 1 or not 512 <= size <= 1 << 19 for size in sizes):
            raise UsageError("the blocks of dm-verity have a power of two from 512 bytes on")
        if self.algorithm not in ALGORITHMS or self.version not in (0, 1):
            raise UsageError("dm-verity is of the version 0 or 1, with sha256 or sha512")
        if len(self.salt) > MAX_SALT_BYTES:
            raise UsageError(f"the salt of dm-verity has more than {MAX_SALT_BYTES} bytes")

    @property
    def digest_bytes(self) -> int:
        """Size of a digest."""
        return hashlib.new(self.algorithm).digest_size

    @property
    def digests_per_block(self) -> int:
        """How many digests a hash block holds, each in the place of the next power of two."""
        return self.hash_block_bytes // (1 << (self.digest_bytes - 1).bit_length())

    def hash_block(self, block: bytes) -> bytes:
        """Return the digest of a block with the salt, which is first in version 1 and last in 0."""
        parts = (self.salt, block) if self.version else (block, self.salt)
        return hashlib.new(self.algorithm, b"".join(parts)).digest()


def spare_of_nydus() -> bytes:
    """Return what Nydus fills unused places with: the digest of a block of zeros."""
    return hashlib.sha256(bytes(4096)).digest()


class HashTree(NamedTuple):
    """Root digest, and the blocks of the tree as they are on disk, the top level first."""

    root: bytes
    tree: bytes
    data_blocks: int


def dm_verity(data: BinaryIO, options: VerityOptions | None = None) -> HashTree:
    """Return the hash tree of all that ``data`` gives.

    Raises FormatError if it is empty or ends inside a block.
    """
    options = options or VerityOptions()
    level = [options.hash_block(block) for block in _blocks(data, options.data_block_bytes)]
    count = len(level)
    levels: list[bytes] = []
    while len(level) > 1:
        blocks = _hash_blocks(level, options)
        levels.insert(0, b"".join(blocks))
        level = [options.hash_block(block) for block in blocks]
    return HashTree(level[0], b"".join(levels), count)


def level_sizes(data_blocks: int, options: VerityOptions) -> list[int]:
    """Return the bytes of each level of a tree, the top level first."""
    sizes: list[int] = []
    while data_blocks > 1:
        data_blocks = -(-data_blocks // options.digests_per_block)
        sizes.insert(0, data_blocks * options.hash_block_bytes)
    return sizes


def tree_root(levels: list[bytes], options: VerityOptions) -> bytes:
    """Return the root digest of a tree, the top level first.

    Raises IntegrityError if a level does not hold the digests of the one below it.
    """
    size = options.hash_block_bytes
    digests: list[bytes] = []
    for level in reversed(levels):
        if digests and b"".join(_hash_blocks(digests, options)) != level:
            raise IntegrityError("the levels of a hash tree do not fit each other")
        digests = [options.hash_block(level[at : at + size]) for at in range(0, len(level), size)]
    return digests[0]


def _hash_blocks(level: list[bytes], options: VerityOptions) -> list[bytes]:
    """Return the blocks that hold the digests of a level."""
    size = options.digest_bytes
    # In version 1 a digest has the place of the next power of two; in version 0 they are packed.
    slot = 1 << (size - 1).bit_length()
    per_block = options.digests_per_block
    place = slot if options.version else size
    spare = options.spare_digest
    blocks = []
    for first in range(0, len(level), per_block):
        digests = [digest.ljust(place, b"\0") for digest in level[first : first + per_block]]
        digests += [spare] * (per_block - len(digests))
        blocks.append(b"".join(digests).ljust(options.hash_block_bytes, b"\0"))
    return blocks


def superblock(options: VerityOptions, data_blocks: int, uuid: bytes) -> bytes:
    """Return the 512 bytes before the tree, padded to a hash block."""
    fields = SUPERBLOCK.pack(
        b"verity\0\0",
        1,
        options.version,
        uuid,
        options.algorithm.encode(),
        options.data_block_bytes,
        options.hash_block_bytes,
        data_blocks,
        len(options.salt),
        options.salt,
    )
    return fields.ljust(options.hash_block_bytes, b"\0")


def fs_verity(
    data: BinaryIO, algorithm: str = "sha256", block_bytes: int = 4096, salt: bytes = b""
) -> bytes:
    """Return the digest of a file as ``fsverity digest`` prints it; the size of the file is in
    it.
    """
    if algorithm not in ALGORITHMS or block_bytes & block_bytes - 1 or block_bytes < 1024:
        raise UsageError("fs-verity has sha256 or sha512, and a power of two from 1024 as block")
    if len(salt) > _MAX_FSVERITY_SALT:
        raise UsageError(f"the salt of fs-verity has more than {_MAX_FSVERITY_SALT} bytes")
    input_bytes = hashlib.new(algorithm).block_size
    padded = salt.ljust(-(-len(salt) // input_bytes) * input_bytes, b"\0")

    def hash_block(block: bytes) -> bytes:
        return hashlib.new(algorithm, padded + block.ljust(block_bytes, b"\0")).digest()

    level, total = [], 0
    while block := data.read(block_bytes):
        level.append(hash_block(block))
        total += len(block)
    per_block = block_bytes // hashlib.new(algorithm).digest_size
    while len(level) > 1:
        level = [
            hash_block(b"".join(level[i : i + per_block])) for i in range(0, len(level), per_block)
        ]
    root = level[0] if level else b""
    log = block_bytes.bit_length() - 1
    descriptor = _DESCRIPTOR.pack(1, ALGORITHMS[algorithm], log, len(salt), 0, total, root, salt)
    return hashlib.new(algorithm, descriptor).digest()


def _blocks(data: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    empty = True
    while block := data.read(size_bytes):
        if len(block) != size_bytes:
            raise FormatError(f"the data is no whole number of blocks of {size_bytes} bytes")
        empty = False
        yield block
    if empty:
        raise FormatError("dm-verity of nothing is not defined")
