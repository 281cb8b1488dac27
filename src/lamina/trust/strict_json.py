"""JSON where a second meaning would be an attack: no duplicate keys, no unknown keys, no NaN."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from typing import Any, NoReturn

from lamina.errors import FormatError


def parse_object(data: bytes | str, what: str, limit_bytes: int = 1 << 20) -> dict[str, Any]:
    """Parse one JSON object; ``what`` names it in errors.

    Raises FormatError for anything else, for duplicate keys at any depth, numbers that are no JSON,
    and more than ``limit_bytes``.
    """
    if len(data) > limit_bytes:
        raise FormatError(f"the {what} has {len(data)} bytes, more than {limit_bytes}")

    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is no JSON number")

    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        # The text of a JSONDecodeError has the position only, never the document.
        raise FormatError(f"the {what} is malformed JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"the {what} is no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def expect_keys(
    value: Any, what: str, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    """Raise FormatError unless the value is an object with all required and no other keys."""
    if not isinstance(value, dict):
        raise FormatError(f"the {what} is no JSON object")
    if missing := sorted(set(required) - value.keys()):
        raise FormatError(f"the {what} has no {missing[0]!r}")
    if unknown := sorted(value.keys() - set(required) - set(optional)):
        raise FormatError(f"the {what} has an unknown key {unknown[0][:80]!r}")
    return value


def text_of(value: Any, what: str) -> str:
    """Raise FormatError unless the value is a string."""
    if not isinstance(value, str):
        raise FormatError(f"the {what} is no string")
    return value


def decode_base64(value: Any, what: str, size_bytes: int | None = None) -> bytes:
    """Decode standard base64 with padding, of exactly ``size_bytes`` if that is given."""
    try:
        data = base64.b64decode(text_of(value, what).encode("ascii"), validate=True)
    except ValueError:
        raise FormatError(f"the {what} is no base64") from None
    if base64.b64encode(data).decode("ascii") != value:
        raise FormatError(f"the {what} is no base64")
    return _sized(data, what, size_bytes)


def decode_base64url(value: Any, what: str, size_bytes: int | None = None) -> bytes:
    """Decode base64url without padding (RFC 7515), of exactly ``size_bytes`` if that is given."""
    text = text_of(value, what)
    try:
        encoded = text.encode("ascii")
        data = base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
    except ValueError:
        raise FormatError(f"the {what} is no base64url") from None
    # Python skips characters that do not belong and ignores spare bits.
    if encode_base64url(data) != text:
        raise FormatError(f"the {what} is no base64url")
    return _sized(data, what, size_bytes)


def _sized(data: bytes, what: str, size_bytes: int | None) -> bytes:
    if size_bytes is not None and len(data) != size_bytes:
        raise FormatError(f"the {what} has {len(data)} bytes, not {size_bytes}")
    return data


def encode_base64(data: bytes) -> str:
    """Encode as standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def encode_base64url(data: bytes) -> str:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def compact(value: Any) -> bytes:
    """Encode as JSON without spaces, keys in the order given."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
