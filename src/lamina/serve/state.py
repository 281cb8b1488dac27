"""What is mounted, as files: one record a mount, for ``lamina mounts`` and ``lamina umount``.

Records are JSON files ``mounts/KEY.json`` below the state folder, with the server's log beside them
as ``KEY.log``.  The state folder is ``/run/lamina`` for root, else ``$XDG_RUNTIME_DIR/lamina`` or a
private folder below ``/tmp``; what is in it ends with the machine's uptime, as mounts do.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import msgspec

from lamina.errors import FormatError, StoreError
from lamina.linux.process import start_time_ticks

_LARGEST_RECORD: Final = 1 << 16


class MountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One mount: ``device_number`` is ``st_dev`` as ``major:minor``, times are ticks since boot."""

    image: str
    digest: str
    mountpoint: str
    device: str
    device_number: str
    pid: int
    start_ticks: int
    store: str

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
        """Whether the very process that made the mount is still there."""
        return start_time_ticks(self.pid) == self.start_ticks


def state_directory() -> Path:
    """Return the state folder, made if need be.  Raises StoreError if it is not ours alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0:
        path = Path("/run/lamina")
    elif runtime:
        path = Path(runtime) / "lamina"
    else:
        path = Path(f"/tmp/lamina-{os.geteuid()}")  # noqa: S108 - checked below
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise StoreError(f"cannot use the state folder {path}: {error}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise StoreError(
            f"the state folder {path} is not a folder that only you can write to",
            hint="remove it, or set XDG_RUNTIME_DIR",
        )
    return path


@contextlib.contextmanager
def mounting_lock() -> Iterator[None]:
    """Let one process mount at a time, so that each can tell its superblock from the others'."""
    fd = os.open(state_directory() / "mounting.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class MountRecords:
    """The records below a state folder."""

    def __init__(self, state: Path | None = None) -> None:
        self._folder = (state or state_directory()) / "mounts"
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def log_path(self, mountpoint: str) -> Path:
        """Return where the server of a mount writes its log."""
        return self._folder / f"{_key(mountpoint)}.log"

    def write(self, record: MountRecord) -> None:
        """Keep a record, in place of an older one of the same mountpoint."""
        path = self._folder / f"{_key(record.mountpoint)}.json"
        temporary = path.with_suffix(f".{os.getpid()}.new")
        try:
            temporary.write_bytes(record.encode() + b"\n")
            temporary.replace(path)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error}") from error

    def read(self, mountpoint: str) -> MountRecord | None:
        """Return the record of an absolute path, None if there is none that can be read."""
        return _read(self._folder / f"{_key(mountpoint)}.json")

    def all(self) -> list[MountRecord]:
        """Return the records that can be read, sorted by mountpoint."""
        found = (_read(path) for path in self._folder.glob("*.json"))
        return sorted((record for record in found if record), key=lambda each: each.mountpoint)

    def remove(self, record: MountRecord) -> None:
        """Remove a record and its log, unless the mountpoint has another record by now."""
        if self.read(record.mountpoint) == record:
            (self._folder / f"{_key(record.mountpoint)}.json").unlink(missing_ok=True)
            self.log_path(record.mountpoint).unlink(missing_ok=True)


def _key(mountpoint: str) -> str:
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32]


def _read(path: Path) -> MountRecord | None:
    try:
        with path.open("rb") as file:
            return MountRecord.decode(file.read(_LARGEST_RECORD))
    except (OSError, FormatError):
        return None
