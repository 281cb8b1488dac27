"""ttrpc messages of a server of unary calls, as bytes and values.

containerd/ttrpc, ``PROTOCOL.md``: a message is a header of 10 bytes, big-endian, and protobuf.

====== ==== ============================================================
offset size field
====== ==== ============================================================
0      4    length of what follows the header, at most 4 MiB
4      4    number of the stream: odd, one for each call of a client
8      1    type: 1 request, 2 response, 3 data
9      1    flags: 1 the last of its side, 2 no data in it, 4 no data follows
====== ==== ============================================================

Request: 1 service, 2 method, 3 payload, 4 timeout in ns.  Response: 1 status (1 code of gRPC,
2 message), 2 payload.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from lamina.errors import FormatError

HEADER: Final = Struct(">IIBB")
MAX_MESSAGE_BYTES: Final = 4 << 20
REQUEST: Final = 1
RESPONSE: Final = 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELDS: Final = 4096


class Code(IntEnum):
    """Codes of gRPC."""

    OK = 0
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Call(NamedTuple):
    """A request."""

    service: str
    method: str
    payload: bytes


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of the fields of a protobuf message; numbers are unsigned.

    Raises FormatError for what is none.
    """
    at, count = 0, 0
    while at < len(data):
        count += 1
        if count > _MAX_FIELDS:
            raise FormatError("a protobuf message has too many fields")
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise FormatError("a protobuf message has a field of an unknown kind")
        if at + size > len(data):
            raise FormatError("a protobuf message ends early")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise FormatError("a protobuf message has a number that does not end")


def texts(data: bytes, *numbers: int) -> list[str]:
    """Return the texts with these field numbers, empty where there is none.  Raises FormatError."""
    found = dict.fromkeys(numbers, b"")
    for number, value in fields(data):
        if number in found and isinstance(value, bytes):
            found[number] = value
    try:
        return [found[number].decode() for number in numbers]
    except UnicodeDecodeError:
        raise FormatError("a protobuf message has a text that is none") from None


def parse_call(data: bytes) -> Call:
    """Return the call that a request makes.  Raises FormatError."""
    service, method = texts(data, 1, 2)
    payload = b""
    for number, value in fields(data):
        if number == 3 and isinstance(value, bytes):
            payload = value
    return Call(service, method, payload)


def encode_bytes(number: int, value: bytes) -> bytes:
    """Return a field of bytes or text."""
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(value)) + value


def encode_response(payload: bytes, code: Code = Code.OK, message: str = "") -> bytes:
    """Return a response."""
    if code is Code.OK:
        return encode_bytes(2, payload)
    status = _encode_varint(1 << 3 | _VARINT) + _encode_varint(code)
    return encode_bytes(1, status + encode_bytes(2, message.encode("utf-8", "replace")))


def encode_message(stream: int, body: bytes) -> bytes:
    """Return a response with its header."""
    return HEADER.pack(len(body), stream, RESPONSE, 0) + body


def _encode_varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
