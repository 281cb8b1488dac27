"""TLS settings of a host: the system's authorities, ``certs.d`` folders, a CA file of the user's.

Only imported for https, because ``ssl`` and the system store cost some ten milliseconds. Folders as
in containers-certs.d(5) and Docker's documentation: ``HOST[:PORT]/*.crt`` are authorities,
``*.cert`` with ``*.key`` is a client certificate.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Sequence
from typing import NamedTuple

from lamina.errors import UsageError
from lamina.http.url import Origin


class HostTls(NamedTuple):
    """What is configured for one host, ``HOST[:PORT]``, and for no other.

    ``client_pairs`` are certificates with their keys, None where both are in one file; ``verify``
    is None where nobody said.
    """

    authority: str
    ca_files: Sequence[str] = ()
    client_pairs: Sequence[tuple[str, str | None]] = ()
    verify: bool | None = None


class TlsContexts:
    """One ``ssl.SSLContext`` a host, made when first needed.  Thread-safe."""

    def __init__(self, ca_file: str | None, *, verify: bool, host: HostTls | None = None) -> None:
        self._ca_file = ca_file
        self._verify = verify
        self._host = host
        self._lock = threading.Lock()
        self._contexts: dict[str, ssl.SSLContext] = {}

    def context(self, origin: Origin) -> ssl.SSLContext:
        """Return the context for an origin; UsageError if a certificate file cannot be used."""
        with self._lock:
            found = self._contexts.get(origin.authority)
            if found is None:
                found = self._contexts[origin.authority] = self._create(origin)
            return found

    def _create(self, origin: Origin) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        host = self._host if self._host and self._host.authority == origin.authority else None
        if not (self._verify if host is None or host.verify is None else host.verify):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self._ca_file is not None:
            _load_authority(context, self._ca_file)
        for folder in certificate_folders(origin):
            for name in _names(folder):
                path = os.path.join(folder, name)
                if name.endswith(".crt"):
                    _load_authority(context, path)
                elif name.endswith(".cert"):
                    _load_client(context, path, path.removesuffix(".cert") + ".key")
        if host is not None:
            for path in host.ca_files:
                _load_authority(context, path)
            for certificate, key in host.client_pairs:
                _load_client(context, certificate, key)
        return context


def context_of_authority(ca_file: str) -> ssl.SSLContext:
    """Return the context that knows servers by one authority and nothing else.

    Raises UsageError if the file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_authority(context, ca_file)
    return context


def certificate_folders(origin: Origin) -> list[str]:
    """Return the ``certs.d`` folders that there are for an origin."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    roots = (f"{config}/containers/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d")
    names = dict.fromkeys((origin.authority, f"{origin.host}:{origin.port}"))
    folders = [os.path.join(root, name) for root in roots for name in names]
    return [folder for folder in folders if os.path.isdir(folder)]


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        reason = error.strerror
        raise UsageError(f"cannot read the certificates in {folder}: {reason}") from error


def _load_authority(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "it holds no PEM certificate"
        raise UsageError(f"cannot use the CA file {path}: {reason}") from error


def _load_client(context: ssl.SSLContext, path: str, key: str | None) -> None:
    try:
        context.load_cert_chain(path, key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"cannot use the client certificate {path} with {key or 'the key in it'}"
        ) from error
