"""Hints in the words of Python: they are written for the command line, which most people use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from lamina.errors import Error
from lamina.image.errors import NoIndexError

_PAIR: Final = re.compile(r"--decryption-key (\S+) --decryption-key (\S+)")
_OPTION: Final = re.compile(
    r"--(index|pull|decryption-key|policy|store|platform|ca-file|authfile|allow-older|plain-http|creds)"
    r"(?![\w-])(?: (always|never|auto|newer|missing|[A-Z]+(?::[A-Z]+)?\b))?"
)
_FLAGS: Final = frozenset(("allow-older", "plain-http"))
_NAMES: Final = {"decryption-key": "decryption_keys"}


def _keyword(found: re.Match[str]) -> str:
    option, value = found[1], found[2] or "..."
    if option in _FLAGS:
        return f"{option.replace('-', '_')}=True"
    if option == "creds":
        return 'username="...", password="..."'
    return f'{_NAMES.get(option, option.replace("-", "_"))}="{value}"'


_WORDS: Final[tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    (re.compile(r"--store-budget"), "$LAMINA_STORE_BUDGET"),
    (_PAIR, r'decryption_keys=["\1", "\2"]'),
    (_OPTION, _keyword),
)


def in_python(hint: str) -> str:
    """Return a hint with options of the command line as keywords of :func:`lamina.open`."""
    for pattern, replacement in _WORDS:
        hint = pattern.sub(replacement, hint)
    return hint


@contextmanager
def python_hints() -> Iterator[None]:
    """Have errors that leave the block say what to do in Python."""
    try:
        yield
    except Error as error:
        if error.hint is not None:
            hint = in_python(error.hint)
            if isinstance(error, NoIndexError) and "index=" not in hint:
                hint = f'open it with index="always" to have it indexed here, or: {hint}'
            _replace(error, hint)
        raise


def _replace(error: Error, hint: str) -> None:
    old, error.hint = f"hint: {error.hint}", hint
    notes = getattr(error, "__notes__", [])
    if old in notes:
        notes[notes.index(old)] = f"hint: {hint}"


GUESSED_NAMES: Final = {
    "extract": "copy what open() gives, or unpack all of it: lamina unpack",
    "extractall": "unpack it: lamina unpack",
    "getmember": "stat() has what is known of a path",
    "getmembers": "walk() yields all paths with what is known of them",
    "getnames": "walk() yields all paths",
    "iterdir": "scandir() and listdir() list a directory, (image / 'etc').iterdir() gives paths",
    "layers": "manifest.layers has them",
    "namelist": "walk() yields all paths",
    "path": "image / 'etc' is a path",
    "read": "read_bytes() and read_text() read a file",
}
"""Attributes of other archives and paths that an image lacks, and what to use."""
