"""Requests as the kernel would send them, damaged."""

from __future__ import annotations

import struct

from lamina.errors import Error
from lamina.wire import fuse

DECODERS = {
    fuse.Opcode.INIT: fuse.decode_init,
    fuse.Opcode.LOOKUP: fuse.decode_lookup,
    fuse.Opcode.READ: fuse.decode_read,
    fuse.Opcode.READDIR: fuse.decode_read,
    fuse.Opcode.READDIRPLUS: fuse.decode_read,
    fuse.Opcode.GETXATTR: fuse.decode_xattr,
    fuse.Opcode.LISTXATTR: fuse.decode_xattr,
    fuse.Opcode.FORGET: fuse.decode_forget,
    fuse.Opcode.BATCH_FORGET: fuse.decode_forget,
}


def target(data: bytes) -> None:
    try:
        request = fuse.parse_request(data)
        assert len(request.body) <= len(data) - fuse.REQUEST_HEADER_BYTES
        opcode = request.opcode
        if opcode in DECODERS:
            DECODERS[fuse.Opcode(opcode)](request)
    except Error:
        pass


def seeds() -> list[bytes]:
    bodies = {
        fuse.Opcode.INIT: struct.pack("=IIIII44x", 7, 45, 131072, 1 << 30, 3),
        fuse.Opcode.LOOKUP: b"name\0",
        fuse.Opcode.READ: struct.pack("=QQIIQII", 1, 4096, 4096, 0, 0, 0, 0),
        fuse.Opcode.READDIRPLUS: struct.pack("=QQIIQII", 1, 3, 4096, 0, 0, 0, 0),
        fuse.Opcode.GETXATTR: struct.pack("=II", 64, 0) + b"user.x\0",
        fuse.Opcode.LISTXATTR: struct.pack("=II", 64, 0),
        fuse.Opcode.FORGET: struct.pack("=Q", 1),
        fuse.Opcode.BATCH_FORGET: struct.pack("=IIQQ", 1, 0, 5, 1),
    }
    return [
        struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 7, 3, 1, 2, 9, 0, 0) + body
        for opcode, body in bodies.items()
    ]
