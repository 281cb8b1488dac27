"""One pass over a blob from its begin to its end, for a source that sends nothing less.

A pull-through cache that has not got a blob yet answers a range with status 200 and all of the
blob, and keeps it only for who reads to the end (distribution 3; 2.8 fetches it by itself).  So it
is read to the end once, by a thread of its own; what came by is in a file meanwhile, and readers
get their ranges from there.  Nothing of it is verified here: pieces are, as ever.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, Final, NamedTuple

from lamina.errors import Error, FetchError, IntegrityError, os_hint
from lamina.posix.threads import start_thread
from lamina.posix.write import write_all
from lamina.source.blob_source import require_length
from lamina.source.retry import DeadlineError

LOG: Final = logging.getLogger("lamina")

SETTLE_S: Final = 0.5
"""How long nothing is asked before a pass: until a cache has noticed that the last answer was given
up, it keeps nothing of another (seen with distribution 3.1.2: 50 ms are enough on loopback)."""

PART_BYTES: Final = 256 << 10
FIRST_REST_S: Final = 0.25
LONGEST_REST_S: Final = 30.0
PATIENCE_S: Final = 1.0
"""How long closing waits for a pass: a source that has gone silent is noticed a minute later."""


class PassOptions(NamedTuple):
    """How a pass is made: ``name`` is the source's, ``open_stream`` gives the blob of
    ``size_bytes``; ``spool`` is a file for what came by, None where there is no room for it;
    ``pace(size_bytes, stopped)`` waits until that much may be fetched.
    """

    name: str
    blob_id: str
    size_bytes: int
    open_stream: Callable[[], BinaryIO]
    spool: BinaryIO | None
    pace: Callable[[int, threading.Event], None]
    settle_s: float = SETTLE_S


class SequentialRead:
    """A pass.  Threads share it; close it when done."""

    def __init__(self, options: PassOptions, slots: threading.Semaphore) -> None:
        """Start at once, if *slots* has one."""
        self._options = options
        self._slots = slots
        self._spool = options.spool
        self._changed = threading.Condition()
        self._position = 0
        self._ended = False
        self._failure: Error | None = None
        self._stopped = threading.Event()
        self._rest_s = FIRST_REST_S
        self._ask_at = 0.0
        self._thread = start_thread(self._run, "lamina-whole")

    @property
    def failure(self) -> Error | None:
        """Why the pass ended early, if it did."""
        return self._failure

    @property
    def underway(self) -> bool:
        """Whether the pass has not ended yet."""
        return not self._ended

    def read_into(self, offset: int, buffer: memoryview, timeout_s: float) -> bool:
        """Fill *buffer* with bytes of the blob once they came by; False if that is over, and
        nothing was kept.

        Raises DeadlineError after *timeout_s*, and what the pass failed with.
        """
        size = self._options.size_bytes
        until = min(offset + len(buffer), size)

        def has_come() -> bool:
            return self._spool is not None and self._position >= until

        with self._changed:
            self._changed.wait_for(lambda: self._ended or has_come(), timeout_s)
            if self._failure is not None:
                raise self._failure
            if self._spool is not None and has_come():
                # Under the lock, since the number of a closed file may soon be another's.
                self._read_kept(self._spool, offset, buffer)
                return True
            if self._ended:
                return False
            raise DeadlineError(
                f"{self._options.name} sends blob {self._options.blob_id} only from its begin to "
                f"its end, {self._position} of {size} bytes came so far",
                hint="read it again later, or wait for all of it with `lamina pull`",
            )

    def take_turn_to_ask(self) -> bool:
        """Tell whether to ask for a range again: after the end, one reader at a time, and ever
        more rarely while the answer stays the same.
        """
        with self._changed:
            now = time.monotonic()
            if not self._ended or now < self._ask_at:
                return False
            self._ask_at = now + self._rest_s
            self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
            return True

    def wait(self) -> None:
        """Return when the pass has ended, well or not."""
        self._thread.join()

    def close(self) -> None:
        """End the pass where it is; may be called again.

        A pass that waits for its source is left behind: it keeps nothing, and ends when it hears of
        it, at the latest when the source is found too slow.
        """
        self._stopped.set()
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            # Its spool may be written to right now, so it closes that by itself.
            self._end(_closed())
        else:
            self._drop_spool()

    def _end(self, failure: Error | None) -> None:
        with self._changed:
            self._failure, self._ended = failure, True
            self._ask_at = time.monotonic() + FIRST_REST_S
            self._changed.notify_all()

    def _drop_spool(self) -> None:
        with self._changed:
            spool, self._spool = self._spool, None
            if spool is not None:
                spool.close()

    def _read_kept(self, spool: BinaryIO, offset: int, buffer: memoryview) -> None:
        try:
            count = os.preadv(spool.fileno(), [buffer], offset)
        except OSError as error:
            raise self._failed(error) from error
        require_length(count, self._options.name, self._options.blob_id, offset, len(buffer))

    def _failed(self, error: OSError) -> FetchError:
        """Make any failure, of this machine too, one of this source: another may have the bytes."""
        reason = error.strerror or error
        return FetchError(
            f"what {self._options.name} sends cannot be kept: {reason}", hint=os_hint(error)
        )

    def _run(self) -> None:
        failure: Error | None = _closed()
        try:
            while not self._slots.acquire(timeout=0.2):
                if self._stopped.is_set():
                    return
            try:
                failure = self._follow()
            finally:
                self._slots.release()
        except Error as error:
            failure = error
        except OSError as error:
            failure = self._failed(error)
        finally:
            self._end(_closed() if self._stopped.is_set() else failure)
            self._tell(failure)
            if self._stopped.is_set():
                self._drop_spool()

    def _follow(self) -> Error | None:
        """Read the blob to its end; returns an error if told to stop before."""
        options = self._options
        if self._stopped.wait(options.settle_s):
            return _closed()
        try:
            with options.open_stream() as stream:
                while self._position < options.size_bytes:
                    data = stream.read(min(PART_BYTES, options.size_bytes - self._position))
                    self._came(data)
                    options.pace(len(data), self._stopped)
                    if self._stopped.is_set():
                        return _closed()
        except IntegrityError as error:
            # Another source may have the right bytes, so this is a failure of this one.
            return FetchError(str(error), hint=error.hint)
        return None

    def _came(self, data: bytes) -> None:
        if not data:
            raise FetchError(f"{self._options.name} ends blob {self._options.blob_id} early")
        self._keep(data)
        with self._changed:
            self._position += len(data)
            self._changed.notify_all()

    def _keep(self, data: bytes) -> None:
        try:
            if self._spool is not None:
                write_all(self._spool.fileno(), data, self._position)
        except OSError as error:
            # The pass is worth its while without: the cache has the blob after it.
            LOG.warning("%s; it is read on all the same", self._failed(error))
            self._drop_spool()

    def _tell(self, failure: Error | None) -> None:
        options = self._options
        if failure is None:
            LOG.info("%s: blob %s has been read to its end", options.name, options.blob_id)
        elif not self._stopped.is_set():
            LOG.warning("%s: reading all of %s failed: %s", options.name, options.blob_id, failure)


def _closed() -> FetchError:
    return FetchError("the image was closed")
