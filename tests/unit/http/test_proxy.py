"""Which proxy a request takes."""

from __future__ import annotations

import pytest

from lamina.errors import UsageError
from lamina.http.proxy import Proxy, proxy_for
from lamina.http.url import Origin

HTTPS = Origin("https", "reg.example.com", 443)
HTTP = Origin("http", "reg.example.com", 5000)


@pytest.mark.parametrize(
    ("environment", "origin", "expected"),
    [
        ({}, HTTPS, None),
        ({"https_proxy": "http://p:3128"}, HTTPS, Proxy("p", 3128)),
        ({"HTTPS_PROXY": "p:3128"}, HTTPS, Proxy("p", 3128)),
        ({"https_proxy": "http://low", "HTTPS_PROXY": "http://up"}, HTTPS, Proxy("low", 80)),
        ({"https_proxy": "http://p"}, HTTP, None),
        ({"http_proxy": "http://p"}, HTTP, Proxy("p", 80)),
        ({"ALL_PROXY": "http://p"}, HTTP, Proxy("p", 80)),
        ({"http_proxy": "http://p"}, Origin("http", "127.0.0.1", 80), None),
        ({"http_proxy": "http://p"}, Origin("http", "localhost", 80), None),
    ],
)
def test_choice(environment: dict[str, str], origin: Origin, expected: Proxy | None) -> None:
    assert proxy_for(origin, environment) == expected


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "excluded"),
    [
        ("*", "reg.example.com", 443, True),
        ("example.com", "reg.example.com", 443, True),
        (".example.com", "reg.example.com", 443, True),
        ("*.example.com", "reg.example.com", 443, True),
        ("a, reg.example.com:443 ,b", "reg.example.com", 443, True),
        ("reg.example.com:444", "reg.example.com", 443, False),
        ("ample.com", "reg.example.com", 443, False),
        ("reg.example.com.org", "reg.example.com", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("10.1.2.3:443", "10.1.2.3", 443, True),
        ("fd00::/8", "fd00::1", 443, True),
        ("[fd00::1]:443", "fd00::1", 443, True),
        ("not/a/network", "10.1.2.3", 443, False),
        ("", "reg.example.com", 443, False),
    ],
)
def test_no_proxy(no_proxy: str, host: str, port: int, excluded: bool) -> None:
    environment = {"https_proxy": "http://p", "no_proxy": no_proxy}
    assert (proxy_for(Origin("https", host, port), environment) is None) is excluded


def test_login_of_the_proxy() -> None:
    proxy = proxy_for(HTTPS, {"https_proxy": "http://ada:a%40b@p:1"})
    assert proxy is not None
    assert proxy.authorization == "Basic YWRhOmFAYg=="
    assert "YWRh" not in repr(proxy)


@pytest.mark.parametrize("text", ["socks5://p", "https://p", "http://", "http://p:x"])
def test_other_proxies_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        proxy_for(HTTPS, {"https_proxy": text})
