"""The least speed of a transfer: what bounds its time where a registry says how large it is."""

from __future__ import annotations

from typing import Final

LEAST_BYTES_PER_S: Final = 8 << 10
WINDOW_S: Final = 60.0


class TooSlowError(TimeoutError):
    """Over the last minute less has come than a link that is of any use brings."""


class Pace:
    """How long a transfer may still be waited for: waiting takes of it, bytes that move add to it,
    up to a minute.

    So a transfer of any size goes on as long as it keeps up LEAST_BYTES_PER_S over a moving minute,
    and ends a minute after it does not, whatever size was claimed.
    """

    __slots__ = ("_window_s", "left_s")

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = self.left_s = window_s

    def count(self, waited_s: float, moved_bytes: int) -> None:
        """Take a wait into account, and what it brought."""
        left_s = self.left_s - waited_s + moved_bytes / LEAST_BYTES_PER_S
        self.left_s = min(left_s, self._window_s)

    def check(self) -> None:
        """Raise TooSlowError if there is no time left."""
        if self.left_s <= 0:
            raise TooSlowError(
                f"less than {LEAST_BYTES_PER_S >> 10} KiB/s over {self._window_s:g} seconds"
            )
