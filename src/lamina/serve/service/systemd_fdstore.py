"""The service manager's store of descriptors: with it a mount survives the death of everything.

sd_notify(3) and sd_listen_fds(3), without their library: each descriptor of a mount is stored under
the name ``NUMBER/NAME``, and what belongs to it as JSON in anonymous memory, ``NUMBER/spec``, so
that credentials are on no disk.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

import msgspec

from lamina.errors import Error, FormatError
from lamina.serve.service import old_wire
from lamina.serve.service.handover import MountDescription, MountHandover
from lamina.serve.service.messages import PROTOCOL

LOG: Final = logging.getLogger("lamina")

FIRST_FD: Final = 3
SPEC: Final = "spec"
MAX_SPEC_BYTES: Final = 1 << 20


class SavedMount(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a mount beside its descriptors; a later version may read it."""

    version: int = PROTOCOL
    mount: MountDescription


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


def store_mount(mount: MountHandover, *, known: bool) -> None:
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
        saved = SavedMount(mount=mount.describe())
        with open(memory, "wb", closefd=False) as file:
            file.write(json.dumps(msgspec.to_builtins(saved)).encode())
        notify(f"FDSTORE=1\nFDNAME={mount.number}/{SPEC}", memory)
    finally:
        os.close(memory)


def remove_mount(mount: MountHandover) -> None:
    """Take a mount out of the store."""
    for name in (*mount.fds, SPEC):
        notify(f"FDSTOREREMOVE=1\nFDNAME={mount.number}/{name}")


def stored_mounts(environment: Mapping[str, str], pid: int) -> list[MountHandover]:
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


def describe_stored(fields: object) -> MountDescription:
    """Return the mount that this or an older version stored.

    Raises FormatError for what a newer one did, and msgspec.ValidationError.
    """
    if isinstance(fields, dict) and "version" not in fields:
        return old_wire.describe_mount(fields)
    saved = msgspec.convert(fields, SavedMount)
    if saved.version > PROTOCOL:
        raise FormatError("it was stored by a newer lamina")
    return saved.mount


def _restore(fds: dict[str, int]) -> MountHandover | None:
    try:
        memory = fds.pop(SPEC)
        fields = json.loads(os.pread(memory, MAX_SPEC_BYTES, 0))
        os.close(memory)
        described = describe_stored(fields)
        mount = MountHandover.of(described, [fds[name] for name in described.names])
    except (KeyError, ValueError, RecursionError, OSError, Error, msgspec.ValidationError) as error:
        LOG.error("a mount that was stored cannot be served: %s", error)  # noqa: TRY400 - clear
        for fd in fds.values():
            os.close(fd)
        return None
    return mount
