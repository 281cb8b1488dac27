"""A Python that is not on Linux, as far as that can be had here: ``python -m
tests.support.not_linux VERB...`` runs a verb of Lamina, and ``-c PROGRAM`` a program.

There is no ``lamina.linux`` and nothing that needs it as a whole, none of the calls that Python
documents for Linux alone (or not for macOS), no /proc and no /sys.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import importlib.abc
import os
import select
import signal
import socket
import sys
import tempfile
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any

HIDDEN = ("lamina.linux", "lamina.serve")
LINUX_ONLY = {
    os: """
        copy_file_range eventfd getrandom getxattr listxattr memfd_create pidfd_open
        posix_fadvise posix_fallocate removexattr sched_getaffinity sched_setaffinity setns
        setxattr splice unshare MFD_CLOEXEC O_DIRECT O_NOATIME O_PATH O_RSYNC O_TMPFILE
        POSIX_FADV_DONTNEED POSIX_FADV_WILLNEED RWF_NOWAIT
        """,
    fcntl: "F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW F_ADD_SEALS F_SETPIPE_SZ",
    select: "epoll EPOLLIN EPOLLERR EPOLLPRI",
    signal: "pidfd_send_signal sigtimedwait sigwaitinfo",
    socket: """
        AF_NETLINK AF_VSOCK SO_PASSCRED SO_PEERCRED SOCK_CLOEXEC TCP_KEEPIDLE TCP_USER_TIMEOUT
        """,
}


class Hidden(importlib.abc.MetaPathFinder):
    """Finds that there are no such modules."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.startswith(HIDDEN):
            raise ModuleNotFoundError(f"{name} is not for this system", name=name)
        return None


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: files of Linux's own are not there."""
    if event == "open" and str(arguments[0]).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "there is no such folder here", arguments[0])


def leave_linux() -> None:
    """Make this process one that is not on Linux."""
    sys.platform = "darwin"
    # What urllib asks on macOS for proxies.
    proxies: Any = types.ModuleType("_scproxy")
    proxies._get_proxies = proxies._get_proxy_settings = dict
    sys.modules["_scproxy"] = proxies
    for module, names in LINUX_ONLY.items():
        for name in names.split():
            with contextlib.suppress(AttributeError):
                delattr(module, name)
    # It was imported before, and has looked for the flag.
    tempfile._O_TMPFILE_WORKS = False  # type: ignore[attr-defined]
    sys.meta_path.insert(0, Hidden())
    sys.addaudithook(refuse)


def main(arguments: list[str]) -> int:
    """Run a verb, or a program."""
    leave_linux()
    if arguments[0] == "-c":
        exec(builtins.compile(arguments[1], "<program>", "exec"), {"__name__": "__main__"})
        return 0
    from lamina.cli import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
