"""Where clients of a disk reach its server: sockets made here, or handed over by systemd."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Final
from urllib.parse import quote

from lamina.errors import UsageError

_BACKLOG: Final = 16
_FIRST_ACTIVATED_FD: Final = 3


def listen_unix(path: str) -> socket.socket:
    """Return a socket at *path*, for its owner only; one that nobody listens on any more is
    replaced.

    Raises UsageError if somebody does, or if the path is something else; OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _remove_dead(path)
        # The mode of a socket is that of its making: there is no moment in which others may use it.
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_dead(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            import stat

            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise UsageError(f"{path} is there, and is no socket") from None
            os.unlink(path)
            return
    raise UsageError(f"somebody serves on {path} already")


def listen_tcp(host: str, port: int, *, is_guarded: bool = False) -> socket.socket:
    """Return a socket on an address, which is one of this machine only unless *is_guarded*: clients
    prove by TLS who they are.

    Raises UsageError, OSError.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(f"{host!r} is no address", hint="127.0.0.1 or ::1") from None
    if not is_guarded:
        _demand_loopback(host)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def take_activated(*, is_guarded: bool = False) -> socket.socket | None:
    """Return the socket that whoever started this process handed over, as systemd does
    (sd_listen_fds(3)); None if there is none.

    Raises UsageError for more than one, for anything but a listening stream socket, and for what
    :func:`listen_tcp` refuses.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if count != "1":
        raise UsageError(f"one socket is to be handed over, not {count[:20] or 'none'}")
    try:
        os.set_inheritable(_FIRST_ACTIVATED_FD, False)
        sock = socket.socket(fileno=_FIRST_ACTIVATED_FD)
    except OSError as error:
        raise UsageError(f"what was handed over is no socket: {error.strerror}") from error
    try:
        _check_activated(sock, is_guarded=is_guarded)
    except BaseException:
        sock.close()
        raise
    return sock


def _check_activated(sock: socket.socket, *, is_guarded: bool) -> None:
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.type != socket.SOCK_STREAM or not listens:
        raise UsageError("the socket that was handed over does not listen for streams")
    if sock.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        raise UsageError("the socket that was handed over is neither a unix socket nor TCP")
    if sock.family != socket.AF_UNIX and not is_guarded:
        _demand_loopback(sock.getsockname()[0])


def _demand_loopback(host: str) -> None:
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        raise UsageError(
            f"{host} can be reached from other machines, which are not asked who they are",
            hint="serve on a unix socket or 127.0.0.1, or demand certificates with "
            "--tls-certificates and --tls-verify-peer",
        )


def disk_uri(listening: socket.socket, name: str, *, tls: bool) -> str:
    """Return the address of a disk as clients write it (``doc/uri.md`` of the protocol)."""
    scheme = "nbds" if tls else "nbd"
    where = listening.getsockname()
    shown = quote(name, safe="")
    if listening.family == socket.AF_UNIX:
        path = os.fsdecode(where)
        return f"{scheme}+unix:///{shown}?socket={quote(os.path.abspath(path))}"
    host = f"[{where[0]}]" if ":" in where[0] else where[0]
    return f"{scheme}://{host}:{where[1]}/{shown}"
