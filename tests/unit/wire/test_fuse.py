"""FUSE messages: what is encoded has the kernel's layout, what is decoded is never trusted."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import FormatError
from lamina.wire import fuse, fuse_reply

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name)


def request(opcode: int, body: bytes, *, unique: int = 7, nodeid: int = 3) -> bytes:
    header = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, nodeid, 1, 2, 9, 0, 0)
    return header + body


def parsed(opcode: int, body: bytes) -> fuse.Request:
    return fuse.parse_request(request(opcode, body))


@given(U32, U64, U64, st.binary(max_size=200))
def test_request_header(opcode: int, unique: int, nodeid: int, body: bytes) -> None:
    found = fuse.parse_request(request(opcode, body, unique=unique, nodeid=nodeid))
    assert (found.opcode, found.unique, found.nodeid) == (opcode, unique, nodeid)
    assert (found.uid, found.gid, found.pid, bytes(found.body)) == (1, 2, 9, body)


def test_extensions_are_no_part_of_the_body() -> None:
    header = struct.pack("=IIQQIIIHH", 40 + 24, 1, 7, 3, 1, 2, 9, 2, 0)
    assert bytes(fuse.parse_request(header + b"name\0..." + b"e" * 16).body) == b"name\0..."


@pytest.mark.parametrize("length", [0, 39, 41, 2**32 - 1])
def test_request_with_a_wrong_length(length: int) -> None:
    data = struct.pack("=I", length) + request(1, b"")[4:]
    with pytest.raises(FormatError):
        fuse.parse_request(data)


def test_extensions_longer_than_the_request() -> None:
    with pytest.raises(FormatError):
        fuse.parse_request(struct.pack("=IIQQIIIHH", 40, 1, 7, 3, 1, 2, 9, 1, 0))


@given(NAMES)
def test_lookup(name: bytes) -> None:
    assert fuse.decode_lookup(parsed(fuse.Opcode.LOOKUP, name + b"\0")) == name


@pytest.mark.parametrize("body", [b"", b"\0", b"no end"])
def test_lookup_without_a_name(body: bytes) -> None:
    with pytest.raises(FormatError):
        fuse.decode_lookup(parsed(fuse.Opcode.LOOKUP, body))


@given(U64, U64, U32)
def test_read(handle: int, offset: int, size: int) -> None:
    body = struct.pack("=QQIIQII", handle, offset, size, 1, 2, 3, 0)
    assert fuse.decode_read(parsed(fuse.Opcode.READ, body)) == (handle, offset, size)


@given(U32, NAMES)
def test_xattr(size: int, name: bytes) -> None:
    body = struct.pack("=II", size, 0)
    assert fuse.decode_xattr(parsed(fuse.Opcode.GETXATTR, body + name + b"\0")) == (size, name)
    assert fuse.decode_xattr(parsed(fuse.Opcode.LISTXATTR, body)) == (size, b"")


@given(st.lists(st.tuples(U64, U64), max_size=8))
def test_forget(pairs: list[tuple[int, int]]) -> None:
    body = struct.pack("=II", len(pairs), 0) + b"".join(struct.pack("=QQ", *pair) for pair in pairs)
    assert fuse.decode_forget(parsed(fuse.Opcode.BATCH_FORGET, body)) == pairs
    assert fuse.decode_forget(parsed(fuse.Opcode.FORGET, struct.pack("=Q", 5))) == [(3, 5)]


def test_forget_of_more_than_there_is() -> None:
    with pytest.raises(FormatError):
        fuse.decode_forget(parsed(fuse.Opcode.BATCH_FORGET, struct.pack("=IIQQ", 2, 0, 1, 1)))


def test_init_flags_above_32_bits() -> None:
    flags = fuse.InitFlag.INIT_EXT | fuse.InitFlag.ASYNC_DIO
    body = struct.pack("=IIIII44x", 7, 45, 131072, flags, 1 << 5)
    offer = fuse.decode_init(parsed(fuse.Opcode.INIT, body))
    assert (offer.major, offer.minor, offer.max_readahead_bytes) == (7, 45, 131072)
    assert offer.flags == flags | 1 << 37
    body = struct.pack("=IIIII44x", 7, 45, 131072, 0, 1 << 5)
    assert fuse.decode_init(parsed(fuse.Opcode.INIT, body)).flags == 0


def test_init_reply_layout() -> None:
    reply = fuse_reply.encode_init(fuse.InitReply(44, fuse.InitFlag(1 << 38 | 1), 131072, 32, 40))
    assert len(reply) == 64
    assert struct.unpack_from("=IIIIHHIIHHII", reply) == (
        *(7, 44, 131072, 1, 40, 30, 4096, 1),
        *(32, 0, 1 << 6, 0),
    )


ATTRIBUTES = fuse.Attributes(11, 5000, 10, (-5, 999), 0o100644, 2, 70000, 3, 0x10305)


def test_attributes_layout() -> None:
    body = fuse_reply.encode_attr(ATTRIBUTES, 9)
    assert len(body) == 16 + 88
    assert struct.unpack_from("=QII", body) == (9, 0, 0)
    found = struct.unpack_from("=QQQqqqIIIIIIIIII", body, 16)
    assert found == (
        *(11, 5000, 10, -5, -5, -5, 999, 999, 999),
        *(0o100644, 2, 70000, 3, 0x10305, 4096, 0),
    )


def test_entry_layout() -> None:
    body = fuse_reply.encode_entry(77, ATTRIBUTES, 5)
    assert len(body) == 128
    assert struct.unpack_from("=QQQQII", body) == (77, 0, 5, 5, 0, 0)
    assert body[40:] == fuse_reply.encode_attributes(ATTRIBUTES)
    assert struct.unpack_from("=QQQ", fuse_reply.encode_missing_entry(5)) == (0, 0, 5)
    assert len(fuse_reply.encode_missing_entry(5)) == 128


@given(NAMES, U64)
def test_directory_entries_are_aligned(name: bytes, ino: int) -> None:
    entry = fuse.DirectoryEntry(ino, 3, 0o120777, name)
    record = fuse_reply.encode_dirent(entry)
    assert len(record) % 8 == 0
    assert len(record) == fuse_reply.dirent_bytes(name)
    assert struct.unpack_from("=QQII", record) == (ino, 3, len(name), 0o12)
    assert record[24 : 24 + len(name)] == name
    plus = fuse_reply.encode_direntplus(entry, fuse_reply.encode_missing_entry(0))
    assert len(plus) == fuse_reply.direntplus_bytes(name)
    assert plus.endswith(record)


def test_replies() -> None:
    assert fuse_reply.encode_reply_header(5, 3) == struct.pack("=IiQ", 19, 0, 5)
    assert fuse_reply.encode_error(5, 2) == struct.pack("=IiQ", 16, -2, 5)
    assert fuse_reply.encode_open(1, fuse.OpenFlag.DIRECT_IO) == struct.pack("=QIi", 1, 1, 0)
    assert fuse_reply.encode_xattr_size(9) == struct.pack("=II", 9, 0)
    assert fuse_reply.encode_names([b"user.a", b"user.b"]) == b"user.a\0user.b\0"
    assert len(fuse_reply.encode_statfs(1, 2)) == 80


@pytest.mark.parametrize(
    "decode",
    [
        fuse.decode_init,
        fuse.decode_read,
        fuse.decode_xattr,
        fuse.decode_forget,
    ],
)
@pytest.mark.parametrize("opcode", [fuse.Opcode.FORGET, fuse.Opcode.GETXATTR])
def test_short_bodies(decode: object, opcode: fuse.Opcode) -> None:
    assert callable(decode)
    with pytest.raises(FormatError):
        decode(parsed(opcode, b"\1\0\0"))
