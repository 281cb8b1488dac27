"""A FUSE device that outlives its server, by :mod:`lamina.serve.content_cache.keeper`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from lamina.serve.content_cache import keeper
from lamina.serve.runtime_folder import state_directory

_TAKE_S: Final = 10.0


class KeptDevice:
    """The server's end.  The descriptor is the caller's."""

    def __init__(self, fd: int, connection: socket.socket) -> None:
        self.fd = fd
        self._connection = connection

    def release(self) -> None:
        """Let the keeper go: what becomes of the device is the caller's business."""
        with contextlib.suppress(OSError):
            self._connection.send(b"b")
        self._connection.close()


def keep(folder: str, fd: int) -> KeptDevice:
    """Start the keeper of a new device for what is mounted at *folder*."""
    path = _socket_path(folder)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(os.fspath(path))
        listening.listen(4)
        ours, theirs = socket.socketpair()
        with theirs:
            passed = (fd, listening.fileno(), theirs.fileno())
            words = [sys.executable, "-I", "-S", os.path.abspath(keeper.__file__)]
            subprocess.Popen(
                [*words, *map(str, passed)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
                cwd="/",
            )
    return KeptDevice(fd, ours)


def take(folder: str) -> KeptDevice | None:
    """Return the device of a server of *folder* that is gone; None if nobody keeps one, or the
    server is there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_TAKE_S)
        connection.connect(os.fspath(_socket_path(folder)))
        data, fds, _, _ = socket.recv_fds(connection, 1, 1)
    except OSError:
        data, fds = b"", []
    if not data or not fds:
        connection.close()
        return None
    connection.settimeout(None)
    os.set_inheritable(fds[0], False)
    return KeptDevice(fds[0], connection)


def _socket_path(folder: str) -> Path:
    # A path of a socket has little room.
    return state_directory() / f"cache-{hashlib.sha256(folder.encode()).hexdigest()[:16]}"
