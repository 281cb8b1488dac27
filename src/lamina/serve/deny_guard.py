"""The process that keeps a fanotify group when its server dies, so that no reader sees zeros.

It is this file run as a program, with nothing of ours imported: it sleeps until the server goes.
After a goodbye it ends too.  Otherwise it answers all reads, those that the dead server left
unanswered and those to come, with EIO, until the superblocks that it was told of are gone.

Linux lets every reader through when the last descriptor of a group is closed; whoever kills the
holder as well gets that.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

_BEFORE = b"before "
_WATCH = b"watch "
_GOODBYE = b"bye"
_POLL_MS = 250
_MOUNTING_S = 1.0
_EVENT = struct.Struct("=IBBHQii")
_EVENT_BYTES = 4096
_RESPONSE = struct.Struct("=iI")
# FAN_DENY | EIO << FAN_ERRNO_SHIFT
_DENY = 0x02 | 5 << 24
_HIGHEST_FD = 1 << 16


class DenyGuard:
    """The server's end: starts the holder and tells it what happens."""

    def __init__(self, group: int, before: Sequence[str]) -> None:
        """Start it; it gets a copy of ``group``.

        ``before`` are the files of :class:`~lamina.linux.superblock.SuperblockWatch`, from before
        mounting:
        what comes in addition counts as ours if the server is killed before :meth:`watch`.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(__file__), str(group)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(group,),
            start_new_session=True,
            cwd="/",
        )
        self._say(_BEFORE, before)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def watch(self, paths: Sequence[str]) -> None:
        """Name the files in sysfs that live as long as the readers' superblock."""
        self._say(_WATCH, paths)

    def close(self, *, handed_over: bool) -> None:
        """End it, or leave the group to it for as long as there may be readers."""
        if not handed_over:
            self._say(_GOODBYE, ())
        with contextlib.suppress(OSError):
            self._pipe.close()
        if handed_over:
            threading.Thread(target=self._process.wait, daemon=True).start()
        else:
            self._process.wait()

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _say(self, word: bytes, paths: Sequence[str]) -> None:
        with contextlib.suppress(OSError):
            self._pipe.write(word + " ".join(paths).encode() + b"\n")
            self._pipe.flush()


def main(group: int) -> None:
    """Hold ``group``; see the module."""
    _make_unattractive()
    paths = _listen()
    if paths is None:
        return
    # What the dead server had read and not answered is known by numbers of its table only.
    for number in range(_HIGHEST_FD):
        _deny(group, number)
    poll = select.poll()
    poll.register(group, select.POLLIN)
    while any(os.path.exists(path) for path in paths):
        if poll.poll(_POLL_MS):
            _deny_all(group)


def _make_unattractive() -> None:
    """Be the last that the OOM killer takes, as far as we may, and be recognisable."""
    for path, text in (("oom_score_adj", "-1000"), ("comm", "lamina-guard")):
        with contextlib.suppress(OSError), open(f"/proc/self/{path}", "w") as file:
            file.write(text)


def _listen() -> list[str] | None:
    """Return what to watch when the server has gone without a goodbye, None after one."""
    with open(0, "rb", buffering=0) as pipe:
        lines = pipe.readall().splitlines()
    if _GOODBYE in lines:
        return None
    for line in lines:
        if line.startswith(_WATCH):
            return os.fsdecode(line[len(_WATCH) :]).split()
    # Killed while it mounted, which a fork of it may still finish.
    time.sleep(_MOUNTING_S)
    before = set(os.fsdecode(lines[0][len(_BEFORE) :]).split()) if lines else set()
    folder = "/sys/class/bdi"
    now = [f"{folder}/{name}" for name in os.listdir(folder) if name.startswith("erofs-")]
    return [path for path in now if path not in before]


def _deny_all(group: int) -> None:
    try:
        data = os.read(group, _EVENT_BYTES)
    except BlockingIOError:
        return
    except OSError:
        # The kernel had no descriptor for it, and told its reader so; there may be one soon.
        time.sleep(_POLL_MS / 1000)
        return
    position = 0
    while position < len(data):
        length, *_, fd, _ = _EVENT.unpack_from(data, position)
        _deny(group, fd)
        os.close(fd)
        position += length


def _deny(group: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.write(group, _RESPONSE.pack(number, _DENY))


if __name__ == "__main__":
    main(int(sys.argv[1]))
