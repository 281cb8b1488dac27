"""Requests to a key broker: HTTPS with one given authority, or HTTP to this machine itself.

Neither the system's authorities nor proxies nor redirects play a part: a broker is known by the
certificate that was handed over with its address, and by nothing else.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.errors import FetchError, TrustError, UsageError
from lamina.registry.http1 import Connection
from lamina.registry.url import Url, is_loopback, parse_url
from lamina.trust.kbs.protocol import MAX_BODY_BYTES
from lamina.version import VERSION

if TYPE_CHECKING:
    import ssl

TIMEOUT_S: Final = 20.0


class Answer(NamedTuple):
    """Status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a broker is and how it is known."""

    url: Url
    ca_file: str | None
    timeout_s: float = TIMEOUT_S

    def request(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None
    ) -> Answer:
        """One request over a connection of its own, answered within ``timeout_s``.

        Raises FetchError; TrustError if the broker cannot prove that it is the one.
        """
        deadline = time.monotonic() + self.timeout_s
        lines = {"Host": self.url.origin.authority, "User-Agent": f"lamina/{VERSION}", **headers}
        connection = None
        try:
            connection = Connection(self._connect(), self.timeout_s)
            connection.send(method, path, lines, body, deadline)
            response = connection.receive(deadline)
            answer = response.read_all(MAX_BODY_BYTES, f"the answer of the key broker {self}")
            return Answer(response.status, response.headers, answer)
        except OSError as error:
            raise self._explained(error) from None
        finally:
            if connection is not None:
                connection.close()

    def _connect(self) -> socket.socket:
        origin = self.url.origin
        sock = socket.create_connection((origin.host, origin.port), timeout=self.timeout_s)
        if origin.scheme == "http":
            return sock
        try:
            return self._context().wrap_socket(sock, server_hostname=origin.host)
        except BaseException:
            sock.close()
            raise

    def _context(self) -> ssl.SSLContext:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_verify_locations(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or "it holds no PEM certificate"
            raise UsageError(f"cannot use the CA file {self.ca_file}: {reason}") from None
        return context

    def _explained(self, error: OSError) -> FetchError | TrustError:
        kind = type(error).__name__
        if kind == "SSLCertVerificationError":
            reason = getattr(error, "verify_message", "") or "it cannot be verified"
            return TrustError(
                f"{self} is not the key broker that is trusted: its certificate is refused: "
                f"{reason}",
                hint="give the broker's authority with --kbs-ca",
            )
        if isinstance(error, TimeoutError):
            return FetchError(f"the key broker {self} did not answer in {self.timeout_s:.0f} s")
        reason = error.strerror or str(error) or kind
        if kind.startswith("SSL"):
            reason = f"it does not speak TLS as it should ({getattr(error, 'reason', None)})"
        return FetchError(f"the key broker {self} cannot be asked: {reason}")

    def __str__(self) -> str:
        return str(self.url.origin)


def parse_endpoint(url: str, ca_file: str | None, timeout_s: float = TIMEOUT_S) -> Endpoint:
    """Check the address of a broker.

    Raises UsageError: for https there has to be a CA file, and http is for this machine only.
    """
    try:
        parsed = parse_url(url)
    except FetchError:
        raise UsageError(f"{url[:200]!r} is no address of a key broker") from None
    if parsed.target not in ("", "/"):
        raise UsageError(f"the address {url[:200]!r} of the key broker has a path in it")
    if parsed.origin.scheme == "http" and not is_loopback(parsed.origin.host):
        raise UsageError(
            f"{parsed.origin} is another machine, and keys are not asked for without TLS",
            hint="write https://",
        )
    if parsed.origin.scheme == "https" and not ca_file:
        raise UsageError(
            f"nothing tells by which certificate the key broker {parsed.origin} is known",
            hint="give the PEM file of its authority with --kbs-ca",
        )
    return Endpoint(parsed, ca_file, timeout_s)
