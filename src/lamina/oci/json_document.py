"""JSON documents of images, which may be hostile, as typed values.

Nearly all of them are written and read by Go programs, whose reader takes ``null`` for what is
empty and does not care how the letters of a field are cased.  So does this one; but where two
readers could see two documents, in keys that are there twice, it refuses.  Sources: RFC 8259 §4;
Go's ``encoding/json``, "Unmarshal".
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar, get_args

import msgspec

from lamina.errors import FormatError

T = TypeVar("T", bound=msgspec.Struct)

_SHOWN: Final = 80
_MAX_PARTS: Final = 1 << 20
"""Values of a document, about: each takes a hundred bytes of memory, however short it is."""
MAX_DEPTH: Final = 256
"""Of objects and arrays in each other.  What Python takes differs from version to version: 1 000 in
3.11, 10 000 in 3.13, and what the stack holds from 3.14 on.
"""


def load(data: bytes, what: str, limit_bytes: int) -> Any:
    """Decode JSON of at most ``limit_bytes``; ``what`` names it in errors.

    Raises FormatError for what is no JSON or has too many values, and for an object that has a key
    twice.
    """
    if len(data) > limit_bytes:
        raise FormatError(f"the {what} has {len(data)} bytes, more than {limit_bytes}")
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_PARTS:
        raise FormatError(f"the {what} has more than {_MAX_PARTS} values")
    try:
        # The one is strict about text and numbers, the other tells keys that come again.
        msgspec.json.decode(data)
        value = json.loads(data, object_pairs_hook=_unique)
    except RecursionError:
        raise FormatError(f"the {what} is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise FormatError(f"the {what} is malformed: {error}") from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise FormatError(f"the {what} is nested too deeply")
    return value


def _is_deep(value: Any) -> bool:
    """Tell whether a document is nested deeper than it may be."""
    level = [value]
    for _ in range(MAX_DEPTH):
        children = (each.values() if isinstance(each, dict) else each for each in level)
        level = [item for inner in children for item in inner if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def load_object(data: bytes, what: str, limit_bytes: int) -> dict[str, Any]:
    """Do as :func:`load` for an object; FormatError for anything else."""
    value = load(data, what, limit_bytes)
    if not isinstance(value, dict):
        raise FormatError(f"the {what} is malformed: it is no object")
    return value


def shape(value: Any, kind: type[T], what: str) -> T:
    """Turn what :func:`load` returned into a struct; FormatError if it does not fit."""
    try:
        return msgspec.convert(_fitted(value, kind), kind)
    except RecursionError:
        raise FormatError(f"the {what} is nested too deeply") from None
    except (msgspec.MsgspecError, _TwiceError) as error:
        raise FormatError(f"the {what} is malformed: {error}") from None


def spelled(value: dict[str, Any], kind: type[msgspec.Struct], what: str) -> dict[str, Any]:
    """Return the object with the names of ``kind``'s fields as it spells them, all else as it is.

    Raises FormatError for a field that is there twice.
    """
    names = _fields(kind)
    found: dict[str, Any] = {}
    for key, item in value.items():
        field = names.get(key.casefold())
        name = key if field is None else field.name
        if name in found:
            raise FormatError(f"the {what} is malformed: {_TwiceError(name)}")
        found[name] = item
    return found


def folded(value: dict[str, Any], names: Collection[str], what: str) -> dict[str, Any]:
    """Return the members whose folded keys are among some names, by these.

    Raises FormatError for one that is there twice: it may be another for who heeds the letters.
    """
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = key.casefold()
        if name not in names:
            continue
        if name in found:
            raise FormatError(f"the {what} is malformed: {_TwiceError(key)}")
        found[name] = item
    return found


class _Field(NamedTuple):
    """A field of a struct: its name in JSON, the struct that its value holds, if any, and whether
    the value is a map of texts.
    """

    name: str
    inner: type[msgspec.Struct] | None
    is_text_map: bool


class _TwiceError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key[:_SHOWN]!r} is there twice")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        for key, _ in pairs:
            if key not in found:
                raise _TwiceError(key)
            del found[key]
    return found


def _fitted(value: Any, kind: type[msgspec.Struct]) -> Any:
    """Return the value with the fields of structs spelled as they are declared, and without
    nulls.
    """
    if isinstance(value, list):
        return [_fitted(item, kind) for item in value]
    if not isinstance(value, dict):
        return value
    names = _fields(kind)
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for key, item in value.items():
        field = names.get(key.casefold())
        if field is None:
            continue
        if field.name in seen:
            raise _TwiceError(field.name)
        seen.add(field.name)
        if item is not None:
            found[field.name] = _fitted_field(item, field)
    return found


def _fitted_field(item: Any, field: _Field) -> Any:
    if field.inner is not None:
        return _fitted(item, field.inner)
    if field.is_text_map and isinstance(item, dict):
        return {key: "" if text is None else text for key, text in item.items()}
    return item


@lru_cache(maxsize=64)
def _fields(kind: type[msgspec.Struct]) -> dict[str, _Field]:
    """Return the fields of a struct by their folded names."""
    return {
        field.encode_name.casefold(): _Field(
            field.encode_name, _struct_in(field.type), get_args(field.type)[:2] == (str, str)
        )
        for field in msgspec.structs.fields(kind)
    }


def _struct_in(annotation: Any) -> type[msgspec.Struct] | None:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    return next(filter(None, map(_struct_in, get_args(annotation))), None)
