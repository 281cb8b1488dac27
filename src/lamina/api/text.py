"""File names as programs want them, and files as :func:`open` gives them.

As in :mod:`os`, whoever asks with ``bytes`` gets ``bytes``, and everybody else gets ``str``, where
bytes that are no UTF-8 are lone surrogates (PEP 383).
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, TypeVar

from lamina.image.errors import ReadOnlyError

if TYPE_CHECKING:
    from lamina.image.base import Where

Name = TypeVar("Name", str, bytes)


def decoded(name: bytes) -> str:
    """Return a file name as text, whatever the locale is."""
    return name.decode("utf-8", "surrogateescape")


def encoded_name(name: str) -> bytes:
    """Return the bytes of a name that :func:`decoded` made."""
    return name.encode("utf-8", "surrogateescape")


def encoded(where: Where) -> Where:
    """Return what is looked up: text as :func:`decoded` makes it becomes bytes again."""
    return encoded_name(where) if isinstance(where, str) else where


def is_binary(mode: str, encoding: str | None, errors: str | None, newline: str | None) -> bool:
    """Tell whether a file is opened for bytes.

    Raises ReadOnlyError for a mode that writes, and ValueError for what :func:`open` refuses too.
    """
    kinds = set(mode)
    if len(kinds) != len(mode) or kinds - set("rwaxbt+") or len(kinds & set("rwax")) != 1:
        raise ValueError(f"invalid mode: {mode!r}")
    if {"b", "t"} <= kinds:
        raise ValueError("can't have text and binary mode at once")
    if kinds & set("wax+"):
        raise ReadOnlyError(
            "an image is read-only", hint="build a new image with what is to change"
        )
    given = {"encoding": encoding, "errors": errors, "newline": newline}
    for name, value in given.items():
        if "b" in kinds and value is not None:
            raise ValueError(f"binary mode doesn't take an {name} argument; open it with mode='r'")
    return "b" in kinds


def as_text(
    file: io.BufferedReader, encoding: str | None, errors: str | None, newline: str | None
) -> IO[str]:
    """Wrap a file for reading text; UTF-8 unless said otherwise: an image has no locale."""
    return io.TextIOWrapper(file, encoding or "utf-8", errors, newline)
