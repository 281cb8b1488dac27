"""The service manager's store of descriptors: with it a mount survives the death of everything.

sd_notify(3) and sd_listen_fds(3), without their library: each descriptor of a mount is stored under
the name ``NUMBER/NAME``, and what belongs to it as JSON in anonymous memory, ``NUMBER/spec``, so
that credentials are on no disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from typing import Final

from lamina.serve.service.kept import KeptMount

FIRST_FD: Final = 3
SPEC: Final = "spec"
MAX_SPEC_BYTES: Final = 1 << 20


def notify(text: str, fd: int | None = None) -> None:
    """Tell the service manager something; nothing happens where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end,
    ):
        end.connect(address)
        socket.send_fds(end, [text.encode()], [] if fd is None else [fd])


def store_mount(mount: KeptMount, *, known: bool) -> None:
    """Store a mount, or what has changed of one that is ``known``."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return
    if known:
        notify(f"FDSTOREREMOVE=1\nFDNAME={mount.number}/{SPEC}")
    else:
        for name, fd in mount.fds.items():
            notify(f"FDSTORE=1\nFDNAME={mount.number}/{name}", fd)
    memory = os.memfd_create("lamina-mount", os.MFD_CLOEXEC)
    try:
        os.write(memory, json.dumps(mount.encode()).encode())
        notify(f"FDSTORE=1\nFDNAME={mount.number}/{SPEC}", memory)
    finally:
        os.close(memory)


def remove_mount(mount: KeptMount) -> None:
    """Take a mount out of the store."""
    for name in (*mount.fds, SPEC):
        notify(f"FDSTOREREMOVE=1\nFDNAME={mount.number}/{name}")


def stored_mounts(environment: Mapping[str, str], pid: int) -> list[KeptMount]:
    """Return the mounts that the service manager gave back to this process.

    What does not belong together is closed.
    """
    if environment.get("LISTEN_PID") != str(pid):
        return []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, dict[str, int]] = {}
    count = min(int(environment.get("LISTEN_FDS", "0")), len(names))
    for fd, name in enumerate(names[:count], FIRST_FD):
        os.set_inheritable(fd, False)
        number, _, part = name.partition("/")
        found.setdefault(number, {})[part] = fd
    mounts = (_restore(fds) for fds in found.values())
    return [mount for mount in mounts if mount is not None]


def _restore(fds: dict[str, int]) -> KeptMount | None:
    try:
        memory = fds.pop(SPEC)
        fields = json.loads(os.pread(memory, MAX_SPEC_BYTES, 0))
        os.close(memory)
        mount = KeptMount.decode(fields, [fds[name] for name in fields["names"]])
    except (KeyError, ValueError, OSError):
        for fd in fds.values():
            os.close(fd)
        return None
    return mount
