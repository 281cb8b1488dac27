"""Values that must not be seen: they never show in ``repr``, logs, tracebacks, JSON or pickles.

Python cannot promise that no copy of a byte string stays in memory, and the ciphers below want byte
strings; what is promised is that the long-lived copy is locked against swap where the limits
allow it, and zeroed when it is closed.
"""

from __future__ import annotations

import hmac
import os
import sys
from typing import TYPE_CHECKING, Final, NoReturn, Self

from lamina.errors import UsageError

if TYPE_CHECKING:
    from io import FileIO

    from typing_extensions import Buffer

MAX_PASSPHRASE_BYTES: Final = 4096
PASSWORD_VARIABLES: Final = ("COSIGN_PASSWORD", "LAMINA_KBS_PASSWORD")
"""Environment variables with passphrases in them, which no child may inherit."""


class Secret:
    """Some secret bytes.  ``reveal`` is the only way to them; closing zeroes the buffer."""

    __slots__ = ("_buffer",)

    def __init__(self, value: Buffer) -> None:
        self._buffer = bytearray(value)
        if sys.platform == "linux":
            from lamina.linux.memory import lock_memory

            lock_memory(self._buffer)

    def reveal(self) -> bytes:
        """Return the bytes.  Keep them in a local variable, and never put them into a message."""
        return bytes(self._buffer)

    def close(self) -> None:
        """Zero the buffer; the secret is empty from now on."""
        self._buffer[:] = bytes(len(self._buffer))
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._buffer)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._buffer, other._buffer)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Secret(…)"

    def __format__(self, specification: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def take_from_environment(name: str) -> Secret | None:
    """Return the value of a variable, which is removed so that children do not inherit it and
    ``/proc/PID/environ`` does not show it; None if it is not set.
    """
    value = os.environb.get(name.encode())
    if value is None:
        return None
    if sys.platform == "linux":
        from lamina.linux.memory import wipe_variable

        wipe_variable(name)
    del os.environb[name.encode()]
    return Secret(value)


def read_passphrase(source: str) -> Secret:
    """Return a passphrase as ocicrypt names it: ``pass=TEXT``, ``file=PATH`` or ``fd=NUMBER``.

    Of files and descriptors the first line counts, without its end.  Raises UsageError, which never
    has the text in it.
    """
    kind, equals, value = source.partition("=")
    if equals and kind == "pass":
        return Secret(value.encode("utf-8", "surrogateescape"))
    if equals and kind == "file":
        return _first_line(value, value)
    if equals and kind == "fd" and value.isascii() and value.isdigit():
        return _first_line(int(value), f"file descriptor {value}")
    raise UsageError(
        "the passphrase of a key is not given as pass=, file= or fd=",
        hint="write KEY:pass=TEXT, KEY:file=PATH or KEY:fd=NUMBER; fd= shows in no process list",
    )


def _first_line(source: str | int, name: str) -> Secret:
    try:
        with open(source, "rb", buffering=0, closefd=not isinstance(source, int)) as file:
            data = _read_line(file)
    except OSError as error:
        raise UsageError(f"cannot read a passphrase from {name}: {error.strerror}") from None
    if len(data) > MAX_PASSPHRASE_BYTES:
        raise UsageError(f"the passphrase in {name} has more than {MAX_PASSPHRASE_BYTES} bytes")
    return Secret(data.rstrip(b"\r"))


def _read_line(file: FileIO) -> bytes:
    """Return a line without its end.  Byte by byte: what comes after it is for whoever reads
    next.
    """
    data = bytearray()
    while len(data) <= MAX_PASSPHRASE_BYTES and (byte := file.read(1)) not in (b"", None, b"\n"):
        data += byte
    return bytes(data)
