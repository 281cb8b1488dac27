"""containerd's filters: ``labels."a.b"==c,kind!=active``.

Source: containerd, ``pkg/filters``.  A filter is selectors with commas between them, all of which
must hold; of several filters one must.  A selector is a path of fields, alone (it is there) or with
an operator (``==``, ``!=``, ``~=``) and a value.  Fields and values may be quoted as in Go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from lamina.containerd.snapshot import Snapshot
from lamina.errors import UsageError

Filter: TypeAlias = Callable[[Snapshot], bool]

MAX_FILTER_BYTES: Final = 1 << 14

_FIELD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_OPERATOR: Final = re.compile(r"==|!=|~=")
_BARE: Final = re.compile(r"[^\s,]+")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_PATTERN: Final = re.compile(r"([/|])((?:[^\\]|\\.)*?)\1", re.DOTALL)
_ESCAPE: Final = re.compile(
    r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL
)
_LETTERS: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def parse_filters(texts: Sequence[str]) -> Filter:
    """Return a test of snapshots that the filters make; without any, all pass.

    Raises UsageError for what is no filter.
    """
    filters = [_Parser(text).parse() for text in texts]
    return lambda snapshot: not filters or any(each(snapshot) for each in filters)


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > MAX_FILTER_BYTES:
            raise UsageError("the filter is too long")
        self._text = text
        self._at = 0

    def parse(self) -> Filter:
        if not self._text:
            return lambda _: True
        selectors = [self._selector()]
        while self._at < len(self._text):
            if self._text[self._at] != ",":
                raise self._fault()
            self._at += 1
            selectors.append(self._selector())
        return lambda snapshot: all(each(snapshot) for each in selectors)

    def _selector(self) -> Filter:
        path = [self._field()]
        while self._text[self._at : self._at + 1] == ".":
            self._at += 1
            path.append(self._field())
        operator = self._take(_OPERATOR)
        if operator is None:
            return lambda snapshot: _value(snapshot, path) is not None
        if operator[0] == "~=":
            pattern = self._pattern()
            return lambda snapshot: pattern.search(_value(snapshot, path) or "") is not None
        wanted = self._quoted_or(_BARE)
        if operator[0] == "==":
            return lambda snapshot: _value(snapshot, path) == wanted
        return lambda snapshot: _value(snapshot, path) != wanted

    def _field(self) -> str:
        return self._quoted_or(_FIELD)

    def _quoted_or(self, bare: re.Pattern[str]) -> str:
        if quoted := self._take(_QUOTED):
            return _unquoted(quoted[1])
        found = self._take(bare)
        if found is None:
            raise self._fault()
        return found[0]

    def _pattern(self) -> re.Pattern[str]:
        written = self._take(_PATTERN)
        text = written[2] if written else self._quoted_or(_BARE)
        try:
            return re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(
                f"the filter {self._text:.80} has a malformed pattern: {error}"
            ) from None

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def _fault(self) -> UsageError:
        return UsageError(f"the filter {self._text:.80} is malformed at character {self._at}")


def _unquoted(text: str) -> str:
    def letter(found: re.Match[str]) -> str:
        code = found[1]
        if code[0] in "xuU" and len(code) > 1:
            return _letter(int(code[1:], 16))
        if len(code) == 3:
            return _letter(int(code, 8))
        return _LETTERS.get(code, code)

    return _ESCAPE.sub(letter, text)


def _letter(number: int) -> str:
    if number > 0x10FFFF:
        raise UsageError("the filter has a character that there is not")
    return chr(number)


def _value(snapshot: Snapshot, path: list[str]) -> str | None:
    """Return what a path of fields names, None if it is not there."""
    match path:
        case ["name"]:
            return snapshot.name
        case ["parent"]:
            return snapshot.parent
        case ["kind"]:
            return str(snapshot.kind)
        case ["labels", *key]:
            return snapshot.labels.get(".".join(key))
        case _:
            return None
