"""Which proxy a request goes through: the environment variables that curl, Go and Python share."""

from __future__ import annotations

import ipaddress
import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from lamina.errors import UsageError
from lamina.http.url import Origin, is_loopback


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)


def proxy_for(origin: Origin, environment: Mapping[str, str] | None = None) -> Proxy | None:
    """Return the proxy for an origin by ``https_proxy``, ``http_proxy``, ``all_proxy`` and
    ``no_proxy``.

    Lower case wins over upper case.  Loopback hosts are never asked through a proxy.
    Raises UsageError for a proxy that is not an ``http://`` URL.
    """
    env = os.environ if environment is None else environment
    text = _variable(env, f"{origin.scheme}_proxy") or _variable(env, "all_proxy")
    if not text or is_loopback(origin.host) or _excluded(origin, _variable(env, "no_proxy")):
        return None
    return _parse(text)


def _variable(env: Mapping[str, str], name: str) -> str:
    return (env.get(name) or env.get(name.upper()) or "").strip()


def _parse(text: str) -> Proxy:
    hint = "write http://HOST:PORT in https_proxy"
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError("the proxy in the environment is malformed", hint=hint) from None
    if parts.scheme != "http" or not host:
        raise UsageError("the proxy in the environment is not an http:// URL", hint=hint)
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + b64encode(pair.encode()).decode()
    return Proxy(host, port or 80, authorization)


def _excluded(origin: Origin, no_proxy: str) -> bool:
    return any(
        _matches(origin, item.strip().lower()) for item in no_proxy.split(",") if item.strip()
    )


def _matches(origin: Origin, item: str) -> bool:
    if item == "*":
        return True
    name, colon, port = item.rpartition(":")
    if colon and port.isdecimal() and (":" not in name or name.startswith("[")):
        if int(port) != origin.port:
            return False
        item = name
    item = item.strip("[]")
    host = origin.host.lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        domain = item.lstrip("*").lstrip(".")
        return host == domain or host.endswith(f".{domain}")
    try:
        return address in ipaddress.ip_network(item, strict=False)
    except ValueError:
        return False
