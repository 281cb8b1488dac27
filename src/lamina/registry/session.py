"""Requests to one repository of a registry: authorization, redirects, retries, errors in words.

Registries on loopback are asked over plain HTTP unless they answer that they speak TLS; all others
over HTTPS unless ``plain_http`` is set.  The Authorization header never goes to another origin than
the registry's. Source: OCI distribution specification 1.1.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from lamina.errors import AuthError, FetchError, NotFoundError
from lamina.http.client_options import ClientOptions
from lamina.http.http1 import Body, ProtocolError, Response
from lamina.http.pace import LEAST_BYTES_PER_S, WINDOW_S, Pace
from lamina.http.transient import TransientError
from lamina.http.transport import Pool, translated
from lamina.http.url import Url, is_loopback, parse_url
from lamina.oci.reference import DEFAULT_REGISTRY, Reference
from lamina.registry.auth import Authorizer
from lamina.source.retry import RetryPolicy, retry

if TYPE_CHECKING:
    from lamina.registry.hosts_file import RegistryHost

CUT_HINT: Final = "what the registry has is cut: push the image again, or use another registry"
_HUB_HOST: Final = "registry-1.docker.io"
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_REDIRECTS_OF_ALL: Final = frozenset((307, 308))
_TRANSIENT: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,18})")
_MAX_ERROR_BYTES: Final = 64 << 10
_ERROR_BODY_S: Final = 5.0
_MAX_PAUSE_S: Final = 5.0
_MAX_RETRY_AFTER_S: Final = 30.0

SUCCESS: Final = range(200, 300)
"""What an answer to a write may be: registries differ in which of them they send."""

T = TypeVar("T")


class RangeRefusedError(FetchError):
    """416.  ``total_bytes`` is the size of all there is, if the registry tells it."""

    def __init__(self, message: str, *, total_bytes: int | None) -> None:
        super().__init__(message, hint=CUT_HINT)
        self.total_bytes = total_bytes


class Answer(NamedTuple):
    """A whole response."""

    status: int
    headers: dict[str, str]
    data: bytes
    url: Url

    @property
    def refusal(self) -> str:
        """What it says of an error, with the registry's reason."""
        return f"{self.url.without_query} answers {self.status}{_reason(self.data)}"


class Call(NamedTuple):
    """What a request carries and which statuses are fine."""

    scope: str
    expected: Collection[int] = (200,)
    headers: Mapping[str, str] = MappingProxyType({})
    body: Body | None = None
    limit_bytes: int = _MAX_ERROR_BYTES


class _ErrorItem(msgspec.Struct):
    code: str = ""
    message: str = ""


class _ErrorAnswer(msgspec.Struct):
    errors: list[_ErrorItem] = []


class Session:
    """The connection pool, the authorization and the address of one repository.  Thread-safe."""

    def __init__(
        self, reference: Reference, options: ClientOptions, host: RegistryHost | None = None
    ) -> None:
        """Ask *host* for the repository, by default the registry itself.

        A mirror gets the credentials that are kept for it, never those of the registry.
        """
        self.options = options
        self.pool = Pool(options, host_tls=None if host is None else host.tls)
        if host is not None and host.is_mirror:
            reference = replace(reference, registry=host.authority)
            options = replace(options, username=None, password=None)
        self.reference = reference
        self.authorizer = Authorizer(self.pool, reference, options)
        self._lock = threading.Lock()
        self._path = "/v2/" if host is None else f"{host.path}/"
        self._query = "" if host is None else host.query
        self._headers = {} if host is None else host.request_headers
        self._base: Url | None = None
        if host is not None and host.scheme:
            self._base = parse_url(f"{host.scheme}://{host.authority}{self._path}")
        self._policy = RetryPolicy(
            attempts=1, passing_attempts=options.attempts, max_pause_s=_MAX_PAUSE_S
        )

    def url(self, path: str, limit: float = math.inf) -> Url:
        """Return the URL of a path below ``/v2/REPOSITORY/``, which is known by *limit*."""
        base = self._base or self._find_base(limit)
        target = f"{base.target}{self.reference.repository}/{path}"
        if self._query:
            target += f"{'&' if '?' in path else '?'}{self._query}"
        return Url(base.origin, target)

    def scope(self, actions: str = "pull", repository: str | None = None) -> str:
        """Return the token scope of actions on a repository, by default this one."""
        return f"repository:{repository or self.reference.repository}:{actions}"

    def deadline(self, sent_bytes: int = 0) -> float:
        """Return when a request must have ended that sends so many bytes of ours, on the monotonic
        clock.

        What a registry sends has no part in it: it may claim any size.
        """
        return time.monotonic() + self.options.deadline_s + sent_bytes / LEAST_BYTES_PER_S

    def pace(self) -> Pace:
        """Return the least speed of a transfer that may take several requests."""
        return Pace(min(WINDOW_S, self.options.deadline_s))

    def range_deadline(self, size_bytes: int) -> float:
        """Return the deadline of a single attempt to read a range: somebody is waiting for it."""
        options = self.options
        wait_s = min(options.deadline_s, options.timeout_s) + size_bytes / LEAST_BYTES_PER_S
        return time.monotonic() + wait_s

    def send(
        self,
        method: str,
        url: Url,
        scope: str,
        headers: Mapping[str, str],
        body: Body | None,
        deadline: float,
    ) -> tuple[Response, Url]:
        """Send one request with its authorization and redirects; the answer of any status and
        where it came from.

        A stream is sent once: one that would have to be sent again is a TransientError.  Raises
        AuthError, TransientError or another FetchError.
        """
        home = url.origin if self._base is None else self._base.origin
        streamed = not (body is None or isinstance(body, bytes))
        followed = _REDIRECTS if method in ("GET", "HEAD") else _REDIRECTS_OF_ALL
        refusals = 0
        for _ in range(_MAX_REDIRECTS + 2):
            sent = self.authorizer.header(scope) if url.origin == home else None
            lines = {**self._headers, **headers} if url.origin == home else headers
            lines = {**lines, "Authorization": sent} if sent else lines
            response = self.pool.request(method, url, lines, body, deadline)
            if response.status == 401 and url.origin == home and refusals < 2:
                refusals += 1
                challenge = response.headers.get("www-authenticate", "")
                response.close()
                self.authorizer.answer(challenge, scope, sent, url.origin, deadline)
                if streamed:
                    raise TransientError(f"{home} wants a new login for the next attempt")
            elif response.status in followed and not streamed:
                response.close()
                url = parse_url(response.headers.get("location", ""), url)
            else:
                return response, url
        raise FetchError(f"{home} redirects without end")

    def fetch(self, method: str, url: Url, call: Call, limit: float = math.inf) -> Answer:
        """Send a request, with all its retries, and return its whole answer by *limit*.

        Raises NotFoundError for 404, AuthError for 401 and 403, FetchError for other statuses that
        are not expected and for bodies over the limit.
        """
        deadline = min(limit, self.deadline(0 if call.body is None else len(call.body)))
        return self.retry(lambda: self.once(method, url, call, deadline), deadline)

    def once(self, method: str, url: Url, call: Call, deadline: float) -> Answer:
        """Make one attempt of :meth:`fetch`."""
        response, last = self.send(method, url, call.scope, call.headers, call.body, deadline)
        self.check(response, last, call.expected)
        try:
            with translated(last.origin):
                data = response.read_all(call.limit_bytes, f"the answer of {last.without_query}")
        finally:
            response.close()
        return Answer(response.status, response.headers, data, last)

    def retry(self, action: Callable[[], T], deadline: float) -> T:
        """Run an action again while it raises a FetchError that may pass, with growing pauses,
        until the deadline.
        """
        return retry(action, self._policy, deadline)

    def check(self, response: Response, url: Url, expected: Collection[int]) -> None:
        """Close the response and raise the error that its status means, unless the status is
        expected.
        """
        if response.status in expected:
            coding = response.headers.get("content-encoding", "identity")
            if coding.lower() != "identity" and not response.finished:
                response.close()
                raise FetchError(
                    f"{url.without_query} is sent in the coding {coding[:40]!r}, unasked"
                )
            return
        status = response.status
        retry_after = response.headers.get("retry-after", "")
        content_range = response.headers.get("content-range", "")
        message = Answer(status, {}, _error_body(response), url).refusal
        if status == 400 and url.origin.scheme == "http":
            raise FetchError(message, hint="if it speaks TLS, leave --plain-http out")
        if status in (401, 403):
            hint = f"log in with `docker login {self.reference.registry}`, or check the permissions"
            raise AuthError(message, hint=hint)
        if status == 404:
            raise NotFoundError(
                message, hint="check the repository, the tag and the registry's name"
            )
        if status == 416:
            total = _UNSATISFIED.fullmatch(content_range)
            raise RangeRefusedError(
                f"{message}: there is less of it than was asked for",
                total_bytes=int(total[1]) if total else None,
            )
        if status in _TRANSIENT:
            pause_s = _retry_after_s(retry_after)
            raise TransientError(message, retry_after_s=pause_s, is_answer=True)
        raise FetchError(message)

    def close(self) -> None:
        """Close the connections."""
        self.pool.close()

    def _find_base(self, limit: float) -> Url:
        with self._lock:
            if self._base is None:
                registry = self.reference.registry
                host = _HUB_HOST if registry == DEFAULT_REGISTRY else registry
                secure = parse_url(f"https://{host}{self._path}")
                plain = parse_url(f"http://{host}{self._path}")
                if self.options.plain_http is not None:
                    self._base = plain if self.options.plain_http else secure
                elif is_loopback(plain.origin.host) and self._answers(plain, limit):
                    self._base = plain
                else:
                    self._base = secure
            return self._base

    def _answers(self, url: Url, limit: float) -> bool:
        """Tell whether a loopback registry speaks plain HTTP: servers with TLS answer 400 or no
        HTTP at all.
        """
        try:
            response = self.pool.request("GET", url, {}, None, min(limit, self.deadline()))
        except ProtocolError:
            return False
        except TransientError as error:
            # A refused connection says nothing of TLS; a reset one does.
            return isinstance(error.__cause__, ConnectionRefusedError | TimeoutError)
        response.close()
        return response.status != 400


def _retry_after_s(text: str) -> float:
    """Return the seconds that a ``Retry-After`` asks for, as a number or a date (RFC 9110
    §10.2.3).
    """
    if text.isascii() and text.isdecimal():
        return min(float(text[:6]), _MAX_RETRY_AFTER_S)
    if not text:
        return 0.0
    from email.utils import parsedate_to_datetime

    try:
        pause_s = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0
    return min(max(pause_s, 0.0), _MAX_RETRY_AFTER_S)


def _error_body(response: Response) -> bytes:
    """Return the begin of what a registry sends with an error, and the response closed.

    It may be less than the head says: distribution 2.8 sends a sentence with a 416, and the length
    of the blob.
    """
    buffer = memoryview(bytearray(_MAX_ERROR_BYTES))
    end = 0
    response.hurry(_ERROR_BODY_S)
    with contextlib.suppress(OSError, FetchError):
        while got := response.readinto(buffer[end:]):
            end += got
    response.close()
    return bytes(buffer[:end])


def _reason(data: bytes) -> str:
    """Return what the registry says of an error, made safe to print."""
    try:
        items = msgspec.json.decode(data, type=_ErrorAnswer).errors
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
    text = "; ".join(f"{item.code}: {item.message}".strip(": ") for item in items[:3])
    clean = "".join(letter for letter in text if letter.isprintable())[:300]
    return f" ({clean})" if clean else ""
