"""The broker's decisions, without sockets: request in, reply out, a line in the audit log."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from lamina.errors import FormatError, TrustError, UnsupportedError
from lamina.kbs.audit import AuditLog
from lamina.kbs.audit_summary import EVENTS, UNKNOWN
from lamina.kbs.client_group import client_group
from lamina.kbs.key_store import KeyStore
from lamina.kbs.rules import Attested
from lamina.kbs.sessions import Session, Sessions
from lamina.kbs.token import TokenIssuer
from lamina.kbs.verifier import verify_evidence
from lamina.trust import strict_json
from lamina.trust.broker import protocol
from lamina.trust.broker.init_data import FORMAT
from lamina.trust.broker.kbs_packet import ResourcePath, parse_resource
from lamina.trust.broker.protocol import Claims, Problem, parse_claims
from lamina.trust.crypto import jwe
from lamina.trust.crypto.jwk import public_from_jwk
from lamina.trust.crypto.keys import PublicKey, check_key

_COOKIE: Final = re.compile(rf"(?:^|;\s*){protocol.SESSION_COOKIE}=([0-9a-f]{{32}})(?:;|$)")
_TEE: Final = re.compile(r"[a-z0-9-]{1,32}")
_MAX_KEY_CHARACTERS: Final = 8 << 10


class Request(NamedTuple):
    """What came in.  Header names are in lower case; ``client`` is the address of the sender."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    client: str


class Reply(NamedTuple):
    """What goes out, always JSON; ``cookie`` opens a session."""

    status: int
    body: bytes
    cookie: str = ""


class RefusedError(TrustError):
    """A request is refused with a status and a problem."""

    def __init__(self, status: int, name: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.problem = Problem(name, detail)


@dataclass(slots=True)
class Broker:
    """One store of keys, and who is attested at the moment.  Thread-safe."""

    store: KeyStore
    audit: AuditLog
    sessions: Sessions = field(default_factory=Sessions)
    issuer: TokenIssuer = field(init=False)

    def __post_init__(self) -> None:
        self.issuer = TokenIssuer.new(self.sessions.lifetime_s)

    def handle(self, request: Request) -> Reply:
        """Answer a request, whatever fails inside, and note the answer."""
        path, _, query = request.target.partition("?")
        name = path.removeprefix(f"{protocol.PREFIX}/")
        kind = name.partition("/")[0]
        event = kind if kind in EVENTS else UNKNOWN
        facts: dict[str, Any] = {"client": request.client}
        try:
            reply = self._dispatch(request, name, query, facts)
        except RefusedError as refused:
            status, problem = refused.status, refused.problem
        except Exception as error:  # noqa: BLE001
            # What cannot be decided, an unreadable store above all, is nobody else's business; and
            # what nobody thought of is still a decision against somebody.
            self._note("error", {**facts, "reason": type(error).__name__})
            status, problem = 500, Problem("InternalError", "the broker has a problem of its own")
        else:
            if not self._note(event, {**facts, "result": "ok"}):
                return _refusal(500, Problem("InternalError", "the audit log cannot be written"))
            return reply
        self._note(event, {**facts, "result": "refused", "reason": problem.name})
        return _refusal(status, problem)

    def _note(self, event: str, facts: dict[str, Any]) -> bool:
        try:
            self.audit.write(event, **facts)
        except Exception:  # noqa: BLE001
            # Not written down is not written down, whatever the reason.
            return False
        return True

    def _dispatch(self, request: Request, name: str, query: str, facts: dict[str, Any]) -> Reply:
        match request.method, name:
            case "POST", "auth":
                return self._auth(request, facts)
            case "POST", "attest":
                return self._attest(request, facts)
            case "GET", _ if name.startswith("resource/"):
                return self._resource(request, name.removeprefix("resource/"), query, facts)
            case _:
                raise RefusedError(404, "PluginNotFound", "there is nothing at this path")

    def _auth(self, request: Request, facts: dict[str, Any]) -> Reply:
        document = _document(request.body, "request for a challenge")
        version, tee = document.get("version"), document.get("tee")
        if version != protocol.VERSION:
            raise RefusedError(401, "ProtocolVersion", f"this broker speaks {protocol.VERSION}")
        if not isinstance(tee, str) or not _TEE.fullmatch(tee):
            raise RefusedError(401, "AttestationFailed", "the request names no kind of machine")
        facts["tee"] = tee
        algorithm = _select_hash(document.get("extra-params"))
        session = self.sessions.begin(tee, algorithm, client_group(request.client))
        facts["session"] = _shown(session)
        answer = {
            "nonce": session.nonce,
            "extra-params": {"selected-hash-algorithm": session.algorithm},
        }
        return Reply(200, strict_json.compact(answer), session.identifier)

    def _attest(self, request: Request, facts: dict[str, Any]) -> Reply:
        session = self._session(request)
        facts |= {"session": _shown(session), "tee": session.tee}
        if session.attested is None:
            self._verify(session, _document(request.body, "attestation"), facts)
        assert session.attested is not None
        facts["measurement"] = session.attested.measurement
        return Reply(200, strict_json.compact({"token": session.token}))

    def _verify(self, session: Session, document: dict[str, Any], facts: dict[str, Any]) -> None:
        nonce = self.sessions.take_nonce(session)
        if not nonce:
            raise RefusedError(401, "NonceUsed", "evidence was given for this nonce already")
        try:
            attested, runtime = _check_attestation(session, nonce, document)
            if digest := _init_data_digest(document.get("init-data")):
                facts["init-data"] = digest
        except UnsupportedError as error:
            raise RefusedError(401, "VerifierNotFound", str(error)) from None
        except (FormatError, TrustError) as error:
            raise RefusedError(401, "AttestationFailed", str(error)) from None
        token = self.issuer.issue(attested, runtime)
        self.sessions.admit(session, attested, runtime["tee-pubkey"], token)

    def _resource(self, request: Request, name: str, query: str, facts: dict[str, Any]) -> Reply:
        attested, tee_key = self._guest(request, facts)
        try:
            resource = parse_resource(f"kbs:///{name}")
            claims = parse_claims(query)
        except FormatError as error:
            raise RefusedError(400, "InvalidRequestPath", str(error)) from None
        facts |= {
            "measurement": attested.measurement,
            "resource": str(resource),
            "image": claims.image_digest,
            "release": claims.release,
        }
        return Reply(200, self._release(resource, attested, claims, tee_key))

    def _guest(self, request: Request, facts: dict[str, Any]) -> tuple[Attested, dict[str, Any]]:
        """Return who asks: by the token in the request, else by its session."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            try:
                return self.issuer.check(token.strip())
            except (FormatError, TrustError) as error:
                raise RefusedError(401, "TokenVerifierError", str(error)) from None
        session = self._session(request)
        facts["session"] = _shown(session)
        if session.attested is None:
            raise RefusedError(401, "Unauthenticated", "this session is not attested")
        return session.attested, session.tee_key

    def _release(
        self,
        resource: ResourcePath,
        attested: Attested,
        claims: Claims,
        tee_key: dict[str, Any],
    ) -> bytes:
        entry = self.store.entries.get(resource)
        if entry is None:
            raise RefusedError(404, "ResourceNotFound", "there is no such resource")
        if entry.rule is None:
            raise RefusedError(
                403, "PolicyDeny", "the resource has no rule that gives it to anybody"
            )
        problem = entry.rule.refusal(attested, claims)
        if problem is not None:
            raise RefusedError(403, *problem)
        return jwe.encrypt(entry.value.reveal(), [_tee_key(tee_key)])

    def _session(self, request: Request) -> Session:
        found = _COOKIE.search(request.headers.get("cookie", ""))
        session = self.sessions.find(found[1]) if found else None
        if session is None:
            raise RefusedError(401, "InvalidSession", "there is no such session, or it has expired")
        return session


def _check_attestation(
    session: Session, nonce: str, document: dict[str, Any]
) -> tuple[Attested, dict[str, Any]]:
    what = "attestation"
    strict_json.expect_keys(document, what, ("runtime-data", "tee-evidence"), ("init-data",))
    runtime = strict_json.expect_keys(
        document["runtime-data"], "runtime data", ("nonce", "tee-pubkey")
    )
    if runtime["nonce"] != nonce:
        raise TrustError("the attestation is for another nonce")
    _tee_key(runtime["tee-pubkey"])
    evidence = strict_json.expect_keys(
        document["tee-evidence"], "evidence", ("primary_evidence",), ("additional_evidence",)
    )
    if evidence.get("additional_evidence"):
        raise UnsupportedError("this broker takes no additional evidence")
    report = protocol.report_digest(runtime, session.algorithm)
    return verify_evidence(session.tee, evidence["primary_evidence"], report), runtime


def _init_data_digest(value: Any) -> str:
    """Return a name of the init-data for the log, "" if there is none.  Nothing proves it: samples
    are bound to none, so nothing is read in it.
    """
    if value is None:
        return ""
    what = "init-data"
    strict_json.expect_keys(value, what, ("format", "body"))
    if value["format"] != FORMAT:
        raise FormatError(f"the {what} is not in the format {FORMAT}")
    body = strict_json.text_of(value["body"], what)
    return "sha256:" + hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()


def _tee_key(jwk: Any) -> PublicKey:
    """Return the guest's key: EC with the algorithm of the protocol, or RSA-OAEP-256."""
    if not isinstance(jwk, dict) or not all(
        isinstance(text, str) and text.isascii() for text in (*jwk, *jwk.values())
    ):
        raise FormatError("the key of the guest is no JWK")
    if sum(len(name) + len(value) for name, value in jwk.items()) > _MAX_KEY_CHARACTERS:
        raise FormatError("the key of the guest is too long")
    raw, algorithm = public_from_jwk(jwk, "key of the guest")
    key = PublicKey(check_key(raw, "of the guest"), "key of the guest", algorithm)
    if algorithm not in (protocol.KEY_ALGORITHM, "RSA-OAEP-256"):
        raise UnsupportedError("the key of the guest is for another algorithm")
    jwe.algorithm_for(key)
    return key


def _document(body: bytes, what: str) -> dict[str, Any]:
    try:
        return strict_json.parse_object(body, what, protocol.MAX_BODY_BYTES)
    except FormatError as error:
        raise RefusedError(400, "MalformedRequest", str(error)) from None


def _select_hash(parameters: Any) -> str:
    offered = parameters.get("supported-hash-algorithms") if isinstance(parameters, dict) else None
    if offered is None:
        return protocol.HASHES[0]
    if isinstance(offered, list):
        for name in protocol.HASHES:
            if name in offered:
                return name
    raise RefusedError(
        401, "AttestationFailed", "none of the hash algorithms offered is known here"
    )


def _shown(session: Session) -> str:
    """Return a name of the session for the log that opens nothing."""
    return hashlib.sha256(session.identifier.encode()).hexdigest()[:16]


def _refusal(status: int, problem: Problem) -> Reply:
    return Reply(status, protocol.encode_problem(problem))
