"""Requests to a key broker: HTTPS with one given authority, or HTTP to this machine itself.

Neither the system's authorities nor proxies nor redirects play a part: a broker is known by the
certificate that was handed over with its address, and by nothing else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.errors import FetchError, TrustError, UsageError
from lamina.http.client_options import ClientOptions
from lamina.http.transient import TransientError
from lamina.http.transport import Pool, translated
from lamina.http.url import Origin, Url, is_loopback, parse_url
from lamina.source.retry import ONCE, RetryPolicy, retry
from lamina.trust.broker.protocol import MAX_BODY_BYTES

if TYPE_CHECKING:
    import ssl

TIMEOUT_S: Final = 20.0
POLICY: Final = RetryPolicy(attempts=1, passing_attempts=4)
_PASSING: Final = frozenset((408, 429, 502, 503, 504))
_WRONG_NAME: Final = (62, 64)
_WRONG_TIME: Final = (9, 10)
"""Codes of OpenSSL's verification (x509_vfy.h): another host name, another address; not valid yet,
expired."""


class Answer(NamedTuple):
    """Status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes


class _PassingAnswerError(TransientError):
    """An answer that may be another one soon."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"it answers {answer.status}", is_answer=True)
        self.answer = answer


class Endpoint:
    """Where a broker is and how it is known.  Threads share it."""

    def __init__(self, url: Url, ca_file: str | None, timeout_s: float = TIMEOUT_S) -> None:
        """Connect to nobody yet.  A request with all its attempts takes *timeout_s* at most."""
        self.url = url
        self.timeout_s = timeout_s
        self._ca_file = ca_file
        # So few requests are made that no connection is kept.
        options = ClientOptions(timeout_s=timeout_s, deadline_s=timeout_s, connections=0)
        self._pool = Pool(options, context_of=self._context_of, through_proxies=False)

    def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes | None = None,
        *,
        again: bool = True,
    ) -> Answer:
        """Send one request, *again* while a failure may pass.

        Raises FetchError; TrustError if the broker cannot prove that it is the one.
        """
        deadline = time.monotonic() + self.timeout_s
        url, policy = Url(self.url.origin, path), POLICY if again else ONCE
        try:
            return retry(lambda: self._once(method, url, headers, body, deadline), policy, deadline)
        except _PassingAnswerError as error:
            return error.answer
        except FetchError as error:
            raise self._explained(error) from None

    def _once(
        self, method: str, url: Url, headers: dict[str, str], body: bytes | None, deadline: float
    ) -> Answer:
        with translated(url.origin):
            response = self._pool.request(method, url, headers, body, deadline)
            try:
                data = response.read_all(MAX_BODY_BYTES, f"the answer of the key broker {self}")
            finally:
                response.close()
        answer = Answer(response.status, response.headers, data)
        if answer.status in _PASSING:
            raise _PassingAnswerError(answer)
        return answer

    def _context_of(self, _origin: Origin) -> ssl.SSLContext:
        from lamina.http.tls import context_of_authority

        assert self._ca_file is not None
        return context_of_authority(self._ca_file)

    def _explained(self, failure: FetchError) -> FetchError | TrustError:
        error = failure.__cause__
        if not isinstance(error, OSError):
            return FetchError(
                f"the key broker {self} cannot be asked: {failure}", hint=self._scheme_hint()
            )
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
                hint="check the address and the port; it is asked past every proxy",
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
        """Return what helps against a certificate that is refused; its authority only if that is
        it.
        """
        host = self.url.origin.host
        if code in _WRONG_NAME:
            return (
                f"its authority is the right one, but it is not for {host}: call the broker by a "
                "name that is in the certificate, or have one made for this one (an address has "
                "to be in it as an address, not as a DNS name)"
            )
        if code in _WRONG_TIME:
            return "look at the clock of this machine; else the broker needs a new certificate"
        return (
            "give the PEM file of this broker's own authority with --kbs-ca; in a guest it is "
            "kbc.kbs_cert of the init-data"
        )

    def _scheme_hint(self) -> str | None:
        """Return what helps where the other side does not speak what the address says."""
        if self.url.origin.scheme == "http":
            return "if it speaks TLS, write https:// and name its authority with --kbs-ca"
        return "is the port right? A broker without TLS is asked on this machine only, by http://"

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
