"""Getting bytes from the best of several sources, whatever happens to the others.

Sources are asked in their order: peers, mirrors, the registry.  One that fails is passed over for a
while, unless all do.  When all have failed, all are asked again after a pause, until the deadline.
One that sends a blob only whole is asked last, and read once (:mod:`lamina.fetch.whole_reads`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from lamina.errors import AuthError, Error, FetchError, NotFoundError
from lamina.fetch.link import Link, LinkEstimator
from lamina.fetch.retry import ONCE, DeadlineError, RetryPolicy, may_pass, retry_after_s
from lamina.fetch.source import Source, TimedSource, exactly, source_name
from lamina.fetch.traffic import SHARED_TRAFFIC
from lamina.fetch.whole_reads import WholeReads
from lamina.registry.repository import RangesIgnoredError

LOG: Final = logging.getLogger("lamina")

SLOWEST_BYTES_PER_S: Final = 64 << 10
"""The slowest link that is useful."""

FIRST_PENALTY_S: Final = 0.5
LONGEST_PENALTY_S: Final = 30.0


class Delivery(NamedTuple):
    """Bytes and who sent them."""

    data: bytes
    source: Source


@dataclass(slots=True)
class _Health:
    """How a source has done lately."""

    failures: int = 0
    until: float = 0.0


class Fetcher:
    """An ordered list of sources behind the interface of one.  Threads share it.

    It measures the link to one of them as it goes, *measured*, by default the first.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        policy: RetryPolicy | None = None,
        estimator: LinkEstimator | None = None,
        measured: Source | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not sources:
            raise ValueError("a fetcher needs a source")
        self.sources = tuple(sources)
        self.policy = policy or RetryPolicy()
        self.estimator = estimator or LinkEstimator()
        self._measured = measured or self.sources[0]
        self.traffic = SHARED_TRAFFIC
        self.whole_reads = WholeReads(self.traffic)
        self._health = {id(source): _Health() for source in self.sources}
        self._lock = threading.Lock()
        self._clock = clock
        self._sleep = sleep

    @property
    def name(self) -> str:
        """All sources, for messages."""
        return ", ".join(source_name(source) for source in self.sources)

    @property
    def link(self) -> Link:
        """What a request costs, as far as it is known."""
        return self.estimator.link

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes; raises as :meth:`fetch`."""
        return self.fetch(blob_id, offset, size_bytes).data

    def fetch(
        self, blob_id: str, offset: int, size_bytes: int, *, deadline: float | None = None
    ) -> Delivery:
        """Return exactly these bytes and their source.

        *deadline* is on the monotonic clock, ``policy.deadline_s`` from now by default.

        Raises DeadlineError when the time is over, else the error of the first source: AuthError,
        NotFoundError or another FetchError.
        """
        give_up = self._clock() + self.policy.deadline_s if deadline is None else deadline
        attempt = 0
        while True:
            errors: list[Error] = []
            ignoring: list[Source] = []
            for source in self._in_order(blob_id):
                try:
                    return self._ask(source, (blob_id, offset, size_bytes), give_up)
                except RangesIgnoredError as error:
                    # Not punished: other blobs may be there, and be sent as they are asked for.
                    self.whole_reads.note_ignored(source, blob_id)
                    ignoring.append(source)
                    errors.append(error)
                except (FetchError, NotFoundError) as error:
                    self._failed(source, error)
                    errors.append(error)
            if any(self.whole_reads.begin(source, blob_id) for source in ignoring):
                continue
            pause_s = self._pause_s(attempt, errors)
            if pause_s is None:
                raise errors[0]
            if self._clock() + pause_s >= give_up:
                raise self._too_late(errors[0])
            LOG.debug("attempt %d failed, next in %.2f s: %s", attempt + 1, pause_s, errors[0])
            self._sleep(pause_s)
            attempt += 1

    def others(
        self, blob_id: str, offset: int, size_bytes: int, *, than: Source, deadline: float
    ) -> Iterator[Delivery]:
        """Yield the same bytes from the other sources, and once more from *than* at the end.

        For bytes that turned out to be wrong.  Sources that fail are left out; nothing begins after
        *deadline*, on the monotonic clock.
        """
        with self._lock:
            self._punish(than)
        for source in [*(each for each in self._in_order(blob_id) if each is not than), than]:
            try:
                yield self._ask(source, (blob_id, offset, size_bytes), deadline)
            except (FetchError, NotFoundError) as error:
                self._failed(source, error)
                LOG.debug("%s does not help out: %s", source_name(source), error)

    def _ask(self, source: Source, what: tuple[str, int, int], deadline: float) -> Delivery:
        begin = self._clock()
        left_s = deadline - begin
        if left_s <= 0:
            raise DeadlineError("the time is over before the request could be made")
        ask_range = partial(self._ask_range, source, what, left_s)
        data, by_range = self.whole_reads.ask(source, what, left_s, ask_range)
        data = exactly(data, source_name(source), *what)
        if source is self._measured and by_range:
            self.estimator.add(what[2], self._clock() - begin)
        health = self._health[id(source)]
        if health.failures:
            with self._lock:
                health.failures, health.until = 0, 0.0
        return Delivery(data, source)

    def _ask_range(self, source: Source, what: tuple[str, int, int], left_s: float) -> bytes:
        if not isinstance(source, TimedSource):
            return source.read_range(*what)
        timeout_s = min(left_s, self.policy.attempt_s + what[2] / SLOWEST_BYTES_PER_S)
        return source.read_range_within(*what, timeout_s)

    def _in_order(self, blob_id: str) -> list[Source]:
        """The sources, those that failed lately last, and before these who sends the blob only
        whole.
        """
        if len(self.sources) == 1:
            return list(self.sources)
        now, is_whole = self._clock(), self.whole_reads.sends_whole
        return sorted(
            self.sources,
            key=lambda source: (self._health[id(source)].until > now, is_whole(source, blob_id)),
        )

    def _failed(self, source: Source, error: Error) -> None:
        # That a peer or mirror lacks one blob says nothing of the others.
        if not isinstance(error, NotFoundError):
            with self._lock:
                self._punish(source, retry_after_s(error) if isinstance(error, FetchError) else 0)

    def _punish(self, source: Source, least_s: float = 0.0) -> None:
        health = self._health[id(source)]
        pause_s = min(FIRST_PENALTY_S * 2.0 ** min(health.failures, 32), LONGEST_PENALTY_S)
        health.failures += 1
        health.until = self._clock() + max(pause_s, least_s)

    def _pause_s(self, attempt: int, errors: list[Error]) -> float | None:
        """How long to wait before asking all again; None if that is of no use."""
        worth = [
            error
            for error in errors
            if isinstance(error, FetchError)
            and not isinstance(error, AuthError | DeadlineError | RangesIgnoredError)
            and (may_pass(error) or attempt + 1 < self.policy.attempts)
        ]
        if not worth or self.policy.attempts <= 1:
            return None
        return min(self.policy.pause_s(attempt, error) for error in worth)

    def _too_late(self, error: Error) -> DeadlineError:
        return DeadlineError(
            f"{self.name} did not deliver in {self.policy.deadline_s:g} s: {error}",
            hint=error.hint,
        )


def fetcher_of(source: Source) -> Fetcher:
    """Return *source* if it is a fetcher, else one that asks it once."""
    return source if isinstance(source, Fetcher) else Fetcher([source], policy=ONCE)
