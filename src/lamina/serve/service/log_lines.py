"""What the service has to say of one image, for who stays beside its readers and has a terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Final

from lamina.serve.runtime_folder import state_directory
from lamina.serve.service.state import LOG_NAME

MOST_LINES: Final = 20
_LONGEST_LOG: Final = 4 << 20


class LogLines:
    """The lines that the service writes from now on, if it writes them to its file."""

    def __init__(self) -> None:
        self._path = state_directory() / LOG_NAME
        try:
            self._start = self._path.stat().st_size
        except OSError:
            self._start = 0

    def warnings(self, names: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Yield level and text of what is no mere information and has one of *names* in it."""
        try:
            with self._path.open("rb") as file:
                # A service that has started meanwhile has begun its log anew.
                file.seek(self._start if file.seek(0, 2) >= self._start else 0)
                lines = file.read(_LONGEST_LOG).decode(errors="replace").splitlines()
        except OSError:
            return
        left = MOST_LINES
        for line in lines:
            # DAY TIME PID LEVEL TEXT
            words = line.split(" ", 4)
            level = logging.getLevelNamesMapping().get(words[3], 0) if len(words) == 5 else 0
            if level >= logging.WARNING and left and any(name in words[4] for name in names):
                left -= 1
                yield level, words[4]
