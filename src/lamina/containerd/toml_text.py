"""Changes of a TOML file that leave all other bytes as they are, and are told from them.

Each change is a block between two comments; a line that it stands for is kept inside as a comment,
so that :func:`without_changes` gives the bytes back that were there, whatever was written around
the blocks meanwhile.  Sources: TOML 1.0.0.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from lamina.errors import FormatError, UnsupportedError

Path: TypeAlias = tuple[str, ...]
Value: TypeAlias = str | bool | int | Sequence["Value"] | Mapping[str, "Value"]

_BEGIN: Final = "# lamina snapshotter install: begin"
_BEGIN_MADE: Final = f"{_BEGIN}, there was no file"
_BEGIN_OPEN: Final = f"{_BEGIN}, the line before had no end"
_END: Final = "# lamina snapshotter install: end"
_KEPT: Final = "#|"
_HEADER: Final = re.compile(r"\s*(\[{1,2})([^\[\]]+)\]{1,2}\s*(?:#.*)?")
_SETTING: Final = re.compile(
    r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"))*)\s*="""
)
_BY_HAND: Final = "write the settings by hand, as the how-to 'Use containerd' has them"


class Setting(NamedTuple):
    """A key of a table, and what it is to be.  One that is ``added`` is a list of tables that the
    file may have some of already.
    """

    table: Path
    key: str
    value: Value
    added: bool = False


def with_settings(text: str | None, version: int, settings: Sequence[Setting]) -> str:
    """Return a file with some settings, and nothing else changed; a new one of a version if there
    was none.

    Raises FormatError if it is no TOML, and UnsupportedError if it has these tables in a form that
    cannot be changed in place.
    """
    old = parsed(text or "")
    lines = _lines(text or "")
    begin = _BEGIN_MADE if text is None else _BEGIN
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
        begin = _BEGIN_OPEN
    missing = [each for each in settings if not _placed(lines, old, each)]
    said = () if old else (f"version = {version}\n",)
    if missing or begin is _BEGIN_OPEN:
        lines.append(_block((*said, *_tables(missing)), begin))
    new = "".join(lines)
    wanted = parsed(text or "") or {"version": version}
    for each in settings:
        _put(wanted, each)
    try:
        right = tomllib.loads(new) == wanted
    except tomllib.TOMLDecodeError:
        right = False
    if not right or without_changes(new) != text:
        raise UnsupportedError(
            "the configuration has tables of these settings in a form that is not changed in place",
            hint=_BY_HAND,
        )
    return new


def parsed(text: str) -> dict[str, Any]:
    """Return what a file says.  Raises FormatError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"the configuration is no TOML: {error}") from error


def without_changes(text: str) -> str | None:
    """Return a file as it was before :func:`with_settings`, None if there was none."""
    kept: list[str] = []
    inside = made = False
    open_after = -1
    for line in _lines(text):
        if line.startswith(_BEGIN):
            inside = True
            made = made or line.startswith(_BEGIN_MADE)
            open_after = len(kept) if line.startswith(_BEGIN_OPEN) else open_after
        elif inside:
            if line.startswith(_KEPT):
                kept.append(line.removeprefix(_KEPT))
            inside = not line.startswith(_END)
        else:
            kept.append(line)
    found = "".join(kept)
    if open_after == len(kept):
        found = found.removesuffix("\n")
    return None if made and not found else found


def _lines(text: str) -> list[str]:
    """Return lines with their ends; what else Unicode ends a line with does not here."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _placed(lines: list[str], old: Mapping[str, Any], setting: Setting) -> bool:
    """Change the lines of a table that has a header; tell whether there is one."""
    table = _table(old, setting.table)
    if isinstance(table, Mapping) and table.get(setting.key) == setting.value:
        return True
    there = table.get(setting.key) if isinstance(table, Mapping) else None
    value = [*(there or []), *_listed(setting)] if setting.added else setting.value
    at = _header_at(lines, setting.table)
    if at is None or (setting.added and there and _header_at(lines, (*setting.table, setting.key))):
        return False
    line = f"{setting.key} = {literal(value)}\n"
    for number in range(at + 1, len(lines)):
        if _header(lines[number]):
            break
        if _key(lines[number]) == (setting.key,):
            lines[number] = _block((_KEPT + lines[number], line), _BEGIN)
            return True
    lines.insert(at + 1, _block((line,), _BEGIN))
    return True


def _listed(setting: Setting) -> Sequence[Any]:
    assert isinstance(setting.value, Sequence)
    return setting.value


def _header_at(lines: Sequence[str], table: Path) -> int | None:
    found = (number for number, line in enumerate(lines) if _header(line) == table)
    return next(found, None)


def _header(line: str) -> Path | None:
    """Return which table a line begins, None if it begins none."""
    match = _HEADER.fullmatch(line.rstrip("\r\n"))
    return None if match is None else _dotted(f"[{match[2]}]")


def _key(line: str) -> Path | None:
    match = _SETTING.match(line)
    return None if match is None else _dotted(f"{match[1]} = {{}}")


def _dotted(text: str) -> Path | None:
    """Return the names of a dotted key, as the only table of a file."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    names: list[str] = []
    while found:
        ((name, found),) = found.items()
        names.append(name)
    return tuple(names)


def _table(data: Any, path: Path) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def _put(data: Any, setting: Setting) -> None:
    for name in setting.table:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            return
    there = data.get(setting.key, []) if setting.added else None
    data[setting.key] = setting.value if there is None else [*there, *_listed(setting)]


def _tables(settings: Sequence[Setting]) -> list[str]:
    """Return the lines of tables that a file has not."""
    found: list[str] = []
    last: Path | None = None
    for each in (each for each in settings if not each.added):
        if each.table != last:
            found.append(f"[{_name(each.table)}]\n")
            last = each.table
        found.append(f"{each.key} = {literal(each.value)}\n")
    for each in (each for each in settings if each.added):
        for table in _listed(each):
            found.append(f"[[{_name((*each.table, each.key))}]]\n")
            found.extend(f"{key} = {literal(value)}\n" for key, value in table.items())
    return found


def _block(lines: Sequence[str], begin: str) -> str:
    return "".join((f"{begin}\n", *lines, f"{_END}\n"))


def _name(path: Path) -> str:
    return ".".join(each if re.fullmatch(r"[\w-]+", each) else literal(each) for each in path)


def literal(value: Value) -> str:
    """Return a value in one line."""
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{_name((key,))} = {literal(each)}" for key, each in value.items())
            + "}"
        )
    if isinstance(value, str | bool | int):
        return json.dumps(value, ensure_ascii=False)
    return "[" + ", ".join(map(literal, value)) + "]"
