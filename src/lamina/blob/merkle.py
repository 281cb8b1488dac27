"""The Merkle tree over the stored pieces of a blob: verification without any key.

leaf = SHA-256(00 ‖ u64 index ‖ u64 length ‖ stored), node = SHA-256(01 ‖ left ‖ right) in the
shape of RFC 6962 §2.1, root = SHA-256(02 ‖ u64 count ‖ top); numbers are big-endian.  A leaf has
its place and length in it, the root the count: pieces that are moved, cut, dropped or added do not
fit.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from lamina.errors import FormatError, IntegrityError

if TYPE_CHECKING:
    from typing_extensions import Buffer

HASH_BYTES: Final = 32
_LEAF: Final = struct.Struct(">BQQ")
_ROOT: Final = struct.Struct(">BQ")
_EMPTY: Final = hashlib.sha256(b"").digest()


def leaf_hash(index: int, stored: Buffer) -> bytes:
    """Return the leaf of the piece *index* as it is stored: 32 bytes."""
    view = memoryview(stored).cast("B")
    hasher = hashlib.sha256(_LEAF.pack(0, index, len(view)))
    hasher.update(view)
    return hasher.digest()


def check_leaf(index: int, stored: Buffer, leaf: bytes, blob_id: str) -> None:
    """Raise IntegrityError unless a stored piece is the one of the leaf."""
    if not hmac.compare_digest(leaf_hash(index, stored), leaf):
        raise IntegrityError(
            f"piece {index} of the sealed blob {blob_id} is not the one that was signed",
            hint="it was changed, moved or cut on the way or in a cache; fetch it again",
        )


def root_of(leaves: Iterable[bytes]) -> bytes:
    """Return the root of all leaves of a blob."""
    level = list(leaves)
    count, sha256 = len(level), hashlib.sha256
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        above = [sha256(b"\x01" + left + right).digest() for left, right in pairs]
        # The last of an odd number is a tree of its own, until it finds a neighbour.
        level = above + level[len(above) * 2 :]
    top = level[0] if level else _EMPTY
    return sha256(_ROOT.pack(2, count) + top).digest()


def check_leaf_table(table: Buffer, count: int, root: bytes, blob_id: str) -> memoryview:
    """Return the table (*count* leaves of 32 bytes), after it proved to have the signed root.

    Raises FormatError for another length, IntegrityError for another root.
    """
    view = memoryview(table).cast("B")
    if len(view) != count * HASH_BYTES:
        raise FormatError(
            f"the leaf table of the sealed blob {blob_id} has {len(view)} bytes, "
            f"not {count * HASH_BYTES}"
        )
    leaves = (bytes(view[start : start + HASH_BYTES]) for start in range(0, len(view), HASH_BYTES))
    if not hmac.compare_digest(root_of(leaves), root):
        raise IntegrityError(
            f"the leaf table of the sealed blob {blob_id} does not have the signed root"
        )
    return view
