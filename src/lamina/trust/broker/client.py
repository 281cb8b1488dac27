"""A client of the KBS protocol: attest once, then fetch resources that only this process can open.

RCAR is request, challenge, attestation, response: the broker gives a nonce, the evidence has the
digest of nonce and a new key of ours in it, and resources come as JWE for that key.  Everything
that comes back is taken as hostile.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lamina.errors import Error, FetchError, FormatError, NotFoundError, TrustError
from lamina.trust import strict_json
from lamina.trust.broker import protocol
from lamina.trust.broker.protocol import NO_CLAIMS, Claims
from lamina.trust.crypto import jwe
from lamina.trust.crypto.keys import PrivateKey, require_cryptography
from lamina.trust.crypto.secret import Secret

if TYPE_CHECKING:
    from lamina.trust.broker.connection import Answer, Endpoint
    from lamina.trust.broker.evidence import EvidenceSource
    from lamina.trust.broker.init_data import InitData
    from lamina.trust.broker.kbs_packet import ResourcePath

_COOKIE: Final = re.compile(rf"{protocol.SESSION_COOKIE}=([A-Za-z0-9_-]{{16,128}})(?:;|$)")
_NONCE_LIMITS: Final = range(16, 129)
_MAX_TOKEN: Final = 128 << 10
_UNKNOWN_SESSION: Final = ("", "TokenNotFound", "InvalidSession", "Unauthenticated")
"""Refusals (status 401) that mean that the broker does not know the session, or give no reason.
trustee's every refusal is a 401, and most would be the same after another attestation."""
_NOT_VERIFIED: Final = "TokenVerifierError"
_NO_RESOURCE: Final = "PluginInternalError"
"""All that trustee says of a resource that is not there, as of storage that fails."""
_REFUSALS: Final = {
    "MeasurementNotAllowed": "this machine runs something else than the broker's rule allows",
    "ImageNotAllowed": "the broker's rule does not allow this image",
    "ReleaseTooOld": "the release of this image is too old for the broker's rule",
    "TeeNotAllowed": "the broker's rule does not allow this kind of machine",
    "PolicyDeny": "the broker's policy does not allow it",
}
_ASK_OWNER: Final = "ask who runs the broker what it wants"


@dataclass(frozen=True, slots=True)
class _Session:
    cookie: str = field(repr=False)
    key: PrivateKey = field(repr=False)


@dataclass(slots=True)
class KbsClient:
    """Fetches resources of one broker; thread-safe.  ``close`` forgets the session."""

    endpoint: Endpoint
    evidence: EvidenceSource
    init_data: InitData | None = None
    """What this machine was started with: sent along with the evidence."""
    _session: _Session | None = field(default=None, repr=False)
    _nonces: set[str] = field(default_factory=set, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def fetch(self, resource: ResourcePath, claims: Claims = NO_CLAIMS) -> Secret:
        """Return a resource.  A session that the broker does not know any more is renewed, once.

        Raises TrustError if the broker refuses or is not the one, NotFoundError, FetchError,
        FormatError.
        """
        path = f"{protocol.PREFIX}/resource/{'/'.join(resource)}{claims.query()}"
        known = self._session
        session = self._attested(None)
        answer = self.endpoint.request("GET", path, _headers(session.cookie))
        if _is_stale(answer, is_new=session is not known):
            session = self._attested(session)
            answer = self.endpoint.request("GET", path, _headers(session.cookie))
        if answer.status != 200:
            raise self._withheld(answer, resource, claims)
        try:
            return Secret(jwe.decrypt(answer.body, [session.key]))
        except Error as error:
            raise TrustError(
                f"the answer of the key broker {self.endpoint} for {resource} is not for this "
                f"session: {error}"
            ) from None

    def close(self) -> None:
        """Forget the session and its key."""
        with self._lock:
            self._session = None

    def _attested(self, stale: _Session | None) -> _Session:
        """Return the session, made if there is none but the ``stale`` one."""
        with self._lock:
            if self._session is None or self._session is stale:
                self._session = self._attest()
            return self._session

    def _attest(self) -> _Session:
        require_cryptography()
        from cryptography.hazmat.primitives.asymmetric import ec

        key = PrivateKey(ec.generate_private_key(ec.SECP256R1()), "key of the session")
        nonce, algorithm, cookie = self._challenge()
        runtime = {"nonce": nonce, "tee-pubkey": _public_jwk(key)}
        tee, evidence = self.evidence.collect(protocol.report_digest(runtime, algorithm))
        body = {
            "init-data": self.init_data.encode() if self.init_data else None,
            "runtime-data": runtime,
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }
        answer = self._post("attest", body, _headers(cookie))
        if answer.status != 200:
            raise self._refused(answer, f"does not believe the {tee} evidence of this machine")
        document = strict_json.parse_object(answer.body, self._named("attestation"))
        token = strict_json.text_of(document.get("token"), self._named("token"))
        if not 0 < len(token) <= _MAX_TOKEN:
            raise FormatError(f"the {self._named('token')} has {len(token)} characters")
        return _Session(cookie, key)

    def _challenge(self) -> tuple[str, str, str]:
        """Nonce, hash algorithm, cookie."""
        extra = {"supported-hash-algorithms": list(protocol.HASHES)}
        request = {"version": protocol.VERSION, "tee": self.evidence.tee, "extra-params": extra}
        answer = self._post("auth", request, {})
        if answer.status != 200:
            raise self._refused(answer, "refuses to begin an attestation")
        document = strict_json.parse_object(answer.body, self._named("challenge"))
        nonce = strict_json.text_of(document.get("nonce"), self._named("nonce"))
        if len(strict_json.decode_base64(nonce, self._named("nonce"))) not in _NONCE_LIMITS:
            raise FormatError(f"the {self._named('nonce')} is none")
        if nonce in self._nonces:
            raise TrustError(
                f"the key broker {self.endpoint} gives the same nonce again",
                hint="somebody replays the answers of a broker",
            )
        self._nonces.add(nonce)
        parameters = document.get("extra-params") or {}
        selected = parameters.get("selected-hash-algorithm") if isinstance(parameters, dict) else 0
        algorithm = protocol.HASHES[0] if selected is None else selected
        if algorithm not in protocol.HASHES:
            raise FormatError(f"the {self._named('challenge')} selects an unknown hash algorithm")
        found = _COOKIE.match(answer.headers.get("set-cookie", ""))
        if found is None:
            raise FormatError(f"the {self._named('challenge')} has no session cookie")
        return nonce, algorithm, found[1]

    def _post(self, what: str, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        lines = {"Content-Type": "application/json", "Accept": "application/json", **headers}
        data = strict_json.compact(body)
        # A challenge is good once, so evidence for it is not sent again.
        again = what != "attest"
        return self.endpoint.request("POST", f"{protocol.PREFIX}/{what}", lines, data, again=again)

    def _named(self, what: str) -> str:
        return f"{what} of the key broker {self.endpoint}"

    def _withheld(self, answer: Answer, resource: ResourcePath, claims: Claims) -> Error:
        """Why a resource was not given."""
        problem = protocol.read_problem(answer.body)
        if answer.status == 404:
            return NotFoundError(f"the key broker {self.endpoint} has no resource {resource}")
        if answer.status == 401 and problem.name == _NO_RESOURCE:
            return NotFoundError(
                f"the key broker {self.endpoint} has no resource {resource}, or a problem of its "
                f"own ({problem.name} {problem.detail!r})",
                hint="ask who runs the broker whether it is there",
            )
        hint = _ASK_OWNER
        if claims.release is None and problem.name in ("ReleaseTooOld", "PolicyDeny"):
            hint = (
                "no release was stated: where the broker wants one, --policy reads it from a "
                f"signature that it verified; else {_ASK_OWNER}"
            )
        return self._refused(answer, f"refuses {resource}", hint)

    def _refused(
        self, answer: Answer, does_what: str, hint: str = _ASK_OWNER
    ) -> TrustError | FetchError:
        problem = protocol.read_problem(answer.body)
        reason = _REFUSALS.get(problem.name, "")
        said = f"{problem.name} {problem.detail!r}" if problem.name else f"status {answer.status}"
        text = f"the key broker {self.endpoint} {does_what}: {reason or 'it says'} ({said})"
        if answer.status >= 500 or answer.status in (408, 429):
            return FetchError(text, hint="this may pass: try again")
        return TrustError(text, hint=hint)


def _is_stale(answer: Answer, *, is_new: bool) -> bool:
    """Tell whether another attestation can help.  A token that was made for this very request gets
    no better by it.
    """
    if answer.status != 401:
        return False
    name = protocol.read_problem(answer.body).name
    return name in _UNKNOWN_SESSION or (name == _NOT_VERIFIED and not is_new)


def _headers(cookie: str) -> dict[str, str]:
    return {"Cookie": f"{protocol.SESSION_COOKIE}={cookie}", "Accept": "application/json"}


def _public_jwk(key: PrivateKey) -> dict[str, str]:
    from cryptography.hazmat.primitives.asymmetric import ec

    from lamina.trust.crypto.jwk import ec_public_jwk

    public = key.key.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    return {**ec_public_jwk(public), "alg": protocol.KEY_ALGORITHM}
