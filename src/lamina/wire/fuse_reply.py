"""Replies of a read-only file system to the kernel, as bytes.

The other half of :mod:`lamina.wire.fuse`: a reply is a header of 16 bytes and a body.  Source:
``include/uapi/linux/fuse.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from lamina.wire.fuse import (
    KERNEL_VERSION,
    REPLY_HEADER_BYTES,
    Attributes,
    DirectoryEntry,
    InitReply,
    OpenFlag,
)

# len u32 | error s32 | unique u64
_REPLY = struct.Struct("=IiQ")
# major u32 | minor u32 | max_readahead u32 | flags u32 | max_background u16 | congestion_threshold
# u16 | max_write u32 | time_gran u32 | max_pages u16 | map_alignment u16 | flags2 u32 |
# max_stack_depth u32 | unused 24
_INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
# ino size blocks atime mtime ctime u64 | atimensec mtimensec ctimensec mode nlink uid gid rdev
# blksize flags u32
_ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")
# attr_valid u64 | attr_valid_nsec u32 | dummy u32
_ATTR_OUT = struct.Struct("=QII")
# nodeid u64 | generation u64 | entry_valid u64 | attr_valid u64 | entry_valid_nsec u32 |
# attr_valid_nsec u32
_ENTRY_OUT = struct.Struct("=QQQQII")
# fh u64 | open_flags u32 | backing_id s32
_OPEN_OUT = struct.Struct("=QIi")
# blocks bfree bavail files ffree u64 | bsize namelen frsize padding u32 | spare 24
_STATFS_OUT = struct.Struct("=QQQQQIIII24x")
# size u32 | padding u32
_XATTR_OUT = struct.Struct("=II")
# ino u64 | off u64 | namelen u32 | type u32, then the name padded to 8 bytes
_DIRENT = struct.Struct("=QQII")

_MASK32 = 0xFFFFFFFF

# enum fuse_notify_code
FUSE_NOTIFY_RESEND = 7


def encode_reply_header(unique: int, body_bytes: int) -> bytes:
    """Return the header of a successful reply whose body is written from another buffer."""
    return _REPLY.pack(REPLY_HEADER_BYTES + body_bytes, 0, unique)


def encode_error(unique: int, code: int) -> bytes:
    """Return a reply that fails with errno ``code`` (positive)."""
    return _REPLY.pack(REPLY_HEADER_BYTES, -code, unique)


def encode_resend() -> bytes:
    """Return the notification that makes the kernel queue all unanswered requests again (Linux
    6.9); their ``unique`` then has bit 63 set, and the reply must have it too.
    """
    return _REPLY.pack(REPLY_HEADER_BYTES, FUSE_NOTIFY_RESEND, 0)


def encode_init(reply: InitReply) -> bytes:
    """Return the body of a reply to INIT.

    ``max_write`` is one page: nothing is ever written, and the kernel asks for request buffers that
    could hold it.
    """
    flags = int(reply.flags)
    return _INIT_OUT.pack(
        KERNEL_VERSION,
        reply.minor,
        reply.max_readahead_bytes,
        flags & _MASK32,
        reply.max_background,
        reply.max_background * 3 // 4,
        4096,
        1,
        reply.max_pages,
        0,
        flags >> 32,
        0,
    )


def encode_attributes(attributes: Attributes) -> bytes:
    """Return ``struct fuse_attr``; the one time that an image keeps serves as all three."""
    seconds, nanoseconds = attributes.mtime
    seconds &= 0xFFFFFFFFFFFFFFFF
    return _ATTRIBUTES.pack(
        attributes.ino,
        attributes.size,
        attributes.blocks,
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        attributes.mode,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        attributes.rdev,
        attributes.block_size,
        0,
    )


def encode_attr(attributes: Attributes, valid_s: int) -> bytes:
    """Return the body of a reply to GETATTR."""
    return _ATTR_OUT.pack(valid_s, 0, 0) + encode_attributes(attributes)


def encode_entry(nodeid: int, attributes: Attributes, valid_s: int) -> bytes:
    """Return the body of a reply to LOOKUP."""
    return _ENTRY_OUT.pack(nodeid, 0, valid_s, valid_s, 0, 0) + encode_attributes(attributes)


def encode_missing_entry(valid_s: int) -> bytes:
    """Return the body of a reply to LOOKUP that lets the kernel remember that the name is not
    there.
    """
    return _ENTRY_OUT.pack(0, 0, valid_s, 0, 0, 0) + bytes(_ATTRIBUTES.size)


def encode_open(handle: int, flags: OpenFlag) -> bytes:
    """Return the body of a reply to OPEN or OPENDIR, without passthrough."""
    return _OPEN_OUT.pack(handle, flags, 0)


def encode_statfs(blocks: int, files: int, block_size: int = 4096) -> bytes:
    """Return the body of a reply to STATFS: a full file system."""
    return _STATFS_OUT.pack(blocks, 0, 0, files, 0, block_size, 255, block_size, 0)


def encode_xattr_size(size_bytes: int) -> bytes:
    """Return the body of a reply to GETXATTR or LISTXATTR that asked for the length."""
    return _XATTR_OUT.pack(size_bytes, 0)


def encode_names(names: Iterable[bytes]) -> bytes:
    """Return the value of LISTXATTR: each name with its NUL."""
    return b"".join(name + b"\0" for name in names)


def dirent_bytes(name: bytes) -> int:
    """Return how long the ``struct fuse_dirent`` of a name is, with its padding."""
    return _DIRENT.size + len(name) + 7 & ~7


def direntplus_bytes(name: bytes) -> int:
    """Return how long the ``struct fuse_direntplus`` of a name is, with its padding."""
    return _ENTRY_OUT.size + _ATTRIBUTES.size + dirent_bytes(name)


def encode_dirent(entry: DirectoryEntry) -> bytes:
    """Return ``struct fuse_dirent`` with its padding."""
    record = _DIRENT.pack(entry.ino, entry.cookie, len(entry.name), entry.mode >> 12) + entry.name
    return record + bytes(-len(record) % 8)


def encode_direntplus(entry: DirectoryEntry, entry_body: bytes) -> bytes:
    """Return ``struct fuse_direntplus``: ``entry_body`` of :func:`encode_entry`, then the
    dirent.
    """
    return entry_body + encode_dirent(entry)
