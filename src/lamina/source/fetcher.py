"""Getting bytes from the best of several sources, whatever happens to the others.

Sources are asked by their cost, and in their order: what is on this node, peers, mirrors, the
registry.  One that fails, lies or is slow is passed over for a while, unless all are.  When all
have failed, all are asked again after a pause, until the deadline.  One that sends a blob only
whole is asked last, and read once (:mod:`lamina.source.sequential_reads`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import BinaryIO, Final, NamedTuple

from lamina.errors import Error, FetchError, NotFoundError
from lamina.source.blob_source import BlobSource, Cost, RangesIgnoredError
from lamina.source.health import Health
from lamina.source.network_estimate import NetworkEstimate, NetworkEstimator
from lamina.source.reader_priority import ReaderPriority
from lamina.source.retry import Attempts, DeadlineError, RetryPolicy
from lamina.source.sequential_reads import SequentialReads

LOG: Final = logging.getLogger("lamina")

SLOWEST_BYTES_PER_S: Final = 64 << 10
"""The slowest link that is useful."""

SLOW_S: Final = 3.0
"""Who takes longer, beside what the bytes take on the slowest link, is not waited for while there
are others to ask, and not asked first for a while.
"""


class Delivery(NamedTuple):
    """Bytes and who sent them."""

    data: memoryview
    source: BlobSource


class _Range(NamedTuple):
    blob_id: str
    offset: int
    buffer: memoryview


class Fetcher(BlobSource):
    """Several sources behind the interface of one.  Threads share it.

    It measures the link to some of them as it goes, *measured*, by default the first; its readers
    go before the background of whatever has the same *priority*.
    """

    def __init__(
        self,
        sources: Sequence[BlobSource],
        *,
        policy: RetryPolicy | None = None,
        estimator: NetworkEstimator | None = None,
        measured: Sequence[BlobSource] = (),
        priority: ReaderPriority | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not sources:
            raise ValueError("a fetcher needs a source")
        self.sources = tuple(sorted(sources, key=lambda source: source.cost))
        self.policy = policy or RetryPolicy()
        self.estimator = estimator or NetworkEstimator()
        self.measured = measured or sources[:1]
        """Whose link is measured; the last is where the blobs are for certain."""
        self.priority = priority or ReaderPriority()
        self.name = ", ".join(source.name for source in self.sources)
        self.cost: Cost = self.sources[0].cost
        self.can_stream = any(source.can_stream for source in self.sources)
        self.sequential_reads = SequentialReads(self.priority)
        self._health = {id(source): source.health or Health() for source in self.sources}
        self._clock = clock
        self._sleep = sleep

    @property
    def estimate(self) -> NetworkEstimate:
        """What a request costs, as far as it is known."""
        return self.estimator.estimate

    def read_into(self, blob_id: str, offset: int, buffer: memoryview, timeout_s: float) -> None:
        """Fill *buffer*; raises as :meth:`fetch`."""
        self._fetch(_Range(blob_id, offset, buffer), self._clock() + timeout_s)

    def open_sequential(self, blob_id: str, size_bytes: int) -> BinaryIO:
        """Return the stream of the first source that can send one."""
        able = [source for source in self.sources if source.can_stream] or self.sources
        return able[0].open_sequential(blob_id, size_bytes)

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> memoryview:
        """Return exactly these bytes; raises as :meth:`fetch`."""
        return self.fetch(blob_id, offset, size_bytes).data

    def fetch(
        self, blob_id: str, offset: int, size_bytes: int, *, deadline: float | None = None
    ) -> Delivery:
        """Return exactly these bytes and their source.

        *deadline* is on the monotonic clock, ``policy.deadline_s`` from now by default.

        Raises DeadlineError when the time is over, else the error of the first source that did not
        only lack the blob: AuthError or another FetchError; NotFoundError if all lack it.
        """
        what = _Range(blob_id, offset, memoryview(bytearray(size_bytes)))
        return Delivery(what.buffer, self.fetch_into(*what, deadline=deadline))

    def fetch_into(
        self, blob_id: str, offset: int, buffer: memoryview, *, deadline: float | None = None
    ) -> BlobSource:
        """Fill *buffer* and return who did; the rest is that of :meth:`fetch`."""
        give_up = self._clock() + self.policy.deadline_s if deadline is None else deadline
        return self._fetch(_Range(blob_id, offset, buffer), give_up)

    def _fetch(self, what: _Range, give_up: float) -> BlobSource:
        attempts = Attempts(self.policy, give_up, clock=self._clock, sleep=self._sleep, told=False)
        while True:
            errors: list[Error] = []
            ignoring: list[BlobSource] = []
            order = self._in_order(what.blob_id)
            for source in order:
                try:
                    self._ask(source, what, give_up, patient=source is order[-1])
                except RangesIgnoredError as error:
                    # Not punished: other blobs may be there, and be sent as they are asked for.
                    self.sequential_reads.note_ignored(source, what.blob_id)
                    ignoring.append(source)
                    errors.append(error)
                except (FetchError, NotFoundError) as error:
                    self._failed(source, what.blob_id, error)
                    errors.append(error)
                else:
                    return source
            if any(self.sequential_reads.begin(source, what.blob_id) for source in ignoring):
                continue
            if not attempts.wait(*(error for error in errors if isinstance(error, FetchError))):
                cause = _cause(errors)
                raise self._too_late(cause) if attempts.is_late else cause

    def refetch_elsewhere(
        self, blob_id: str, offset: int, size_bytes: int, *, than: BlobSource, deadline: float
    ) -> Iterator[Delivery]:
        """Yield the same bytes from the other sources, and once more from *than* at the end.

        For bytes that turned out to be wrong.  Sources that fail are left out; nothing begins after
        *deadline*, on the monotonic clock.
        """
        self._punish(than)
        for source in [*(each for each in self._in_order(blob_id) if each is not than), than]:
            what = _Range(blob_id, offset, memoryview(bytearray(size_bytes)))
            try:
                self._ask(source, what, deadline, patient=True)
            except (FetchError, NotFoundError) as error:
                self._failed(source, blob_id, error)
                LOG.debug("%s does not help out: %s", source.name, error)
            else:
                yield Delivery(what.buffer, source)

    def _ask(self, source: BlobSource, what: _Range, deadline: float, *, patient: bool) -> None:
        """Fill the buffer; who is not *patient* has others to ask."""
        begin = self._clock()
        left_s = deadline - begin
        if left_s <= 0:
            raise DeadlineError("the time is over before the request could be made")
        carrying_s = len(what.buffer) / SLOWEST_BYTES_PER_S
        attempt_s = self.policy.attempt_s if patient else min(self.policy.attempt_s, SLOW_S)
        timeout_s = min(left_s, attempt_s + carrying_s)
        ask_range = partial(source.read_into, *what, timeout_s)
        by_range = self.sequential_reads.ask(source, what, left_s, ask_range)
        took_s = self._clock() - begin
        if source in self.measured and by_range:
            self.estimator.add(len(what.buffer), took_s)
        if by_range and took_s > SLOW_S + carrying_s and len(self.sources) > 1:
            LOG.debug("%s is slow: %.1f s for %d bytes", source.name, took_s, len(what.buffer))
            self._punish(source)
            return
        self._health[id(source)].succeeded()

    def _in_order(self, blob_id: str) -> Sequence[BlobSource]:
        """Return the sources: those that failed lately last, and before these who sends the blob
        only whole, or had not got it.
        """
        if len(self.sources) == 1:
            return self.sources
        now, is_whole = self._clock(), self.sequential_reads.sends_whole

        def rank(source: BlobSource) -> tuple[bool, bool, bool]:
            return *self._health[id(source)].rank(blob_id, now), is_whole(source, blob_id)

        return sorted(self.sources, key=rank)

    def _failed(self, source: BlobSource, blob_id: str, error: Error) -> None:
        self._health[id(source)].failed(blob_id, error, self._clock())

    def _punish(self, source: BlobSource) -> None:
        self._health[id(source)].punish(self._clock())

    def _too_late(self, error: Error) -> DeadlineError:
        return DeadlineError(
            f"{self.name} did not deliver in {self.policy.deadline_s:g} s: {error}",
            hint=error.hint,
        )


def _cause(errors: Sequence[Error]) -> Error:
    """Return why nothing came: that a folder or mirror has not got a blob is no reason, as long as
    somebody else failed in another way.
    """
    return next((error for error in errors if not isinstance(error, NotFoundError)), errors[-1])
