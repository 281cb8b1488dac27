"""How often and how long it is tried again: reads of blobs and calls of registries and brokers."""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Final, Self, TypeVar

from lamina.errors import FetchError, UsageError

LOG: Final = logging.getLogger("lamina")

T = TypeVar("T")

READER_DEADLINE_S: Final = 60.0
"""No reader waits longer for bytes than this; then it gets ETIMEDOUT."""

ATTEMPT_S: Final = 15.0
"""How long one attempt may take beside what its bytes take on the slowest link that is useful."""

VARIABLE: Final = "LAMINA_RETRY"
_MOST: Final = 1e6
_LONG_S: Final = 4.0
"""Nobody should wait for longer and not know what for."""


class DeadlineError(FetchError):
    """The bytes did not come in the time that a reader is made to wait."""

    errno: ClassVar[int] = errno.ETIMEDOUT
    final: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long to try again.

    The n-th pause is a random time up to ``min(first_pause_s * 2**n, max_pause_s)``, so that many
    nodes whose registry was away do not come back at the same moment, or what the registry asked
    for if that is longer.  What may pass (a lost connection, an overloaded server) is tried
    ``passing_attempts`` times, other failures ``attempts`` times; nothing starts after
    ``deadline_s``.  One attempt may take ``attempt_s``, and as much longer as its bytes take on a
    slow link.
    """

    attempts: int = 3
    first_pause_s: float = 0.1
    max_pause_s: float = 2.0
    deadline_s: float = READER_DEADLINE_S
    attempt_s: float = ATTEMPT_S
    passing_attempts: float = math.inf

    @classmethod
    def from_environment(cls) -> Self:
        """Return the policy that ``$LAMINA_RETRY`` asks for, as ``deadline_s=20,attempts=5``.

        ``attempts=1`` asks once, whatever fails.  Raises UsageError for other names and for values
        that are not positive.
        """
        allowed = [field.name for field in fields(cls) if field.name != "passing_attempts"]
        chosen: dict[str, float] = {}
        for item in filter(None, os.environ.get(VARIABLE, "").split(",")):
            name, _, text = (part.strip() for part in item.partition("="))
            try:
                value = int(text) if name == "attempts" else float(text)
            except ValueError:
                value = 0
            if not 0 < value < _MOST or name not in allowed:
                raise UsageError(
                    f"{VARIABLE} has {item!r}, which is no limit of retries",
                    hint=f"write NAME=NUMBER with a name of {', '.join(allowed)}",
                )
            chosen[name] = value
        if chosen.get("attempts") == 1:
            chosen["passing_attempts"] = 1
        return cls(**chosen)  # type: ignore[arg-type]

    def pause_s(self, attempt: int, error: FetchError) -> float:
        """Return how long to wait after attempt number *attempt* (from 0) ended with *error*."""
        bound = min(self.first_pause_s * 2.0 ** min(attempt, 32), self.max_pause_s)
        # Chance only spreads the load here; it guards nothing.
        return max(random.uniform(bound / 2, bound), error.retry_after_s)  # noqa: S311

    def is_worth(self, attempt: int, error: FetchError) -> bool:
        """Tell whether another attempt after number *attempt* (from 0) may end better."""
        if error.final:
            return False
        return attempt + 1 < (self.passing_attempts if error.transient else self.attempts)


ONCE: Final = RetryPolicy(attempts=1, passing_attempts=1)


class Attempts:
    """The attempts of one read or call, until *deadline* on *clock*, and the pauses between them.

    Who makes them asks :meth:`wait` after each that failed.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        deadline: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        told: bool = True,
    ) -> None:
        """With *told* the log says of every attempt why it failed."""
        self.is_late = False
        """Whether only the time was missing for another one."""
        self._policy = policy
        self._deadline = deadline
        self._clock = clock
        self._sleep = sleep
        self._told = told
        self._failed = 0
        self._begun = clock()

    def wait(self, *errors: FetchError) -> bool:
        """Return True when it is time for the next attempt, after one that ended with *errors*;
        False if there is none.
        """
        worth = [error for error in errors if self._policy.is_worth(self._failed, error)]
        pauses_s = [self._policy.pause_s(self._failed, error) for error in worth]
        if not pauses_s:
            return False
        pause_s = min(pauses_s)
        now = self._clock()
        if now + pause_s >= self._deadline:
            self.is_late = True
            return False
        level = logging.INFO if now - self._begun + pause_s < _LONG_S else logging.WARNING
        LOG.log(level if self._told else logging.DEBUG, "%s; asking again", worth[0])
        self._sleep(pause_s)
        self._failed += 1
        self._begun = self._clock()
        return True


def retry(action: Callable[[], T], policy: RetryPolicy, deadline: float) -> T:
    """Call *action* until it succeeds or its FetchError is not worth another attempt, which is
    raised.
    """
    attempts = Attempts(policy, deadline)
    while True:
        try:
            return action()
        except FetchError as error:
            if not attempts.wait(error):
                raise
