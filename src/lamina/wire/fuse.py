"""FUSE messages between the kernel and a read-only file system, as bytes and values.

``include/uapi/linux/fuse.h``, protocol 7.31 (Linux 5.4) to 7.45; numbers are in host byte order.  A
request is a header of 40 bytes and a body that depends on its opcode; a reply is a header of 16
bytes and a body.  Only what a read-only file system meets is here: every other opcode is answered
with ENOSYS, which the kernel understands.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from lamina.errors import FormatError

KERNEL_VERSION = 7
OLDEST_MINOR_VERSION = 31
NEWEST_MINOR_VERSION = 45
ROOT_ID = 1
REQUEST_HEADER_BYTES = 40
REPLY_HEADER_BYTES = 16
SMALLEST_READ_BUFFER_BYTES = 8192
"""The kernel refuses to hand requests to a smaller buffer (FUSE_MIN_READ_BUFFER)."""


class Opcode(IntEnum):
    """What the kernel asks for (``enum fuse_opcode``), as far as a read-only file system meets
    it.
    """

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44
    LSEEK = 46
    SYNCFS = 50
    STATX = 52


UNANSWERED = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT))
"""Requests that must not be replied to."""


class InitFlag(IntFlag):
    """Features offered and taken at INIT; bits from 32 up travel in ``flags2`` (needs INIT_EXT)."""

    ASYNC_READ = 1 << 0
    EXPORT_SUPPORT = 1 << 4
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30


class OpenFlag(IntFlag):
    """How the kernel treats an opened file (``FOPEN_*``)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5


class Request(NamedTuple):
    """The header of a request and its undecoded body."""

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    body: memoryview


class InitRequest(NamedTuple):
    """What the kernel offers."""

    major: int
    minor: int
    max_readahead_bytes: int
    flags: InitFlag


class InitReply(NamedTuple):
    """What the server takes; ``max_pages`` counts pages of the machine and bounds one READ."""

    minor: int
    flags: InitFlag
    max_readahead_bytes: int
    max_pages: int
    max_background: int


class Attributes(NamedTuple):
    """``struct fuse_attr``; times are (seconds, nanoseconds), ``rdev`` is in the kernel's new
    encoding.
    """

    ino: int
    size: int
    blocks: int
    mtime: tuple[int, int]
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    block_size: int = 4096


class ReadRequest(NamedTuple):
    """READ, READDIR and READDIRPLUS."""

    handle: int
    offset: int
    size_bytes: int


class XattrRequest(NamedTuple):
    """GETXATTR (with a name) and LISTXATTR (without); ``size_bytes`` 0 asks for the length only."""

    size_bytes: int
    name: bytes


class DirectoryEntry(NamedTuple):
    """One name of a directory.  ``cookie`` is what a later request passes as offset to go on behind
    it.
    """

    ino: int
    cookie: int
    mode: int
    name: bytes


# len u32 | opcode u32 | unique u64 | nodeid u64 | uid u32 | gid u32 | pid u32 | total_extlen u16 |
# padding u16
_REQUEST = struct.Struct("=IIQQIIIHH")
# major u32 | minor u32 | max_readahead u32 | flags u32
_INIT_IN = struct.Struct("=IIII")
# fh u64 | offset u64 | size u32 | read_flags u32 | lock_owner u64 | flags u32 | padding u32
_READ_IN = struct.Struct("=QQIIQII")
# size u32 | padding u32
_XATTR_IN = struct.Struct("=II")
# getattr_flags u32 | dummy u32 | fh u64
_GETATTR_IN = struct.Struct("=IIQ")
# nlookup u64
_FORGET_IN = struct.Struct("=Q")
# count u32 | dummy u32, then nodeid u64 | nlookup u64 each
_BATCH_FORGET_IN = struct.Struct("=II")
_FORGET_ONE = struct.Struct("=QQ")

_LARGEST_NAME = 4096


def parse_request(data: bytes | bytearray | memoryview) -> Request:
    """Split what ``read(2)`` of a FUSE device returned.  Raises FormatError if header and length
    disagree.
    """
    view = memoryview(data)
    if len(view) < REQUEST_HEADER_BYTES:
        raise FormatError(f"a FUSE request of {len(view)} bytes is shorter than its header")
    length, opcode, unique, nodeid, uid, gid, pid, extension_words, _ = _REQUEST.unpack_from(view)
    end = length - 8 * extension_words
    if length != len(view) or end < REQUEST_HEADER_BYTES:
        raise FormatError(f"FUSE request {unique} claims {length} bytes and has {len(view)}")
    return Request(opcode, unique, nodeid, uid, gid, pid, view[REQUEST_HEADER_BYTES:end])


def _unpack(layout: struct.Struct, request: Request) -> tuple[int, ...]:
    if len(request.body) < layout.size:
        raise FormatError(
            f"FUSE request {request.unique} (opcode {request.opcode}) has a body of"
            f" {len(request.body)} bytes where at least {layout.size} are needed"
        )
    return layout.unpack_from(request.body)


def _name(request: Request, start: int = 0) -> bytes:
    name, terminator, _ = bytes(request.body[start : start + _LARGEST_NAME]).partition(b"\0")
    if not terminator or not name:
        raise FormatError(f"FUSE request {request.unique} has no name in it")
    return name


def decode_init(request: Request) -> InitRequest:
    """Decode INIT; ``flags2`` is read when the kernel says that it sent it."""
    major, minor, readahead, flags = _unpack(_INIT_IN, request)
    if flags & InitFlag.INIT_EXT and len(request.body) >= _INIT_IN.size + 4:
        flags |= int.from_bytes(request.body[_INIT_IN.size : _INIT_IN.size + 4], "little") << 32
    return InitRequest(major, minor, readahead, InitFlag(flags))


def decode_lookup(request: Request) -> bytes:
    """Decode LOOKUP: the name looked for in directory ``nodeid``."""
    return _name(request)


def decode_read(request: Request) -> ReadRequest:
    """Decode READ, READDIR or READDIRPLUS."""
    handle, offset, size_bytes, *_ = _unpack(_READ_IN, request)
    return ReadRequest(handle, offset, size_bytes)


def decode_xattr(request: Request) -> XattrRequest:
    """Decode GETXATTR or LISTXATTR."""
    size_bytes, _ = _unpack(_XATTR_IN, request)
    named = request.opcode == Opcode.GETXATTR
    return XattrRequest(size_bytes, _name(request, _XATTR_IN.size) if named else b"")


def decode_forget(request: Request) -> list[tuple[int, int]]:
    """Decode FORGET or BATCH_FORGET: (nodeid, lookups forgotten) pairs."""
    if request.opcode == Opcode.FORGET:
        return [(request.nodeid, _unpack(_FORGET_IN, request)[0])]
    count, _ = _unpack(_BATCH_FORGET_IN, request)
    body = request.body[_BATCH_FORGET_IN.size :]
    if count * _FORGET_ONE.size > len(body):
        raise FormatError(f"FUSE request {request.unique} forgets more nodes than it names")
    return list(_FORGET_ONE.iter_unpack(body[: count * _FORGET_ONE.size]))
