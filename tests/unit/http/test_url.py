"""URLs that a registry names: made safe, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import FetchError
from lamina.http.http1 import check_request
from lamina.http.url import is_loopback, parse_url

BASE = parse_url("https://reg.example:5000/v2/a/blobs/x?y=z")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://a.example/b", "https://a.example/b"),
        ("https://a.example:443/b?c=d%2F&e", "https://a.example/b?c=d%2F&e"),
        ("http://a.example:443", "http://a.example:443/"),
        ("http://[::1]:5000/x", "http://[::1]:5000/x"),
        ("/v2/b", "https://reg.example:5000/v2/b"),
        ("c?d", "https://reg.example:5000/v2/a/blobs/c?d"),
        ("//other.example/c", "https://other.example/c"),
        ("https://a.example/ü b", "https://a.example/%C3%BC%20b"),
        ("https://a.example/b#fragment", "https://a.example/b"),
        ("https://a.example./b", "https://a.example./b"),
        (f"https://{'a' * 63}.example/", f"https://{'a' * 63}.example/"),
    ],
)
def test_parse(text: str, expected: str) -> None:
    assert str(parse_url(text, BASE)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "ftp://a.example/",
        "file:///etc/passwd",
        "http://",
        "https://user:secret@a.example/",
        "https://a.example:99999/",
        "https://a.example:x/",
        "https://[::1/",
        "https://exämple/",
        "https://a b/",
        "https://a..b/",
        "https://.a.example/",
        "https://./",
        f"https://{'a' * 64}.example/",
        f"//{'a' * 64}/",
        "x" * 20_000,
    ],
)
def test_refuse(text: str) -> None:
    with pytest.raises(FetchError) as caught:
        parse_url(text, BASE)
    assert "secret" not in str(caught.value)


def test_a_query_is_a_secret() -> None:
    assert parse_url("https://a.example/b?sig=1").without_query == "https://a.example/b"


@given(st.text(max_size=60))
def test_any_url_that_is_taken_can_be_sent(text: str) -> None:
    try:
        url = parse_url("https://h.example/" + text)
    except FetchError:
        return
    check_request(url.target, {"Host": url.origin.authority})


@given(st.text("ab.-_:%[]0" + "a" * 5, min_size=1, max_size=90))
def test_any_host_that_is_taken_can_be_resolved(host: str) -> None:
    try:
        url = parse_url(f"https://{host}/")
    except FetchError:
        return
    assert url.origin.host.encode("idna")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("reg.example", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
