"""Who brings the whole bootstrap to one that came in part."""

from __future__ import annotations

from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError


class Rest:
    """Brings the whole when it is asked for."""

    def __init__(self, image: bytes) -> None:
        self.asked = 0
        self.problem: FormatError | None = None
        self._image = image

    def check(self) -> None:
        """Raise what is wrong with the whole."""
        if self.problem is not None:
            raise self.problem

    def bootstrap(self) -> Bootstrap:
        """Return the whole."""
        self.asked += 1
        self.check()
        return Bootstrap(self._image)
