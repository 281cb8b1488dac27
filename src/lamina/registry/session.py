"""Requests to one repository of a registry: authorization, redirects, retries, errors in words.

Registries on loopback are asked over plain HTTP unless they answer that they speak TLS; all others
over HTTPS unless ``plain_http`` is set.  The Authorization header never goes to another origin than
the registry's. Source: OCI distribution specification 1.1.
"""

from __future__ import annotations

import contextlib
import math
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from logging import INFO, WARNING, getLogger
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

import msgspec

from lamina.errors import AuthError, FetchError, NotFoundError
from lamina.registry.auth import Authorizer
from lamina.registry.http1 import Body, ProtocolError, Response
from lamina.registry.pace import LEAST_BYTES_PER_S, WINDOW_S, Pace
from lamina.registry.reference import DEFAULT_REGISTRY, Reference
from lamina.registry.repository import ClientOptions
from lamina.registry.transport import Pool, TransientError, translated
from lamina.registry.url import Url, is_loopback, parse_url

LOG: Final = getLogger("lamina")

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
_LONG_S: Final = 4.0
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

    def __init__(self, reference: Reference, options: ClientOptions) -> None:
        self.reference = reference
        self.options = options
        self.pool = Pool(options)
        self.authorizer = Authorizer(self.pool, reference, options)
        self._lock = threading.Lock()
        self._base: Url | None = None

    def url(self, path: str) -> Url:
        """The URL of a path below ``/v2/REPOSITORY/``."""
        base = self._base or self._find_base()
        return Url(base.origin, f"{base.target}{self.reference.repository}/{path}")

    def scope(self, actions: str = "pull", repository: str | None = None) -> str:
        """The token scope of actions on a repository, by default this one."""
        return f"repository:{repository or self.reference.repository}:{actions}"

    def deadline(self, sent_bytes: int = 0) -> float:
        """When a request must have ended that sends so many bytes of ours, on the monotonic
        clock.

        What a registry sends has no part in it: it may claim any size.
        """
        return time.monotonic() + self.options.deadline_s + sent_bytes / LEAST_BYTES_PER_S

    def pace(self) -> Pace:
        """The least speed of a transfer that may take several requests."""
        return Pace(min(WINDOW_S, self.options.deadline_s))

    def range_deadline(self, size_bytes: int) -> float:
        """The deadline of a single attempt to read a range: somebody is waiting for it."""
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
        """One request with its authorization and redirects; the answer of any status and where it
        came from.

        A stream is sent once: one that would have to be sent again is a TransientError.  Raises
        AuthError, TransientError or another FetchError.
        """
        home = url.origin if self._base is None else self._base.origin
        streamed = not (body is None or isinstance(body, bytes))
        followed = _REDIRECTS if method in ("GET", "HEAD") else _REDIRECTS_OF_ALL
        refusals = 0
        for _ in range(_MAX_REDIRECTS + 2):
            sent = self.authorizer.header(scope) if url.origin == home else None
            lines = {**headers, "Authorization": sent} if sent else headers
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
        """A request with all its retries and its whole answer, until ``limit`` at the latest.

        Raises NotFoundError for 404, AuthError for 401 and 403, FetchError for other statuses that
        are not expected and for bodies over the limit.
        """
        deadline = min(limit, self.deadline(0 if call.body is None else len(call.body)))
        return self.retry(lambda: self.once(method, url, call, deadline), deadline)

    def once(self, method: str, url: Url, call: Call, deadline: float) -> Answer:
        """One attempt of :meth:`fetch`."""
        response, last = self.send(method, url, call.scope, call.headers, call.body, deadline)
        self.check(response, last, call.expected)
        try:
            with translated(last.origin):
                data = response.read_all(call.limit_bytes, f"the answer of {last.without_query}")
        finally:
            response.close()
        return Answer(response.status, response.headers, data, last)

    def retry(self, action: Callable[[], T], deadline: float) -> T:
        """Run an action again while it raises TransientError, with growing pauses, until the
        deadline.
        """
        for attempt in range(self.options.attempts):
            started = time.monotonic()
            try:
                return action()
            except TransientError as error:
                # Chance only spreads the load; it guards nothing.
                bound_s = min(0.1 * 2**attempt, _MAX_PAUSE_S)
                pause_s = max(random.uniform(bound_s / 2, bound_s), error.retry_after_s)  # noqa: S311
                last = attempt + 1 >= self.options.attempts
                if last or time.monotonic() + pause_s >= deadline:
                    raise
                lost_s = time.monotonic() - started + pause_s
                # Nobody should wait for long and not know what for.
                LOG.log(WARNING if lost_s >= _LONG_S else INFO, "%s; asking again", error)
                time.sleep(pause_s)
        raise ValueError("ClientOptions.attempts must be at least 1")

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

    def _find_base(self) -> Url:
        with self._lock:
            if self._base is None:
                registry = self.reference.registry
                host = _HUB_HOST if registry == DEFAULT_REGISTRY else registry
                secure = parse_url(f"https://{host}/v2/")
                plain = parse_url(f"http://{host}/v2/")
                if self.options.plain_http is not None:
                    self._base = plain if self.options.plain_http else secure
                elif is_loopback(plain.origin.host) and self._answers(plain):
                    self._base = plain
                else:
                    self._base = secure
            return self._base

    def _answers(self, url: Url) -> bool:
        """Whether a loopback registry speaks plain HTTP: servers with TLS answer 400 or no HTTP at
        all.
        """
        try:
            response = self.pool.request("GET", url, {}, None, self.deadline())
        except ProtocolError:
            return False
        except TransientError as error:
            # A refused connection says nothing of TLS; a reset one does.
            return isinstance(error.__cause__, ConnectionRefusedError | TimeoutError)
        response.close()
        return response.status != 400


def _retry_after_s(text: str) -> float:
    """The seconds that a ``Retry-After`` asks for, as a number or a date (RFC 9110 §10.2.3)."""
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
    """The begin of what a registry sends with an error, and the response closed.

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
    """What the registry says of an error, made safe to print."""
    try:
        items = msgspec.json.decode(data, type=_ErrorAnswer).errors
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
    text = "; ".join(f"{item.code}: {item.message}".strip(": ") for item in items[:3])
    clean = "".join(letter for letter in text if letter.isprintable())[:300]
    return f" ({clean})" if clean else ""
