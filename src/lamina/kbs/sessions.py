"""Attestations in progress and done: one-time nonces, cookies, expiry."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from lamina.kbs.rules import Attested
from lamina.trust.broker.protocol import NONCE_BYTES
from lamina.trust.strict_json import encode_base64

MAX_SESSIONS: Final = 1024
"""Of each kind: with a challenge that is not answered yet, and attested."""
LIFETIME_S: Final = 300.0


@dataclass(slots=True)
class Session:
    """One guest.  ``nonce`` is "" once evidence was held against it, whatever came of it."""

    identifier: str = field(repr=False)
    nonce: str = field(repr=False)
    tee: str
    algorithm: str
    ends_s: float
    client: str = ""
    attested: Attested | None = None
    tee_key: dict[str, Any] = field(default_factory=dict)
    token: str = field(default="", repr=False)


@dataclass(slots=True)
class Sessions:
    """All sessions.  When there are too many of a kind, the client that has most of that kind loses
    its oldest, so challenges cost nobody an attestation, and no client another's.  Thread-safe.
    """

    lifetime_s: float = LIFETIME_S
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _open: dict[str, Session] = field(default_factory=dict, repr=False)
    _attested: dict[str, Session] = field(default_factory=dict, repr=False)

    def begin(self, tee: str, algorithm: str, client: str = "") -> Session:
        """Return a session with a new nonce; *client* is whose place it takes."""
        nonce = encode_base64(secrets.token_bytes(NONCE_BYTES))
        ends_s = self.clock() + self.lifetime_s
        session = Session(secrets.token_hex(16), nonce, tee, algorithm, ends_s, client)
        with self._lock:
            self._make_room(self._open)
            self._open[session.identifier] = session
        return session

    def admit(
        self, session: Session, attested: Attested, tee_key: dict[str, Any], token: str
    ) -> None:
        """From now on the session is that of an attested guest."""
        with self._lock:
            self._open.pop(session.identifier, None)
            self._make_room(self._attested)
            session.token, session.tee_key = token, tee_key
            # Last: other threads take the session for attested from here on.
            session.attested = attested
            self._attested[session.identifier] = session

    def find(self, identifier: str) -> Session | None:
        """Return the session of a cookie, unless it has expired."""
        with self._lock:
            for sessions in (self._attested, self._open):
                session = sessions.get(identifier)
                if session is not None and self.clock() < session.ends_s:
                    return session
                sessions.pop(identifier, None)
            return None

    def _make_room(self, sessions: dict[str, Session]) -> None:
        now = self.clock()
        for session in list(sessions.values()):
            if now < session.ends_s:
                break
            del sessions[session.identifier]
        while len(sessions) >= MAX_SESSIONS:
            counts = Counter(session.client for session in sessions.values())
            ((busiest, _),) = counts.most_common(1)
            oldest = next(s for s in sessions.values() if s.client == busiest)
            del sessions[oldest.identifier]

    def take_nonce(self, session: Session) -> str:
        """Return the nonce of a session, once; "" ever after."""
        with self._lock:
            nonce, session.nonce = session.nonce, ""
            return nonce
