"""What is mounted, as files: one record a mount, for ``lamina mounts`` and ``lamina umount``.

Records are JSON files ``mounts/KEY.json`` below the state folder.  That is ``$LAMINA_RUNTIME``,
else ``/run/lamina`` for root and ``$XDG_RUNTIME_DIR/lamina`` or a private folder below ``/tmp``
for others; what is in it ends with the machine's uptime, as mounts do.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import msgspec

from lamina.errors import FormatError, KernelError, StoreError, os_hint
from lamina.linux.fuse_device import abort_connection
from lamina.linux.process import start_time_ticks

RUNTIME_VARIABLE: Final = "LAMINA_RUNTIME"

MOUNTING_DEADLINE_S: Final = 20.0
"""How long a mount may take others' turn: it asks no registry, so it takes milliseconds."""

_LARGEST_RECORD: Final = 1 << 16
_LOCK_POLL_S: Final = 0.02
_AFTER_ABORT_S: Final = 5.0


class MountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One mount: ``device_number`` is ``st_dev`` as ``major:minor``, times are ticks since boot.

    With ``service`` the mount service answers for it, and ``pid`` was its supervisor when it was
    mounted; else ``pid`` is the server.  A ``resident`` mount needs no process at all.
    """

    image: str
    digest: str
    mountpoint: str
    device: str
    device_number: str
    pid: int
    start_ticks: int
    store: str
    service: bool = False
    resident: bool = False

    def encode(self) -> bytes:
        """Return the record as JSON; names that are no UTF-8 keep their surrogates, escaped."""
        return json.dumps(msgspec.structs.asdict(self), indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the record that :meth:`encode` wrote.  Raises FormatError."""
        try:
            return msgspec.convert(json.loads(data), cls)
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise FormatError(f"this is no record of a mount: {error}") from error

    @property
    def served(self) -> bool:
        """Whether the very process that serves the mount by itself is still there."""
        return start_time_ticks(self.pid) == self.start_ticks


def state_directory() -> Path:
    """Return the state folder, made if need be.  Raises StoreError if it is not ours alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if chosen := os.environ.get(RUNTIME_VARIABLE):
        path = Path(chosen)
    elif os.geteuid() == 0:
        path = Path("/run/lamina")
    elif runtime:
        path = Path(runtime) / "lamina"
    else:
        path = Path(f"/tmp/lamina-{os.geteuid()}")  # noqa: S108 - checked below
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise StoreError(
            f"cannot use the state folder {path}: {error.strerror}", hint=os_hint(error)
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise StoreError(
            f"the state folder {path} is not a folder that only you can write to",
            hint=f"remove it, or set {RUNTIME_VARIABLE}",
        )
    return path


class MountingLock:
    """Held by the process that mounts; see :func:`mounting_lock`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def note_connection(self, device_number: int) -> None:
        """Tell others which FUSE connection (``st_dev``) to abort if this mount never ends."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d %d" % (os.getpid(), device_number), 0)


@contextlib.contextmanager
def mounting_lock(deadline_s: float = MOUNTING_DEADLINE_S) -> Iterator[MountingLock]:
    """Let one process mount at a time, so that each can tell its superblock from the others'.

    Who waits longer than ``deadline_s`` aborts the FUSE connection that the other process's mount
    waits for, and raises KernelError if that does not help.
    """
    path = state_directory() / "mounting.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(fd, deadline_s):
            owner = _abort_owner(fd)
            if not _locked(fd, _AFTER_ABORT_S):
                raise KernelError(
                    f"another mount{owner} has not come to an end for {deadline_s:.0f} s",
                    hint=f"end that process; the lock is {path}",
                )
        os.ftruncate(fd, 0)
        yield MountingLock(fd)
    finally:
        os.close(fd)


def _locked(fd: int, deadline_s: float) -> bool:
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_POLL_S)
        else:
            return True


def _abort_owner(fd: int) -> str:
    """End the FUSE connection of who has the lock, and return who it is, in words."""
    words = os.pread(fd, 64, 0).split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return ""
    pid, device_number = map(int, words)
    if os.geteuid() == 0 and start_time_ticks(pid) is not None:
        abort_connection(device_number)
    return f" (process {pid})"


@contextlib.contextmanager
def claimed_mountpoint(mountpoint: str) -> Iterator[None]:
    """Let one process at a time mount on a folder, from the look whether it is free until its
    record is written; others wait.  The folder is an absolute path.

    The lock of each folder is one byte of a file, so that no files are left behind.
    """
    fd = os.open(
        state_directory() / "mountpoints.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, int(_key(mountpoint)[:15], 16))
        yield
    finally:
        os.close(fd)


class MountRecords:
    """The records below a state folder."""

    def __init__(self, state: Path | None = None) -> None:
        self._folder = (state or state_directory()) / "mounts"
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def write(self, record: MountRecord) -> None:
        """Keep a record, in place of an older one of the same mountpoint."""
        path = self._folder / f"{_key(record.mountpoint)}.json"
        temporary = path.with_suffix(f".{os.getpid()}.new")
        try:
            temporary.write_bytes(record.encode() + b"\n")
            temporary.replace(path)
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {error.strerror}", hint=os_hint(error)
            ) from error

    def read(self, mountpoint: str) -> MountRecord | None:
        """Return the record of an absolute path, None if there is none that can be read."""
        return _read(self._folder / f"{_key(mountpoint)}.json")

    def all(self) -> list[MountRecord]:
        """Return the records that can be read, sorted by mountpoint."""
        found = (_read(path) for path in self._folder.glob("*.json"))
        return sorted((record for record in found if record), key=lambda each: each.mountpoint)

    def remove(self, record: MountRecord) -> None:
        """Remove a record, unless the mountpoint has another record by now."""
        if self.read(record.mountpoint) == record:
            (self._folder / f"{_key(record.mountpoint)}.json").unlink(missing_ok=True)


def _key(mountpoint: str) -> str:
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32]


def _read(path: Path) -> MountRecord | None:
    try:
        with path.open("rb") as file:
            return MountRecord.decode(file.read(_LARGEST_RECORD))
    except (OSError, FormatError):
        return None
