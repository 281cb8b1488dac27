"""The host's cache for a guest without a network: connections over a virtio serial port."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from lamina.errors import FetchError, NotFoundError, UsageError
from lamina.serve.cache.channel import Channel

_PAUSE_MS: Final = 200
_PORTS: Final = Path("/sys/class/virtio-ports")


def find_port(name: str, ports: Path = _PORTS) -> Path:
    """Return the device of the port that the host calls *name*; a path is one already.

    Its number is that of the virtio device, which depends on what else there is.  *ports* is the
    kernel's folder of them.  Raises NotFoundError.
    """
    if "/" in name:
        return Path(name)
    for path in sorted(ports.glob("*/name")):
        if path.read_text().strip() == name:
            return Path("/dev") / path.parent.name
    raise NotFoundError(
        f"there is no serial port called {name[:100]!r}",
        hint=f"QEMU: -device virtserialport,chardev=...,name={name[:100]}",
    )


def relay(device: Path, listening: socket.socket) -> None:
    """Carry what connects to *listening*, which stays the caller's, over a port to the host.

    Returns never.  Raises FetchError when the host closes the port, FormatError for what is no
    frame of a channel, UsageError for a port that cannot be opened.
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot open the port {device}: {error.strerror}") from None
    channel = Channel(_Port(fd))
    thread = threading.Thread(target=_take, args=(listening, channel), daemon=True)
    thread.start()
    with suppress(OSError):
        channel.run()
    raise FetchError("the host has closed the port that its cache is behind")


def _take(listening: socket.socket, channel: Channel) -> None:
    while True:
        try:
            sock, _ = listening.accept()
        except OSError:
            if listening.fileno() < 0:
                return
            # As without descriptors: that passes.
            time.sleep(_PAUSE_MS / 1000)
            continue
        channel.connect(sock)


class _Port:
    """A port, which has nothing to read until the host has opened its end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_begun = False

    def read(self, size_bytes: int, /) -> bytes:
        """Return that many bytes at most; none once the host has gone away."""
        while not (data := os.read(self._fd, size_bytes)) and not self._is_begun:
            select.poll().poll(_PAUSE_MS)
        self._is_begun = True
        return data

    def write(self, data: bytes, /) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
