"""Attestations in progress and done: one-time nonces, cookies, expiry."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from lamina.trust.kbs.protocol import NONCE_BYTES
from lamina.trust.kbs.rules import Attested
from lamina.trust.strict_json import encode_base64

MAX_SESSIONS: Final = 1024
LIFETIME_S: Final = 300.0


@dataclass(slots=True)
class Session:
    """One guest.  ``nonce`` is "" once evidence was held against it, whatever came of it."""

    identifier: str = field(repr=False)
    nonce: str = field(repr=False)
    tee: str
    algorithm: str
    ends_s: float
    attested: Attested | None = None
    tee_key: dict[str, Any] = field(default_factory=dict)
    token: str = field(default="", repr=False)


@dataclass(slots=True)
class Sessions:
    """All sessions; the oldest makes room when there are too many.  Thread-safe."""

    lifetime_s: float = LIFETIME_S
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _open: dict[str, Session] = field(default_factory=dict, repr=False)

    def begin(self, tee: str, algorithm: str) -> Session:
        """A session with a new nonce."""
        nonce = encode_base64(secrets.token_bytes(NONCE_BYTES))
        ends_s = self.clock() + self.lifetime_s
        session = Session(secrets.token_hex(16), nonce, tee, algorithm, ends_s)
        with self._lock:
            while len(self._open) >= MAX_SESSIONS:
                del self._open[next(iter(self._open))]
            self._open[session.identifier] = session
        return session

    def find(self, identifier: str) -> Session | None:
        """The session of a cookie, unless it has expired."""
        with self._lock:
            session = self._open.get(identifier)
            if session is not None and self.clock() >= session.ends_s:
                del self._open[identifier]
                return None
            return session

    def take_nonce(self, session: Session) -> str:
        """The nonce of a session, once; "" ever after."""
        with self._lock:
            nonce, session.nonce = session.nonce, ""
            return nonce
