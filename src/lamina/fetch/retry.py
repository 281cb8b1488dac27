"""How often and how long a fetch is tried again."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import dataclass, fields
from typing import ClassVar, Final, Self

from lamina.errors import FetchError, UsageError
from lamina.registry.http1 import ProtocolError
from lamina.registry.transport import TransientError

READER_DEADLINE_S: Final = 60.0
"""No reader waits longer for bytes than this; then it gets ETIMEDOUT."""

ATTEMPT_S: Final = 15.0
"""How long one attempt may take beside what its bytes take on the slowest link that is useful."""

VARIABLE: Final = "LAMINA_RETRY"
_MOST: Final = 1e6


class DeadlineError(FetchError):
    """The bytes did not come in the time that a reader is made to wait."""

    errno: ClassVar[int] = errno.ETIMEDOUT


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long to try again.

    The n-th pause is a random time up to ``min(first_pause_s * 2**n, max_pause_s)``, so that many
    nodes whose registry was away do not come back at the same moment, or what the registry asked
    for if that is longer.  What may pass (a lost connection, an overloaded server) is tried until
    ``deadline_s``, other failures ``attempts`` times; nothing starts after ``deadline_s``.  One
    attempt may take ``attempt_s``, and as much longer as its bytes take on a slow link.
    """

    attempts: int = 3
    first_pause_s: float = 0.1
    max_pause_s: float = 2.0
    deadline_s: float = READER_DEADLINE_S
    attempt_s: float = ATTEMPT_S

    @classmethod
    def from_environment(cls) -> Self:
        """Return the policy that ``$LAMINA_RETRY`` asks for, as ``deadline_s=20,attempts=5``.

        Raises UsageError for names that no field has and for values that are not positive.
        """
        chosen: dict[str, float] = {}
        for item in filter(None, os.environ.get(VARIABLE, "").split(",")):
            name, _, text = (part.strip() for part in item.partition("="))
            try:
                value = int(text) if name == "attempts" else float(text)
            except ValueError:
                value = 0
            if not 0 < value < _MOST or name not in (field.name for field in fields(cls)):
                names = ", ".join(field.name for field in fields(cls))
                raise UsageError(
                    f"{VARIABLE} has {item!r}, which is no limit of retries",
                    hint=f"write NAME=NUMBER with a name of {names}",
                )
            chosen[name] = value
        return cls(**chosen)  # type: ignore[arg-type]

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
