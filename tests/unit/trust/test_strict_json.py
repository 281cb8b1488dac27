from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import FormatError
from lamina.trust import strict_json as j


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":2}', b'{"x":{"a":1,"a":2}}', b'{"a":NaN}', b'{"a":Infinity}', b"[]", b"",
        b"\xff",
        b'{"a":1}x', b"[" * 100000, b'{"a":' * 100000, b'{"a":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_object(text: bytes) -> None:
    with pytest.raises(FormatError):
        j.parse_object(text, "thing")


def test_keys() -> None:
    assert j.expect_keys({"a": 1}, "thing", ("a",), ("b",)) == {"a": 1}
    for value in ({}, {"a": 1, "c": 1}, [], None):
        with pytest.raises(FormatError, match="thing"):
            j.expect_keys(value, "thing", ("a",), ("b",))
    with pytest.raises(FormatError):
        j.parse_object(b"{} ", "thing", 2)


@given(st.binary(max_size=60))
def test_base64_has_one_spelling(data: bytes) -> None:
    url = j.encode_base64url(data)
    assert j.decode_base64url(url, "x") == data
    assert j.decode_base64(base64.b64encode(data).decode(), "x", len(data)) == data
    for wrong in (url + "=", url + "\n", " " + url, url + "é"):
        with pytest.raises(FormatError):
            j.decode_base64url(wrong, "x")
    with pytest.raises(FormatError):
        j.decode_base64(base64.b64encode(data).decode(), "x", len(data) + 1)


def test_spare_bits_and_types() -> None:
    for wrong in ("QQ", "QR", 5, None):
        with pytest.raises(FormatError):
            j.decode_base64(wrong, "x")
    for wrong in ("QR", "Q", 5):
        with pytest.raises(FormatError):
            j.decode_base64url(wrong, "x")
