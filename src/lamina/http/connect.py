"""A TCP connection to the first address of a name that answers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

from lamina.errors import KernelError
from lamina.posix.threads import start_thread

Addresses: TypeAlias = "Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]]"


def connect(host: str, port: int, timeout_s: float, deadline: float) -> socket.socket:
    """Return a connection; each address gets its part of the time, *timeout_s* at most.

    *deadline* is on the monotonic clock, and bounds what resolving the name takes as well.  Raises
    OSError of the last address, TimeoutError.
    """
    addresses = _resolve(host, port, deadline)
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        left_s = (deadline - time.monotonic()) / (len(addresses) - number)
        if left_s <= 0:
            break
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(min(left_s, timeout_s))
            sock.connect(address)
        except OSError:
            sock.close()
            if number + 1 == len(addresses):
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise TimeoutError("the deadline has passed")


def _resolve(host: str, port: int, deadline: float) -> Addresses:
    """Return the addresses of a name.  Raises socket.gaierror, also at the deadline.

    The resolver has no deadline that could be set: with a name server that is silent it may take
    half a minute.  So it is waited for, in a thread that may end later.
    """
    with contextlib.suppress(socket.gaierror):
        flags = socket.AI_NUMERICHOST
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    found: Future[Addresses] = Future()

    def resolve() -> None:
        try:
            found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            found.set_exception(error)

    try:
        start_thread(resolve, "lamina-resolve")
    except KernelError:
        resolve()
    try:
        left_s = max(deadline - time.monotonic(), 0)
        return found.result(min(left_s, threading.TIMEOUT_MAX))
    except TimeoutError:
        raise socket.gaierror(socket.EAI_AGAIN, "no name server answered in time") from None
