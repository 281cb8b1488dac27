"""How often and how long a fetch is tried again."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass
from typing import ClassVar, Final

from lamina.errors import FetchError
from lamina.registry.http1 import ProtocolError
from lamina.registry.transport import TransientError

READER_DEADLINE_S: Final = 60.0
"""No reader waits longer for bytes than this; then it gets ETIMEDOUT."""


class DeadlineError(FetchError):
    """The bytes did not come in the time that a reader is made to wait."""

    errno: ClassVar[int] = errno.ETIMEDOUT


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long to try again.

    The n-th pause is a random time up to ``min(first_pause_s * 2**n, max_pause_s)``, so that many
    nodes whose registry was away do not come back at the same moment, or what the registry asked
    for if that is longer.  What may pass (a lost connection, an overloaded server) is tried until
    ``deadline_s``, other failures ``attempts`` times; nothing starts after ``deadline_s``.
    """

    attempts: int = 3
    first_pause_s: float = 0.1
    max_pause_s: float = 2.0
    deadline_s: float = READER_DEADLINE_S

    def pause_s(self, attempt: int, error: FetchError) -> float:
        """Return how long to wait after attempt number *attempt* (from 0) ended with *error*."""
        bound = min(self.first_pause_s * 2.0 ** min(attempt, 32), self.max_pause_s)
        # Chance only spreads the load here; it guards nothing.
        return max(random.uniform(bound / 2, bound), retry_after_s(error))  # noqa: S311


ONCE: Final = RetryPolicy(attempts=1, deadline_s=READER_DEADLINE_S)


def retry_after_s(error: FetchError) -> float:
    """Return how long the source asked to be left alone."""
    return float(getattr(error, "retry_after_s", 0.0))


def may_pass(error: FetchError) -> bool:
    """Tell whether the failure is of a kind that time cures."""
    return isinstance(error, TransientError | ProtocolError)
