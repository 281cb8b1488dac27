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
from lamina.errors import Error, FormatError, IntegrityError
from lamina.image.errors import ClosedImageError

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
"""After a failure to open, requests fail for so long without another attempt."""

CLOSE_S: Final = 5.0


class WholeImage:
    """Opens an image once.  Threads share it.

    An image that turns out to be damaged stays so: nothing more of it is shown, of what came ahead
    neither.
    """

    def __init__(
        self, open_image: Callable[[], LazyImage], pages: StartPages, name: str = "an image"
    ) -> None:
        """Own what *open_image* returns.  It is called when *pages* are over, if not before.
        *name* is what log lines call it.
        """
        self._open_image = open_image
        self._name = name
        self._pages = pages
        self._opened: LazyImage | None = None
        self._broken: Error | None = None
        self._error: Error | None = None
        self._not_before_s = 0.0
        self._lock = threading.Lock()
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
            raise self._broken

    def get(self) -> LazyImage:
        """Return the image, opened now if it is not.  Raises what opening it raises."""
        self.check()
        if self._opened is not None:
            return self._opened
        with self._lock:
            # Others may have tried meanwhile.
            self.check()
            opened = self.opened
            return self._open() if opened is None else opened

    def _open(self) -> LazyImage:
        if self._closing.is_set():
            raise ClosedImageError("the image is closed")
        if self._error is not None and time.monotonic() < self._not_before_s:
            raise self._error
        try:
            self._opened = opened = self._open_again()
        except (FormatError, IntegrityError) as error:
            LOG.warning("nothing more is read of %s, its metadata are wrong: %s", self._name, error)
            self._broken = error
            raise
        except Error as error:
            self._error, self._not_before_s = error, time.monotonic() + RETRY_S
            raise
        if self._closing.is_set():
            # It came after close() has looked for it.
            opened.close()
            raise ClosedImageError("the image is closed")
        return opened

    def _open_again(self) -> LazyImage:
        try:
            return self._open_image()
        except (FormatError, IntegrityError) as error:
            LOG.info("the metadata are fetched again: %s", error)
        # They may have been damaged on the way.
        return self._open_image()

    def bootstrap(self) -> Bootstrap:
        """Return all of its bootstrap, checked.  Raises what opening it raises."""
        return self.get().bootstrap

    def _open_later(self) -> None:
        while not self._closing.is_set() and self._broken is None:
            if self._pages.wait_over(LOOK_S) and not self._closing.wait(self._settle_s):
                with suppress(Error):
                    self.get()
                    return

    def close(self) -> None:
        """Close the image if it is open; may be called again."""
        self._closing.set()
        if self._later.is_alive():
            self._later.join(CLOSE_S)
        if self._opened is not None:
            self._opened.close()
