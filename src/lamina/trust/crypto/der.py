"""ASN.1 DER as far as PKCS#7 needs it: tag, length, value (X.690)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lamina.errors import FormatError

SEQUENCE = 0x30
SET = 0x31
INTEGER = 0x02
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
CONTEXT_0 = 0xA0
CONTEXT_0_PRIMITIVE = 0x80


class Element(NamedTuple):
    """One value: its identifier byte, its content, and all its bytes."""

    tag: int
    content: bytes
    encoded: bytes


def read(data: bytes, what: str) -> Element:
    """Return the one element that the bytes are.  Raises FormatError for anything before its end or
    after it.
    """
    element, end = _read_at(data, 0, what)
    if end != len(data):
        raise FormatError(f"the {what} has bytes after its end")
    return element


def children(element: Element, what: str) -> Iterator[Element]:
    """Yield the elements inside one."""
    position = 0
    while position < len(element.content):
        child, position = _read_at(element.content, position, what)
        yield child


def expect(element: Element, tag: int, what: str) -> Element:
    """Raise FormatError unless the element has the tag."""
    if element.tag != tag:
        raise FormatError(f"the {what} has the tag {element.tag:#04x} where {tag:#04x} must be")
    return element


def sequence(element: Element, tags: tuple[int, ...], what: str) -> list[Element]:
    """Return the elements of a SEQUENCE that has exactly these tags in it."""
    found = list(children(expect(element, SEQUENCE, what), what))
    if tuple(item.tag for item in found) != tags:
        raise FormatError(f"the {what} does not have the parts it must have")
    return found


def encode(tag: int, *contents: bytes) -> bytes:
    """Tag, length in its shortest form, contents."""
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _read_at(data: bytes, start: int, what: str) -> tuple[Element, int]:
    if len(data) - start < 2 or data[start] & 0x1F == 0x1F:
        raise FormatError(f"the {what} is no DER")
    size, position = data[start + 1], start + 2
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(data[position : position + count], "big")
        if not 0 < count <= 4 or data[position : position + 1] == b"\0" or size < 0x80:
            raise FormatError(f"the {what} has a length that is not DER")
        position += count
    end = position + size
    if end > len(data):
        raise FormatError(f"the {what} is truncated")
    return Element(data[start], data[position:end], data[start:end]), end
