"""Data on standard output: JSON lines, tables, sizes and names that are safe on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from lamina.errors import Error


def print_json(value: Any) -> None:
    """Print one JSON document on one line; names that are no UTF-8 keep their bytes as lone
    surrogates.
    """
    import json

    print_line(json.dumps(value, separators=(", ", ": ")))


def print_line(text: str) -> None:
    """Print one line.  Raises as :func:`print_text`."""
    print_text(f"{text}\n")


def print_text(text: str) -> None:
    """Print text as it is.  Raises Error if standard output does not take it."""
    try:
        sys.stdout.write(text)
    except OSError as error:
        raise _failure(error) from error


def flush_output() -> None:
    """Write out what is still in memory.  Raises as :func:`print_text`."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise _failure(error) from error


def print_bytes(data: bytes | memoryview) -> None:
    """Print raw bytes, after all text before them.  Raises as :func:`print_text`."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    except OSError as error:
        raise _failure(error) from error


GAP: Final = 2
NARROWEST: Final = 12


def print_table(
    rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset(), *narrow: int
) -> None:
    """Print rows in aligned columns; ``right`` are the columns aligned to the right.

    On a terminal that is too narrow the columns ``narrow``, the first of them first, lose the
    middle of what is too long; where nobody looks, nothing is lost.
    """
    rows = list(rows)
    if not rows:
        return
    rows = _fitted(rows, narrow)
    widths = _widths(rows)
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print_line((" " * GAP).join(cells).rstrip())


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]


def _fitted(rows: list[Sequence[str]], narrow: Sequence[int]) -> list[Sequence[str]]:
    """Shorten cells of the columns *narrow* as far as the terminal on standard output needs."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return rows
    for column in narrow:
        widths = _widths(rows)
        # A row that ends in the last column makes some terminals begin another one.
        excess = sum(widths) + GAP * (len(widths) - 1) - max(columns - 1, 40)
        if excess > 0:
            width = max(widths[column] - excess, NARROWEST)
            rows = [
                [*row[:column], _shortened(row[column], width), *row[column + 1 :]] for row in rows
            ]
    return rows


def _shortened(text: str, width: int) -> str:
    """Leave the middle of a text out; the end of a name says most."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def shown_name(name: bytes) -> str:
    r"""Return a file name for a terminal: unprintable characters and bytes that are no UTF-8 as
    ``\xNN``.
    """
    return shown_text(os.fsdecode(name))


def shown_text(text: str) -> str:
    r"""Text for a terminal: unprintable characters, and surrogates that stand for bytes that are no
    UTF-8, as ``\xNN``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    escaped = "\udc80" <= character <= "\udcff"
    data = character.encode("utf-8", "surrogateescape" if escaped else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


def human_size(size_bytes: int) -> str:
    """Return a size in decimal units, three digits: ``139 MB``."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def share(part: int, whole: int) -> str:
    """``42 %``: never 100 % for what is not complete, nor 0 % for what is begun."""
    if part in (0, whole):
        return "0 %" if whole and not part else "100 %"
    return f"{min(max(round(100 * part / whole), 1), 99)} %"


def binary_size(size_bytes: int) -> str:
    """Return a size that is a power of two, or nearly: ``128 KiB``."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):g} {unit}"
    return f"{size_bytes} B"


def _failure(error: OSError) -> Exception:
    # A reader who left is no error.
    if isinstance(error, BrokenPipeError):
        return error
    return Error(f"cannot write to standard output: {error.strerror}")
