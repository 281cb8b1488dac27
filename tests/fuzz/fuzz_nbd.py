"""What an NBD client sends, damaged: options one after the other, then requests."""

from __future__ import annotations

import struct

from lamina.errors import Error
from lamina.serve.nbd.negotiation import Export, Negotiation, Phase
from lamina.wire import nbd
from lamina.wire.nbd import Option

SIZE_BYTES = 1 << 30


def target(data: bytes) -> None:
    negotiation = Negotiation(
        Export(b"disk", SIZE_BYTES), zeroes=len(data) % 2 == 0, needs_tls=len(data) % 3 == 0
    )
    try:
        while negotiation.phase is Phase.OPTIONS and len(data) >= nbd.OPTION.size:
            option, size = nbd.decode_option(data[: nbd.OPTION.size])
            data = data[nbd.OPTION.size :]
            reply = negotiation.answer(option, data[:size])
            assert len(reply) < 1 << 16
            if negotiation.wants_tls:
                negotiation.begin_again()
            data = data[size:]
        extended = negotiation.extended
        head = nbd.EXTENDED_REQUEST.size if extended else nbd.REQUEST.size
        while negotiation.phase is Phase.TRANSMISSION and len(data) >= head:
            request = nbd.decode_request(data[:head], extended=extended)
            assert 0 <= request.size_bytes < 1 << (64 if extended else 32)
            data = data[head:]
    except Error:
        pass


def option(number: int, data: bytes = b"") -> bytes:
    return nbd.OPTION.pack(nbd.OPTION_MAGIC, number, len(data)) + data


def text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def seeds() -> list[bytes]:
    context = text(b"disk") + struct.pack(">I", 1) + text(b"base:allocation")
    info = text(b"disk") + struct.pack(">HHH", 2, 1, 3)
    wide = nbd.EXTENDED_REQUEST.pack(nbd.EXTENDED_REQUEST_MAGIC, 0, 7, 7, 0, 1 << 40)
    read = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, 0, 7, 4096, 4096)
    return [
        option(Option.STRUCTURED_REPLY) + option(Option.SET_META_CONTEXT, context)
        + option(Option.GO, info) + read + read,
        option(Option.LIST) + option(Option.INFO, info) + option(Option.ABORT),
        option(Option.STRUCTURED_REPLY) + option(Option.LIST_META_CONTEXT, context),
        option(Option.EXPORT_NAME, b"disk") + read,
        option(Option.EXTENDED_HEADERS) + option(Option.GO, info) + wide,
        option(Option.STARTTLS) + option(77, bytes(40)),
    ]  # fmt: skip
