"""What a client of a read-only export may ask for before it reads, and the answers."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from lamina.errors import FormatError
from lamina.wire import nbd
from lamina.wire.nbd import ExportFlag, Option, OptionAnswer
from lamina.wire.nbd_reply import ExtendedReplies, Replies, SimpleReplies, StructuredReplies

MAX_OPTIONS: Final = 64
"""More than any client sends; then it is cut off."""


class Phase(Enum):
    """Where a connection is."""

    OPTIONS = "options"
    TRANSMISSION = "transmission"
    OVER = "over"


class Export(NamedTuple):
    """The one disk of a server.  Any name that a client gives means it if ``name`` is empty."""

    name: bytes
    size_bytes: int
    description: bytes = b""


class Negotiation:
    """The options of one connection; knows no sockets."""

    def __init__(self, export: Export, *, zeroes: bool, needs_tls: bool = False) -> None:
        """*zeroes*: the client wants the padding of the old protocol.

        With *needs_tls* a client learns nothing before it has begun TLS.
        """
        self.phase = Phase.OPTIONS
        self.replies: Replies = SimpleReplies()
        """In which style requests are answered."""
        self.allocation = False
        """Whether the client set the context of allocation, so that it may ask for extents."""
        self.wants_tls = False
        """The client begins TLS now; :meth:`begin_again` follows."""
        self._export = export
        self._zeroes = zeroes
        self._needs_tls = needs_tls
        self._count = 0

    def begin_again(self) -> None:
        """Take options anew, inside TLS: what was said before it is forgotten."""
        self.replies = SimpleReplies()
        self.allocation = self.wants_tls = self._needs_tls = False

    @property
    def structured(self) -> bool:
        """Whether requests are answered by chunks."""
        return isinstance(self.replies, StructuredReplies)

    @property
    def extended(self) -> bool:
        """Whether requests have extended headers."""
        return isinstance(self.replies, ExtendedReplies)

    @property
    def flags(self) -> ExportFlag:
        """What the export can do for this client."""
        flags = ExportFlag.HAS_FLAGS | ExportFlag.READ_ONLY | ExportFlag.SEND_FLUSH
        flags |= ExportFlag.CAN_MULTI_CONN | ExportFlag.SEND_CACHE
        return flags | ExportFlag.SEND_DF if self.structured else flags

    def answer(self, option: int, data: bytes) -> bytes:
        """Return the replies to an option; then see :attr:`phase`."""
        self._count += 1
        if self._count > MAX_OPTIONS:
            self.phase = Phase.OVER
            return b""
        try:
            return self._answer(option, data)
        except FormatError as error:
            return _refuse(option, OptionAnswer.ERROR_INVALID, str(error))

    def _answer(self, option: int, data: bytes) -> bytes:
        if option == Option.ABORT:
            self.phase = Phase.OVER
            return nbd.encode_option_reply(option, OptionAnswer.ACK)
        if self._needs_tls:
            return self._before_tls(option, data)
        if option == Option.EXPORT_NAME:
            return self._old_export(data)
        if option in (Option.INFO, Option.GO):
            return self._info(option, data)
        if option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            return self._contexts(option, data)
        if option == Option.LIST:
            _no_data(data)
            listed = nbd.encode_listed(self._export.name)
            reply = nbd.encode_option_reply(option, OptionAnswer.SERVER, listed)
            return reply + nbd.encode_option_reply(option, OptionAnswer.ACK)
        if option in (Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS):
            return self._style(option, data)
        return _refuse(option, OptionAnswer.ERROR_UNSUPPORTED, "no such option here")

    def _before_tls(self, option: int, data: bytes) -> bytes:
        if option == Option.STARTTLS:
            _no_data(data)
            self.wants_tls = True
            return nbd.encode_option_reply(option, OptionAnswer.ACK)
        if option == Option.EXPORT_NAME:
            # It has no answer that is a refusal.
            self.phase = Phase.OVER
            return b""
        return _refuse(option, OptionAnswer.ERROR_TLS_REQUIRED, "this disk is served with TLS only")

    def _style(self, option: int, data: bytes) -> bytes:
        _no_data(data)
        if option == Option.EXTENDED_HEADERS:
            self.replies = ExtendedReplies()
        elif self.extended:
            return _refuse(
                option,
                OptionAnswer.ERROR_EXTENDED_HEADERS_REQUIRED,
                "extended headers are agreed on already",
            )
        else:
            self.replies = StructuredReplies()
        return nbd.encode_option_reply(option, OptionAnswer.ACK)

    def _is_known(self, name: bytes) -> bool:
        return not name or not self._export.name or name == self._export.name

    def _old_export(self, name: bytes) -> bytes:
        if not self._is_known(name) or self.extended:
            self.phase = Phase.OVER
            return b""
        self.phase = Phase.TRANSMISSION
        return nbd.encode_old_export(self._export.size_bytes, self.flags, zeroes=self._zeroes)

    def _info(self, option: int, data: bytes) -> bytes:
        wanted = nbd.decode_info_request(data)
        if not self._is_known(wanted.name):
            return _refuse(option, OptionAnswer.ERROR_UNKNOWN, "there is no export of that name")
        parts = [nbd.encode_export(self._export.size_bytes, self.flags), nbd.encode_block_size()]
        if nbd.Info.NAME in wanted.kinds:
            parts.append(nbd.encode_text_info(nbd.Info.NAME, self._export.name))
        if nbd.Info.DESCRIPTION in wanted.kinds and self._export.description:
            parts.append(nbd.encode_text_info(nbd.Info.DESCRIPTION, self._export.description))
        if option == Option.GO:
            self.phase = Phase.TRANSMISSION
        replies = [nbd.encode_option_reply(option, OptionAnswer.INFO, part) for part in parts]
        return b"".join(replies) + nbd.encode_option_reply(option, OptionAnswer.ACK)

    def _contexts(self, option: int, data: bytes) -> bytes:
        wanted = nbd.decode_context_request(data)
        if not self.structured:
            raise FormatError("metadata contexts need structured replies")
        if not self._is_known(wanted.name):
            return _refuse(option, OptionAnswer.ERROR_UNKNOWN, "there is no export of that name")
        names = {nbd.ALLOCATION_CONTEXT}
        if option == Option.LIST_META_CONTEXT:
            names.add(b"base:")
            found = not wanted.queries or bool(names & set(wanted.queries))
        else:
            found = self.allocation = bool(names & set(wanted.queries))
        reply = b""
        if found:
            context = nbd.encode_context()
            reply = nbd.encode_option_reply(option, OptionAnswer.META_CONTEXT, context)
        return reply + nbd.encode_option_reply(option, OptionAnswer.ACK)


def _no_data(data: bytes) -> None:
    if data:
        raise FormatError("this option has no data")


def _refuse(option: int, answer: OptionAnswer, why: str) -> bytes:
    return nbd.encode_option_reply(option, answer, why.encode())
