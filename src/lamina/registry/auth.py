"""Authorization of a repository: bearer tokens from the registry's token service, or HTTP Basic.

Sources: CNCF distribution "Token Authentication Specification" and "Oauth2 Token Authentication";
RFC 7617. Secrets leave this module only as header values for the registry's own origin, or for its
token service.
"""

from __future__ import annotations

import threading
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import msgspec

from lamina.errors import AuthError, FetchError
from lamina.http.transient import TransientError
from lamina.http.transport import Pool, translated
from lamina.http.url import Origin, Url, is_loopback, parse_url
from lamina.http.www_authenticate import Challenge, parse_challenges
from lamina.registry.credentials import Credentials, find_credentials

if TYPE_CHECKING:
    from lamina.http.client_options import ClientOptions
    from lamina.oci.reference import Reference

MAX_TOKEN_BYTES: Final = 1 << 20
_MAX_SCOPES: Final = 16
_DEFAULT_LIFETIME_S: Final = 60
_MAX_LIFETIME_S: Final = 86400
_CLIENT_ID: Final = "lamina"


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: object = None
    """Seconds, which some services write as text."""

    @property
    def lifetime_s(self) -> float:
        """How long the token may be used; short if the service says nothing that makes sense."""
        try:
            lifetime_s = float(self.expires_in or 0)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            lifetime_s = 0.0
        # Not a number is not above 0 either.
        return min(max(lifetime_s, 1), _MAX_LIFETIME_S) if lifetime_s > 0 else _DEFAULT_LIFETIME_S


class Authorizer:
    """The Authorization header of each scope, asked for once and kept while it is
    valid.  Thread-safe.
    """

    def __init__(self, pool: Pool, reference: Reference, options: ClientOptions) -> None:
        self._pool = pool
        self._reference = reference
        self._options = options
        self._lock = threading.Lock()
        self._headers: dict[str, tuple[str, float]] = {}
        self._credentials: Credentials | None = None
        self._searched = False

    def header(self, scope: str) -> str | None:
        """Return the header for a scope, if there is one that still holds."""
        found = self._headers.get(scope)
        if found is None or found[1] <= time.monotonic():
            return None
        return found[0]

    def answer(
        self, challenge: str, scope: str, refused: str | None, origin: Origin, deadline: float
    ) -> None:
        """Get a header that answers a 401, whose ``WWW-Authenticate`` is *challenge*.

        *refused* is the header that was sent.  Raises AuthError if there is no better one, and
        TransientError when the token service has not answered by *deadline* (monotonic clock).
        """
        if not self._lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise TransientError(f"{origin} did not get around to a token in time")
        try:
            current = self.header(scope)
            if current is not None and current != refused:
                # Another thread has just answered the same challenge.
                return
            self._headers.pop(scope, None)
            try:
                self._headers[scope] = self._log_in(challenge, scope, refused, origin, deadline)
            except AuthError:
                if not self._has_newer(origin):
                    raise
                self._headers[scope] = self._log_in(challenge, scope, refused, origin, deadline)
        finally:
            self._lock.release()

    def _log_in(
        self, challenge: str, scope: str, refused: str | None, origin: Origin, deadline: float
    ) -> tuple[str, float]:
        challenges = {item.scheme: item for item in reversed(parse_challenges(challenge))}
        if "bearer" in challenges:
            return self._bearer(challenges["bearer"], scope, origin, deadline)
        if "basic" in challenges:
            return self._basic(refused, origin)
        raise self._refusal("asks for a login of a kind that is not supported")

    def _has_newer(self, origin: Origin) -> bool:
        """Tell whether there are credentials in the place of those that were refused: who reads for
        days outlives a login.
        """
        old = self._credentials
        is_given = self._options.username is not None and self._options.login_socket is None
        if not self._searched or is_given:
            return False
        self._searched = False
        return self._find(origin, old) not in (None, old)

    def _basic(self, refused: str | None, origin: Origin) -> tuple[str, float]:
        credentials = self._find(origin)
        if credentials is None or not credentials.username:
            raise self._refusal("wants a login")
        header = _basic_header(credentials)
        if header == refused:
            raise self._refusal("refuses the login")
        return header, time.monotonic() + _MAX_LIFETIME_S

    def _bearer(
        self, challenge: Challenge, scope: str, origin: Origin, deadline: float
    ) -> tuple[str, float]:
        realm = challenge.parameters.get("realm")
        if not realm:
            raise self._refusal("names no token service")
        url = parse_url(realm)
        credentials = self._find(origin)
        downgrade = origin.scheme == "https" and url.origin.scheme == "http"
        if credentials and downgrade and not is_loopback(url.origin.host):
            raise AuthError(
                f"{self._reference.registry} wants the login sent to {url.origin}, unencrypted",
                hint="the registry must name an https:// token service",
            )
        scopes = _united(scope, challenge.parameters.get("scope", ""))
        service = challenge.parameters.get("service", "")
        asked = time.monotonic()
        answer = self._ask(url, service, scopes, credentials, deadline)
        lifetime_s = answer.lifetime_s
        token = answer.token or answer.access_token or ""
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise FetchError(f"the token service {url.origin} gave no usable token")
        # A token must not expire on its way.
        return f"Bearer {token}", asked + lifetime_s - min(10, lifetime_s / 10)

    def _ask(
        self,
        url: Url,
        service: str,
        scopes: list[str],
        credentials: Credentials | None,
        deadline: float,
    ) -> _TokenAnswer:
        headers: dict[str, str] = {}
        if credentials and credentials.identity_token:
            method, body = "POST", _token_form(service, scopes, credentials.identity_token)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            method, body = "GET", None
            query = urlencode([("service", service)] + [("scope", item) for item in scopes])
            joint = "&" if "?" in url.target else "?"
            url = Url(url.origin, f"{url.target}{joint}{query}")
            if credentials:
                headers["Authorization"] = _basic_header(credentials)
        deadline = min(deadline, time.monotonic() + self._options.deadline_s)
        with translated(url.origin):
            response = self._pool.request(method, url, headers, body, deadline)
            try:
                what = f"the answer of the token service {url.origin}"
                data = response.read_all(MAX_TOKEN_BYTES, what)
            finally:
                response.close()
        return self._parse(response.status, data, url, credentials)

    def _parse(
        self, status: int, data: bytes, url: Url, credentials: Credentials | None
    ) -> _TokenAnswer:
        if status in (400, 401, 403):
            # Some services answer a request without a login that they do not serve with 400.
            raise self._refusal("refuses the login" if credentials else "wants a login")
        if status == 429 or status >= 500:
            raise TransientError(f"the token service {url.origin} answers {status}")
        if not 200 <= status < 300:
            raise FetchError(f"the token service {url.origin} answers {status}")
        try:
            return msgspec.json.decode(data, type=_TokenAnswer)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            # The decoder's message may quote the token.
            raise FetchError(f"the token service {url.origin} gave a malformed answer") from None

    def _find(self, origin: Origin, refused: Credentials | None = None) -> Credentials | None:
        is_plain = origin.scheme == "http" and not is_loopback(origin.host)
        if is_plain and not self._options.plain_credentials:
            return None
        if not self._searched:
            place = self._reference
            self._credentials = find_credentials(
                place.registry, place.repository, self._options, refused
            )
            self._searched = True
        return self._credentials

    def _refusal(self, what: str) -> AuthError:
        registry = self._reference.registry
        return AuthError(
            f"{registry} {what} for {self._reference.repository}",
            hint=f"log in with `docker login {registry}` or `skopeo login {registry}`, "
            "or check that the repository exists and is yours",
        )


def _united(scope: str, wanted: str) -> list[str]:
    """Return the scopes of a request and those that a challenge names, each resource once: of two
    scopes of one repository some services heed only the last.
    """
    actions: dict[str, dict[str, None]] = {}
    items = [*scope.split(" "), *wanted.split(" ", _MAX_SCOPES)[:_MAX_SCOPES]]
    for item in filter(None, items):
        resource, colon, named = item.rpartition(":")
        resource, named = (resource + colon, named) if colon else (item, "")
        actions.setdefault(resource, {}).update(dict.fromkeys(named.split(",")))
    return [resource + ",".join(named) for resource, named in actions.items()]


def _token_form(service: str, scopes: list[str], identity_token: str) -> bytes:
    form = {
        "grant_type": "refresh_token",
        "service": service,
        "client_id": _CLIENT_ID,
        "scope": " ".join(scopes),
        "refresh_token": identity_token,
    }
    return urlencode(form).encode()


def _basic_header(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}"
    return "Basic " + b64encode(pair.encode()).decode()
