"""The whole of an image of which a start uses parts that came ahead: opened when more is needed, or
a while after nothing more comes ahead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from lamina.content.start_pages import longest_wait_s
from lamina.errors import (
    Error,
    FormatError,
    IntegrityError,
    KernelError,
    StoreError,
)
from lamina.image.errors import ClosedImageError
from lamina.posix.threads import start_thread
from lamina.source.retry import DeadlineError, RetryPolicy

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.content.start_pages import StartPages
    from lamina.erofs.reader import Bootstrap

LOG: Final = logging.getLogger("lamina")

SETTLE_SHARE: Final = 0.2
"""So long, of the time that a start is waited for, a program that has begun has the link for
itself: a second.
"""

LOOK_S: Final = 1.0

RETRY_S: Final = 1.0
"""After a failure to open, requests fail for so long without another attempt; if the store has
failed, twice as long after each further one: every attempt fetches all of the metadata layer.
"""

LONGEST_RETRY_S: Final = 30.0

CLOSE_S: Final = 5.0


class WholeImage:
    """Opens an image once.  Threads share it.

    An image that turns out to be damaged stays so: nothing more of it is shown, of what came ahead
    neither.  Opening goes on when a reader no longer waits for it.
    """

    def __init__(
        self,
        open_image: Callable[[], LazyImage],
        pages: StartPages,
        name: str = "an image",
        *,
        deadline_s: float | None = None,
        afterwards: Callable[[], None] = lambda: None,
    ) -> None:
        """Own what *open_image* returns.  It is called when *pages* are over, if not before;
        *afterwards* when readers have the image.  *name* is what log lines call it; nobody waits
        longer than *deadline_s*, by default that of reads.
        """
        self._open_image = open_image
        self._afterwards = afterwards
        self._name = name
        self._pages = pages
        self._deadline_s = deadline_s or RetryPolicy.from_environment().deadline_s
        self._opened: LazyImage | None = None
        self._broken: Error | None = None
        self._error: Error | None = None
        self._not_before_s = 0.0
        self._failures = 0
        self._change = threading.Condition()
        self._is_opening = False
        self._opener: threading.Thread | None = None
        self._closing = threading.Event()
        self._settle_s = longest_wait_s() * SETTLE_SHARE
        self._later = threading.Thread(target=self._open_later, name="lamina-metadata", daemon=True)

    def begin(self) -> None:
        """Open it in the background when the start is over."""
        self._later.start()

    @property
    def opened(self) -> LazyImage | None:
        """The image, if it is open."""
        return self._opened

    def check(self) -> None:
        """Raise what is wrong with the image, if that is known."""
        if self._broken is not None:
            raise _anew(self._broken)

    def get(self) -> LazyImage:
        """Return the image, opened now if it is not.

        Raises what opening it raises, and DeadlineError if that takes too long.
        """
        self.check()
        if self._opened is not None:
            return self._opened
        with self._change:
            self._begin_attempt()
            self._change.wait_for(
                lambda: not self._is_opening or self._closing.is_set(), self._deadline_s
            )
            self.check()
            opened = self.opened
            if opened is not None:
                return opened
            if self._closing.is_set():
                raise ClosedImageError("the image is closed")
            if not self._is_opening and self._error is not None:
                raise _anew(self._error)
        raise DeadlineError(
            f"the metadata layer of {self._name} did not come in {self._deadline_s:g} s",
            hint="it is still being fetched: read again",
        )

    def _begin_attempt(self) -> None:
        """Begin to open it, unless somebody does.  Raises what went wrong a moment ago."""
        if self._opened is not None or self._is_opening:
            return
        self.check()
        if self._closing.is_set():
            raise ClosedImageError("the image is closed")
        if self._error is not None and time.monotonic() < self._not_before_s:
            raise _anew(self._error)
        self._error = None
        self._opener = start_thread(self._try_to_open, "lamina-metadata")
        self._is_opening = True

    def _try_to_open(self) -> None:
        opened, error = None, None
        try:
            opened = self._open_image()
        except Error as raised:
            error = raised
        except Exception as raised:
            LOG.exception("the metadata of %s cannot be read because of a defect", self._name)
            error = KernelError(f"the metadata of {self._name} cannot be read: {raised!r}")
        with self._change:
            self._is_opening = False
            if opened is not None and not self._closing.is_set():
                self._opened = opened
            elif error is not None:
                self._note(error)
            else:
                self._error = ClosedImageError("the image is closed")
            self._change.notify_all()
        if opened is not None and self._opened is None:
            # It came after close() has looked for it.
            opened.close()
        elif opened is not None:
            self._afterwards()

    def _note(self, error: Error) -> None:
        if isinstance(error, (FormatError, IntegrityError)):
            LOG.warning("nothing more is read of %s, its metadata are wrong: %s", self._name, error)
            self._broken = error
            return
        # Readers are told by an errno alone; once is enough for a source that stays away.
        level = logging.INFO if self._failures else logging.WARNING
        LOG.log(level, "the metadata of %s cannot be read now: %s", self._name, error)
        self._failures += 1
        pause_s = RETRY_S
        if isinstance(error, StoreError):
            pause_s = _pause_s(self._failures)
        self._error, self._not_before_s = error, time.monotonic() + pause_s

    def bootstrap(self) -> Bootstrap:
        """Return all of its bootstrap, checked.  Raises what :meth:`get` raises."""
        return self.get().bootstrap

    def _open_later(self) -> None:
        pause_s = self._settle_s
        while not self._closing.is_set() and self._broken is None:
            if self._pages.wait_over(LOOK_S) and not self._closing.wait(pause_s):
                with suppress(Error):
                    self.get()
                    return
                pause_s = _pause_s(self._failures)

    def close(self) -> None:
        """Close the image if it is open; may be called again."""
        with self._change:
            self._closing.set()
            self._change.notify_all()
        for thread in (self._later, self._opener):
            if thread is not None and thread.is_alive():
                thread.join(CLOSE_S)
        if self._opened is not None:
            self._opened.close()


def _anew(error: Error) -> Error:
    """Return an error to be raised once more, without what raised it before: else it would hold
    the buffers of everybody who ever heard it.
    """
    return error.with_traceback(None)


def _pause_s(failures: int) -> float:
    """Return how long to wait after so many failures."""
    return float(min(RETRY_S * 2 ** max(min(failures, 10) - 1, 0), LONGEST_RETRY_S))
