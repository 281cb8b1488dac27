"""How a source has done lately: who failed, lied or was slow is asked last for a while."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

from lamina.errors import Error, NotFoundError

FIRST_PENALTY_S: Final = 0.5
LONGEST_PENALTY_S: Final = 30.0

LACKING_S: Final = 30.0
"""How long a source that had not got something is asked for it after the others."""

_MOST_LACKING: Final = 1 << 12


@dataclass(slots=True)
class Health:
    """Times are those of one monotonic clock.  Threads share it; so may all that ask one host."""

    _failures: int = 0
    _until: float = 0.0
    _lacking: dict[str, float] = field(default_factory=dict)
    """Names of what it had not got, and until when that is believed."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def rank(self, name: str, now: float) -> tuple[bool, bool]:
        """Return what sources are sorted by for *name*: whether it failed, or had not got it."""
        return self._until > now, self._lacking.get(name, 0.0) > now

    def failed(self, name: str, error: Error, now: float) -> None:
        """Note an error; that *name* is not there says nothing of what else is."""
        if not isinstance(error, NotFoundError):
            self.punish(now, getattr(error, "retry_after_s", 0.0))
            return
        with self._lock:
            if len(self._lacking) >= _MOST_LACKING:
                self._lacking.clear()
            self._lacking[name] = now + LACKING_S

    def punish(self, now: float, least_s: float = 0.0) -> None:
        """Have it asked last for a while, twice as long as the time before."""
        with self._lock:
            pause_s = min(FIRST_PENALTY_S * 2.0 ** min(self._failures, 32), LONGEST_PENALTY_S)
            self._failures += 1
            self._until = now + max(pause_s, least_s)

    def succeeded(self) -> None:
        """Forget its failures."""
        if self._failures:
            with self._lock:
                self._failures, self._until = 0, 0.0
