"""The mirrors of registries as containerd is configured with them: ``certs.d/HOST/hosts.toml``.

Source: containerd, ``docs/hosts.md`` and ``core/remotes/docker/config``.  The hosts of a file are
asked in their order, and its ``server``, or the registry itself, at last.  Unlike containerd, which
then goes on as if there were no file, one that is malformed is an error here: it may be what keeps
requests away from a registry.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from lamina.errors import FormatError, UsageError
from lamina.http.url import parse_url
from lamina.oci.reference import DEFAULT_REGISTRY

if TYPE_CHECKING:
    from lamina.http.tls import HostTls

FILE_NAME: Final = "hosts.toml"
CAPABILITIES: Final = frozenset(("pull", "resolve", "push", "referrers"))
DOCKER_HOST: Final = "registry-1.docker.io"
"""Where the registry that is called docker.io is."""
MAX_FILE_BYTES: Final = 1 << 20

_DEFAULT_FOLDER: Final = "_default"
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
_FIELDS: Final = frozenset(
    ("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout")
)
_OWN_HEADERS: Final = frozenset(
    (
        *("accept", "accept-encoding", "connection", "content-length", "content-type", "host"),
        *("range", "transfer-encoding"),
    )
)


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """One host that answers for a registry.

    ``scheme`` is empty where nobody said: it is then that of the registry's own host.  ``path`` is
    the root of the API, mostly ``/v2``.  ``client_pairs`` are files of a certificate and its key,
    which is None if both are in one file.  ``skip_verify`` is None where nobody said.
    """

    registry: str
    scheme: str
    authority: str
    path: str = "/v2"
    capabilities: frozenset[str] = CAPABILITIES
    ca_files: tuple[str, ...] = ()
    client_pairs: tuple[tuple[str, str | None], ...] = ()
    skip_verify: bool | None = None
    headers: tuple[tuple[str, str], ...] = ()
    connect_timeout_s: float | None = None

    @property
    def is_mirror(self) -> bool:
        """Whether it is somebody else than the registry itself."""
        own = _own_authority(self.registry)
        return _without_default_port(self.scheme, self.authority) != _without_default_port(
            self.scheme, own
        )

    def tls(self) -> HostTls:
        """Return how it is known, and how we prove ourselves to it."""
        from lamina.http.tls import HostTls

        name = parse_url(f"https://{self.authority}/").origin.authority
        verify = None if self.skip_verify is None else not self.skip_verify
        return HostTls(name, self.ca_files, self.client_pairs, verify)

    @property
    def request_headers(self) -> dict[str, str]:
        """What every request to it has."""
        found: dict[str, list[str]] = {}
        for name, value in self.headers:
            # Written as ours are, so that none is there twice.
            spelled = "-".join(part.capitalize() for part in name.split("-"))
            found.setdefault(spelled, []).append(value)
        return {name: ", ".join(values) for name, values in found.items()}

    @property
    def query(self) -> str:
        """What every request to it ends with: mirrors are told whose images are meant."""
        return f"ns={self.registry}" if self.is_mirror else ""


def find_hosts(roots: Sequence[str | os.PathLike[str]], registry: str) -> list[RegistryHost] | None:
    """Return who is asked for the images of a registry (``HOST`` or ``HOST:PORT``), in this order;
    None if no folder of *roots* has a file for it.

    Raises FormatError for a file that is malformed, UsageError for one that cannot be read.
    """
    for root in roots:
        for folder in _folders(Path(root), registry):
            if folder.is_dir():
                data = _read(folder / FILE_NAME)
                return None if data is None else parse_hosts(data, registry, folder)
    return None


def _folders(root: Path, registry: str) -> Iterator[Path]:
    host, colon, port = registry.rpartition(":")
    if colon and host:
        # A colon is a hard thing to have in the name of a folder.
        yield root / f"{host}_{port}_"
    yield root / registry
    yield root / _DEFAULT_FOLDER


def _read(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise FormatError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return data or None


def parse_hosts(data: bytes, registry: str, folder: Path) -> list[RegistryHost]:
    """Return the hosts of a file for a registry; relative paths in it are from *folder*.

    Raises FormatError.
    """
    where = folder / FILE_NAME
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} is no TOML: {error}") from error
    parser = _Parser(registry, folder)
    hosts = document.get("host", {})
    if not isinstance(hosts, dict):
        raise FormatError(f"{where} is malformed: its host is no table")
    found = [parser.host(name, fields) for name, fields in hosts.items()]
    server = document.get("server", "")
    if not isinstance(server, str):
        raise FormatError(f"{where} is malformed: its server is no text")
    own = {name: value for name, value in document.items() if name in _FIELDS}
    return [*found, parser.host(server, own)]


class _Parser:
    """Reads the tables of one file."""

    def __init__(self, registry: str, folder: Path) -> None:
        self._registry = registry
        self._folder = folder
        self._at = ""

    def host(self, name: str, fields: object) -> RegistryHost:
        self._at = name or "the server"
        if not isinstance(fields, dict):
            raise self._fault("is no table")
        scheme, authority, path = self._address(
            name, overriding=self._flag(fields, "override_path")
        )
        return RegistryHost(
            self._registry,
            scheme,
            authority,
            path,
            self._capabilities(fields),
            tuple(map(self._absolute, self._texts(fields.get("ca", ()), "ca"))),
            tuple(self._pairs(fields.get("client", ()))),
            self._flag(fields, "skip_verify") if "skip_verify" in fields else None,
            tuple(self._headers(fields.get("header", {}))),
            self._timeout(fields.get("dial_timeout")),
        )

    def _address(self, name: str, *, overriding: bool) -> tuple[str, str, str]:
        if not name:
            authority = _own_authority(self._registry)
            return ("https" if authority == DOCKER_HOST else "", authority, "/v2")
        try:
            url = urlsplit(name if "://" in name else f"https://{name}")
            port = url.port
        except ValueError as error:
            raise self._fault(f"is no address ({error})") from error
        if url.scheme not in ("http", "https") or not url.hostname or port == 0:
            raise self._fault("is no address of HTTP")
        path = re.sub("/+", "/", url.path).rstrip("/")
        if not (overriding or path.endswith("/v2")):
            path += "/v2"
        return url.scheme, url.netloc.rpartition("@")[2], path

    def _capabilities(self, fields: Mapping[str, Any]) -> frozenset[str]:
        found = frozenset(
            each.lower() for each in self._texts(fields.get("capabilities", ()), "capabilities")
        )
        if unknown := found - CAPABILITIES:
            raise self._fault(f"has an unknown capability {min(unknown)!r:.40}")
        return found or CAPABILITIES

    def _texts(self, value: object, name: str) -> list[str]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
            raise self._fault(f"has a {name} that is no list of texts")
        return list(values)

    def _pairs(self, value: object) -> Iterator[tuple[str, str | None]]:
        for each in [value] if isinstance(value, str) else value if isinstance(value, list) else ():
            match each:
                case str():
                    yield self._absolute(each), None
                case [str() as certificate, str() as key]:
                    yield self._absolute(certificate), self._absolute(key)
                case _:
                    raise self._fault("has a client that is no pair of certificate and key")
        if not isinstance(value, str | list | tuple):
            raise self._fault("has a client that is no list of files")

    def _headers(self, value: object) -> Iterator[tuple[str, str]]:
        if not isinstance(value, dict):
            raise self._fault("has a header that is no table")
        for name, texts in value.items():
            for text in self._texts(texts, "header"):
                if re.search(r"[\r\n\0]", name + text) or not re.fullmatch(r"[!-9;-~]+", name):
                    raise self._fault("has a header that no request can have")
                if name.lower() in _OWN_HEADERS:
                    raise self._fault(f"has the header {name:.40}, which each request has its own")
                yield name, text

    def _timeout(self, value: object) -> float | None:
        if value in (None, ""):
            return None
        if not isinstance(value, str) or not _DURATION.fullmatch(value):
            raise self._fault("has a dial_timeout that is no duration like 1m30s")
        parts = _DURATION_PART.findall(value)
        return sum(float(number) * _UNITS_S[unit] for number, unit in parts)

    def _flag(self, fields: Mapping[str, Any], name: str) -> bool:
        value = fields.get(name, False)
        if not isinstance(value, bool):
            raise self._fault(f"has a {name} that is neither true nor false")
        return value

    def _absolute(self, path: str) -> str:
        return os.path.join(self._folder, path)

    def _fault(self, what: str) -> FormatError:
        return FormatError(f"{self._folder / FILE_NAME} is malformed: {self._at[:80]} {what}")


def _without_default_port(scheme: str, authority: str) -> str:
    return authority.lower().removesuffix(":80" if scheme == "http" else ":443")


def _own_authority(registry: str) -> str:
    return DOCKER_HOST if registry == DEFAULT_REGISTRY else registry
