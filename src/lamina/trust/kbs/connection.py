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
from lamina.registry.http1 import Connection, ProtocolError, arm
from lamina.registry.url import Url, is_loopback, parse_url
from lamina.trust.kbs.protocol import MAX_BODY_BYTES
from lamina.version import VERSION

if TYPE_CHECKING:
    import ssl

TIMEOUT_S: Final = 20.0
_WRONG_NAME: Final = (62, 64)
_WRONG_TIME: Final = (9, 10)
"""Codes of OpenSSL's verification (x509_vfy.h): another host name, another address; not valid yet,
expired."""


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
            connection = Connection(self._connect(deadline), self.timeout_s)
            connection.send(method, path, lines, body, deadline)
            response = connection.receive(deadline)
            answer = response.read_all(MAX_BODY_BYTES, f"the answer of the key broker {self}")
            return Answer(response.status, response.headers, answer)
        except OSError as error:
            raise self._explained(error) from None
        except ProtocolError as error:
            raise FetchError(
                f"the key broker {self} cannot be asked: {error}", hint=self._scheme_hint()
            ) from None
        finally:
            if connection is not None:
                connection.close()

    def _connect(self, deadline: float) -> socket.socket:
        origin = self.url.origin
        sock = _connected(origin.host, origin.port, deadline)
        if origin.scheme == "http":
            return sock
        try:
            # The timeout of a socket is one for the whole handshake.
            arm(sock, self.timeout_s, deadline)
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
                hint=self._certificate_hint(getattr(error, "verify_code", 0)),
            )
        if isinstance(error, TimeoutError):
            return FetchError(
                f"the key broker {self} did not answer in {self.timeout_s:.0f} s",
                hint="is it there, and is the port right? Proxies are not used for it",
            )
        reason, hint = error.strerror or str(error) or kind, None
        if isinstance(error, ConnectionRefusedError):
            hint = "is it running, and is the port right?"
        elif isinstance(error, ConnectionResetError):
            hint = self._scheme_hint()
        if kind.startswith("SSL"):
            hint = self._scheme_hint()
            reason = f"it does not speak TLS as it should ({getattr(error, 'reason', None)})"
        return FetchError(f"the key broker {self} cannot be asked: {reason}", hint=hint)

    def _certificate_hint(self, code: int) -> str:
        """What helps against a certificate that is refused; its authority only if that is it."""
        host = self.url.origin.host
        if code in _WRONG_NAME:
            return (
                f"its authority is the right one, but it is not for {host}: call the broker by a "
                "name that is in the certificate, or have one made for this one (an address has "
                "to be in it as an address, not as a DNS name)"
            )
        if code in _WRONG_TIME:
            return "look at the clock of this machine; else the broker needs a new certificate"
        return "give the PEM file of this broker's own authority with --kbs-ca"

    def _scheme_hint(self) -> str | None:
        """What helps where the other side does not speak what the address says."""
        if self.url.origin.scheme == "http":
            return "if it speaks TLS, write https:// and name its authority with --kbs-ca"
        return "is the port right? A broker without TLS is asked on this machine only, by http://"

    def __str__(self) -> str:
        return str(self.url.origin)


def _connected(host: str, port: int, deadline: float) -> socket.socket:
    """A connection to the first address that answers, each of which gets its part of the time."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        left_s = (deadline - time.monotonic()) / (len(addresses) - number)
        if left_s <= 0:
            break
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(left_s)
            sock.connect(address)
        except OSError:
            sock.close()
            if number + 1 == len(addresses):
                raise
        else:
            return sock
    raise TimeoutError("the deadline has passed")


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
