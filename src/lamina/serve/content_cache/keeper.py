"""The process that keeps the connection of a content cache when its server dies.

It is this file run as a program, with nothing of ours imported: it holds the FUSE device, and gives
it to the next server of the same folder.  Meanwhile who reads a layer waits.  It lets go after a
goodbye, when nobody has the layers mounted any more, or when no server came for too long: the
kernel then ends the connection, and readers get errors.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time

KEPT_S = 300.0
_GOODBYE = b"b"
_CREDENTIALS = struct.Struct("=iii")


def main(device: int, listening: socket.socket, server: socket.socket | None) -> None:
    """Hold ``device``; see the module."""
    _make_unattractive()
    gone_s = time.monotonic()
    poll = select.poll()
    # Without events: the end of the connection is told all the same.
    poll.register(device, 0)
    poll.register(listening, select.POLLIN)
    if server is not None:
        poll.register(server, select.POLLIN)
    while server is not None or time.monotonic() < gone_s + KEPT_S:
        ready = [fd for fd, _ in poll.poll(1000)]
        if device in ready:
            return
        if server is not None and server.fileno() in ready:
            if _said_goodbye(server):
                return
            poll.unregister(server)
            server.close()
            server, gone_s = None, time.monotonic()
        if listening.fileno() in ready:
            taker = _taker(listening, device, is_free=server is None)
            if taker is not None:
                server = taker
                poll.register(server, select.POLLIN)


def _said_goodbye(server: socket.socket) -> bool:
    try:
        return server.recv(1) == _GOODBYE
    except OSError:
        return False


def _taker(listening: socket.socket, device: int, *, is_free: bool) -> socket.socket | None:
    """Give the device to who asks, if he is root and there is no other server."""
    try:
        asking, _ = listening.accept()
    except OSError:
        return None
    try:
        given = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if is_free and _CREDENTIALS.unpack(given)[1] == os.geteuid():
            socket.send_fds(asking, [b"d"], [device])
            return asking
    except OSError:
        pass
    asking.close()
    return None


def _make_unattractive() -> None:
    """Be the last that the OOM killer takes, as far as we may, and be recognisable."""
    for path, text in (("oom_score_adj", "-1000"), ("comm", "lamina-keeper")):
        with contextlib.suppress(OSError), open(f"/proc/self/{path}", "w") as file:
            file.write(text)


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        socket.socket(fileno=int(sys.argv[2])),
        socket.socket(fileno=int(sys.argv[3])),
    )
