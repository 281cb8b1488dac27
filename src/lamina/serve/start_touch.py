"""Ask the kernel for the pages of a start as they arrive, of an image that the service serves.

For who has several threads, and so cannot fork as :class:`~lamina.serve.toucher.StartGate` does::

    python -m lamina.serve.start_touch FD FOLDER

reads from the pipe FD what has come of the image that is mounted on FOLDER.  It ends when nothing
more will, and after a minute in any case: a process that waits in the kernel for a page can only be
left alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Final

from lamina.content.start_pages import longest_wait_s
from lamina.posix.own_program import own_program
from lamina.serve.toucher import has_data, touch

LOG: Final = logging.getLogger("lamina")

LIFE_S: Final = 60


class StartTouch:
    """That process for one mount, started when something has come.  Threads share it."""

    def __init__(self, folder: str) -> None:
        """*folder* is where the image is about to be mounted."""
        self._folder = folder
        self._read_end, self.write_end = os.pipe()
        self._over = threading.Event()
        self._end_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def mounted(self) -> None:
        """Say that the image is mounted, with ``write_end`` given to the service: begin."""
        os.close(self.write_end)
        self._end_s = time.monotonic() + longest_wait_s()
        threading.Thread(target=self._follow, name="lamina-start-touch", daemon=True).start()

    def failed(self) -> None:
        """Say that the image is not mounted."""
        os.close(self.write_end)
        os.close(self._read_end)
        self._over.set()

    def wait(self) -> None:
        """Return when the kernel was asked for all that has come, and no more will, or so long
        after the mount as a program is kept from starting.
        """
        self._over.wait(max(self._end_s - time.monotonic(), 0))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._over.is_set()

    def end(self) -> None:
        """End it, if it has not: its open files keep the mount busy."""
        if self._process is not None:
            self._process.kill()

    def _follow(self) -> None:
        try:
            if has_data(self._read_end, self._end_s):
                command = own_program("lamina.serve.start_touch", self._read_end, self._folder)
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, pass_fds=(self._read_end,)
                )
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(LIFE_S)
        except OSError as error:
            # The pages come when they are read.
            LOG.info("nobody asks for the start of %s: %s", self._folder, error)
        finally:
            os.close(self._read_end)
            self._over.set()


def main(pipe: int, folder: str) -> None:
    """Read from a pipe what arrives, and ask the kernel for it."""
    signal.alarm(LIFE_S)
    root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with open(pipe, "rb") as lines:
        touch(root, lines)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
