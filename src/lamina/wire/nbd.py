"""NBD messages that a read-only server takes, and its answers to options, as bytes and values.

NetworkBlockDevice, ``doc/proto.md``; numbers are big-endian.  First the client chooses options,
each ``IHAVEOPT``, number, length and data; then it sends requests of 28 bytes, or of 32 with
extended headers (:mod:`lamina.wire.nbd_reply` has the answers).  Everything that a client sends has
a bound here, so that nothing is allocated because of a number in it.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple

from lamina.errors import FormatError

MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71

MAX_OPTION_BYTES: Final = 16 << 10
"""An export name has 4096 bytes at most; no option needs more than two of them."""

MAX_NAME_BYTES: Final = 4096
MAX_REQUEST_BYTES: Final = 32 << 20
"""The most that one request may ask for; clients know it as the usual bound."""

PREFERRED_BLOCK_BYTES: Final = 4096
ALLOCATION_CONTEXT: Final = b"base:allocation"
CONTEXT_ID: Final = 1

# 0 NBDMAGIC, 8 IHAVEOPT, 16 handshake flags
GREETING: Final = Struct(">QQH")
CLIENT_FLAGS: Final = Struct(">I")
# 0 IHAVEOPT, 8 option, 12 length
OPTION: Final = Struct(">QII")
# 0 magic, 8 option, 12 type, 16 length
OPTION_REPLY: Final = Struct(">QIII")
# 0 magic, 4 flags, 6 type, 8 cookie, 16 offset, 24 length
REQUEST: Final = Struct(">IHHQQI")
# The same with extended headers: 24 length, of 64 bits
EXTENDED_REQUEST: Final = Struct(">IHHQQQ")
_U16: Final = Struct(">H")
_U32: Final = Struct(">I")
_U64: Final = Struct(">Q")
# 0 information type, 2 size, 10 transmission flags
_INFO_EXPORT: Final = Struct(">HQH")
# 0 information type, 2 minimum, 6 preferred, 10 maximum
_INFO_BLOCK_SIZE: Final = Struct(">HIII")


class HandshakeFlag(IntFlag):
    """What the server can do before an export is chosen, and what the client takes."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """What a client asks for while it haggles."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class OptionAnswer(IntEnum):
    """Types of replies to options; errors have the highest bit."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERROR_UNSUPPORTED = 0x80000001
    ERROR_INVALID = 0x80000003
    ERROR_TLS_REQUIRED = 0x80000005
    ERROR_UNKNOWN = 0x80000006
    ERROR_EXTENDED_HEADERS_REQUIRED = 0x8000000A


class Info(IntEnum):
    """Kinds of information about an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class ExportFlag(IntFlag):
    """What can be done with the export (transmission flags)."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10


class Command(IntEnum):
    """Requests."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """Flags of a request."""

    FUA = 1 << 0
    DONT_FRAGMENT = 1 << 2
    REQ_ONE = 1 << 3
    PAYLOAD = 1 << 5
    """With extended headers: as many bytes as the length says follow the request."""


class Errno(IntEnum):
    """Errors as the protocol numbers them."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


class Request(NamedTuple):
    """One request of the transmission phase."""

    flags: int
    command: int
    cookie: int
    offset: int
    size_bytes: int


class InfoRequest(NamedTuple):
    """What INFO and GO ask for."""

    name: bytes
    kinds: frozenset[int]


class ContextRequest(NamedTuple):
    """What LIST_META_CONTEXT and SET_META_CONTEXT ask for."""

    name: bytes
    queries: tuple[bytes, ...]


def encode_greeting() -> bytes:
    """Return the first bytes of a connection."""
    flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    return GREETING.pack(MAGIC, OPTION_MAGIC, flags)


def decode_client_flags(data: bytes) -> HandshakeFlag:
    """Return the flags of a client.

    Raises FormatError for flags that were not offered, and for a client that is not "fixed".
    """
    (flags,) = CLIENT_FLAGS.unpack(data)
    if flags & ~3 or not flags & HandshakeFlag.FIXED_NEWSTYLE:
        raise FormatError(f"an NBD client has the handshake flags {flags:#x}")
    return HandshakeFlag(flags)


def decode_option(data: bytes) -> tuple[int, int]:
    """Return the number of an option and the length of its data.  Raises FormatError."""
    magic, option, size = OPTION.unpack(data)
    if magic != OPTION_MAGIC:
        raise FormatError("an NBD client sends no option where one must be")
    return option, size


def decode_info_request(data: bytes) -> InfoRequest:
    """Return the data of INFO and GO.  Raises FormatError."""
    name, rest = _string(data)
    if len(rest) < 2 or len(rest) != 2 + 2 * _U16.unpack_from(rest)[0]:
        raise FormatError("an NBD client asks for information in a wrong length")
    return InfoRequest(name, frozenset(kind for (kind,) in _U16.iter_unpack(rest[2:])))


def decode_context_request(data: bytes) -> ContextRequest:
    """Return the data of the options about metadata contexts.  Raises FormatError."""
    name, rest = _string(data)
    if len(rest) < 4:
        raise FormatError("an NBD client sends no number of metadata contexts")
    (count,) = _U32.unpack_from(rest)
    rest = rest[4:]
    if count > len(rest) // 4:
        raise FormatError(f"an NBD client claims to name {count} metadata contexts")
    queries = []
    for _ in range(count):
        query, rest = _string(rest)
        queries.append(query)
    if rest:
        raise FormatError("an NBD client sends more than its metadata contexts")
    return ContextRequest(name, tuple(queries))


def _string(data: bytes) -> tuple[bytes, bytes]:
    """Return a string behind its length, and what follows."""
    if len(data) < 4:
        raise FormatError("an NBD client sends a string without a length")
    (size,) = _U32.unpack_from(data)
    if size > min(MAX_NAME_BYTES, len(data) - 4):
        raise FormatError(f"an NBD client claims to send a string of {size} bytes")
    return data[4 : 4 + size], data[4 + size :]


def encode_option_reply(option: int, answer: OptionAnswer, data: bytes = b"") -> bytes:
    """Return a reply to an option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, answer, len(data)) + data


def encode_export(size_bytes: int, flags: ExportFlag) -> bytes:
    """Return the information that every answer to INFO and GO has."""
    return _INFO_EXPORT.pack(Info.EXPORT, size_bytes, flags)


def encode_block_size() -> bytes:
    """Any byte can be read; 4096 are best; and how much at a time."""
    return _INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, PREFERRED_BLOCK_BYTES, MAX_REQUEST_BYTES)


def encode_text_info(kind: Info, text: bytes) -> bytes:
    """NAME and DESCRIPTION."""
    return _U16.pack(kind) + text


def encode_listed(name: bytes) -> bytes:
    """Return an export in the answer to LIST."""
    return _U32.pack(len(name)) + name


def encode_context() -> bytes:
    """Return the one metadata context there is."""
    return _U32.pack(CONTEXT_ID) + ALLOCATION_CONTEXT


def encode_old_export(size_bytes: int, flags: ExportFlag, *, zeroes: bool) -> bytes:
    """Return the answer to EXPORT_NAME, which begins the transmission."""
    return _U64.pack(size_bytes) + _U16.pack(flags) + bytes(124 if zeroes else 0)


def decode_request(data: bytes | bytearray | memoryview, *, extended: bool = False) -> Request:
    """Return one request of 28 bytes, or 32.  Raises FormatError if it is none, after which nothing
    that follows can be understood.
    """
    if extended:
        magic, flags, command, cookie, offset, size_bytes = EXTENDED_REQUEST.unpack(data)
    else:
        magic, flags, command, cookie, offset, size_bytes = REQUEST.unpack(data)
    if magic != (EXTENDED_REQUEST_MAGIC if extended else REQUEST_MAGIC):
        raise FormatError("an NBD client sends no request where one must be")
    return Request(flags, command, cookie, offset, size_bytes)
