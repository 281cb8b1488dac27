"""URLs of registries, token services and the places they redirect to: parsed once, safe to put in a
request.
"""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from lamina.errors import FetchError

_MAX_URL: Final = 16 << 10
_PORTS: Final = {"http": 80, "https": 443}
_SAFE: Final = "%/:=&?~#+!$,;'@()*[]"


class Origin(NamedTuple):
    """Scheme, host and port: the boundary that credentials do not cross."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The Host header: the port only if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


class Url(NamedTuple):
    """An http or https URL: origin and request target (path and query, percent-encoded)."""

    origin: Origin
    target: str

    def __str__(self) -> str:
        return f"{self.origin}{self.target}"

    @property
    def without_query(self) -> str:
        """For messages: queries of signed URLs are secrets."""
        return f"{self.origin}{self.target.partition('?')[0]}"


def parse_url(text: str, base: Url | None = None) -> Url:
    """Parse an absolute URL, or one relative to *base*.

    Raises FetchError for other schemes, user names in it, hosts or ports that make no sense.
    """
    if len(text) > _MAX_URL:
        raise FetchError("a URL from the registry is longer than 16 KiB")
    try:
        parts = urlsplit(urljoin(str(base), text) if base else text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise FetchError("a URL from the registry is malformed") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not host or "@" in parts.netloc:
        raise FetchError("a URL from the registry is not a plain http or https URL")
    if not host.isascii() or not host.replace("%", "").isprintable() or " " in host:
        raise FetchError("a URL from the registry has a malformed host")
    try:
        # As the resolver and TLS do, which would raise this as it is: empty and too long labels.
        host.encode("idna")
    except UnicodeError:
        raise FetchError("a URL from the registry has a malformed host") from None
    target = quote(parts.path or "/", safe=_SAFE, errors="surrogateescape")
    if parts.query:
        target += "?" + quote(parts.query, safe=_SAFE, errors="surrogateescape")
    return Url(Origin(scheme, host, port or _PORTS[scheme]), target)


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
