"""How a guest opens a disk of ciphertext that its host serves: what of that is believed.

A disk image is an image of two files: ``disk``, which is the file system of another image with its
hash tree behind it, all of it encrypted (aes-xts-plain64), and ``disk.json``, the plan.  Whoever
deploys a guest takes the plan out of an image whose signature a policy accepts, and puts it into
the init-data of the guest, whose digest the evidence of the CPU has in it.  So nothing of the guest
needs to ask a registry, and the host can change nothing of what is mounted.

The salt of the hash tree comes from the key: without it nobody can tell by the root hash, which the
host sees, of which image a disk is.
"""

from __future__ import annotations

import hmac
import tomllib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from lamina.block.encryption import KEY_BYTES, crypt_table
from lamina.block.hash_area import VerityDisk
from lamina.block.verity import VerityOptions, level_sizes
from lamina.errors import FormatError, TrustError
from lamina.trust.broker.init_data import InitData
from lamina.trust.broker.kbs_packet import ResourcePath, parse_resource

DISK: Final = "disk"
PLAN: Final = "disk.json"
"""The two files of a disk image."""
INIT_DATA_FILE: Final = "lamina-disk.json"
MAX_PLAN_BYTES: Final = 4096

_MOST_BLOCKS: Final = 1 << 32
_SALT_LABEL: Final = b"lamina/guest-disk salt"


class DiskPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``key`` is the resource of the broker that has the 64 bytes of dm-crypt; blocks, of data and
    hashes, are of 4096 bytes.
    """

    version: Literal[1] = 1
    key: str
    root_hash: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    data_blocks: Annotated[int, Meta(ge=2, le=_MOST_BLOCKS)]

    @property
    def resource(self) -> ResourcePath:
        """Where the broker has the key."""
        return parse_resource(self.key)

    @property
    def hash_offset_bytes(self) -> int:
        """Where the superblock of the hash tree is, in the decrypted disk."""
        return self.data_blocks * VerityOptions().data_block_bytes

    @property
    def size_bytes(self) -> int:
        """How large the disk is."""
        options = VerityOptions()
        tree = options.hash_block_bytes + sum(level_sizes(self.data_blocks, options))
        return self.hash_offset_bytes + tree

    def crypt_table(self, key: bytes, device: str) -> str:
        """Return the line for dm-crypt over *device*.  Raises TrustError for what is no key."""
        if len(key) != KEY_BYTES:
            raise TrustError(f"the broker has no key of {KEY_BYTES} bytes as {self.key}")
        return crypt_table(self.size_bytes, device, key.hex())

    def verity_table(self, key: bytes, device: str) -> str:
        """Return the line for dm-verity over the decrypted *device*."""
        options = VerityOptions(salt=disk_salt(key))
        root = bytes.fromhex(self.root_hash)
        described = VerityDisk(
            root, options, self.data_blocks, self.hash_offset_bytes, has_superblock=True
        )
        return described.table(device, device)


def disk_salt(key: bytes) -> bytes:
    """Return the salt of the hash tree of a disk with this key."""
    return hmac.digest(key, _SALT_LABEL, "sha256")


def parse_plan(data: bytes | str) -> DiskPlan:
    """Return a plan.  Raises FormatError."""
    try:
        plan = msgspec.json.decode(data, type=DiskPlan)
    except (ValueError, RecursionError):
        raise FormatError("the plan of the disk is none of this version") from None
    parse_resource(plan.key)
    return plan


def init_data_line(plan: DiskPlan) -> str:
    """Return the line for the table ``data`` of init-data."""
    return f"\"{INIT_DATA_FILE}\" = '{msgspec.json.encode(plan).decode()}'"


def plan_of(init_data: InitData) -> DiskPlan:
    """Return the plan in init-data.  Raises TrustError if it has none, FormatError."""
    text: str | None = tomllib.loads(init_data.text)["data"].get(INIT_DATA_FILE)
    if text is None:
        raise TrustError(
            f"the init-data has no {INIT_DATA_FILE}, so the host could choose the disk",
            hint="`lamina guest-disk plan` prints the line, for whoever deploys the guest",
        )
    return parse_plan(text)
