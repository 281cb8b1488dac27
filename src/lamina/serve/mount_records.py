"""What is mounted, as files: one record a mount, for ``lamina mounts`` and ``lamina umount``.

Records are JSON files ``mounts/KEY.json`` below the runtime folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import msgspec

from lamina.errors import FormatError, StoreError, os_hint
from lamina.linux.process import start_time_ticks
from lamina.posix.write import write_all
from lamina.serve.runtime_folder import state_directory
from lamina.store.files import replacing

_LARGEST_RECORD: Final = 1 << 16


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
    mount_id: int = 0
    """Of :func:`lamina.linux.mount_table.unique_mount_id`; 0 if it is not known."""
    sharing: str = ""
    """Of :func:`lamina.serve.sharing.sharing_key`; empty for a mount that is not shared."""
    service: bool = False
    resident: bool = False
    version: int = 1
    """Of the fields: grows when an older Lamina would misread them."""

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
        """Whether a process serves the mount by itself, and that very one is still there."""
        if self.service or self.resident:
            return False
        return start_time_ticks(self.pid) == self.start_ticks

    def as_resident(self) -> Self:
        """Return the record of the same mount when it needs no process any more."""
        return msgspec.structs.replace(self, resident=True, service=False)


class MountRecords:
    """The records below a runtime folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = (folder or state_directory()) / "mounts"
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def write(self, record: MountRecord) -> None:
        """Keep a record, in place of an older one of the same mountpoint.  Raises StoreError."""
        with self._changing(record):
            self._write(record)

    def replace(self, old: MountRecord, new: MountRecord) -> None:
        """Keep *new* in place of *old*, of the same mountpoint, unless that has another record by
        now.  Raises StoreError.
        """
        with self._changing(new):
            if self.read(old.mountpoint) == old:
                self._write(new)

    def remove(self, record: MountRecord) -> None:
        """Remove a record, unless the mountpoint has another record by now."""
        # One that is left is taken for what it is by who reads it: of a mount that is gone.
        with contextlib.suppress(StoreError), self._changing(record):
            if self.read(record.mountpoint) == record:
                self._path(record.mountpoint).unlink(missing_ok=True)

    def read(self, mountpoint: str) -> MountRecord | None:
        """Return the record of an absolute path, None if there is none that can be read."""
        return _read(self._path(mountpoint))

    def all(self) -> list[MountRecord]:
        """Return the records that can be read, sorted by mountpoint."""
        found = (_read(path) for path in self._folder.glob("*.json"))
        return sorted((record for record in found if record), key=lambda each: each.mountpoint)

    def _path(self, mountpoint: str) -> Path:
        return self._folder / f"{mountpoint_key(mountpoint)}.json"

    def _write(self, record: MountRecord) -> None:
        with replacing(self._path(record.mountpoint)) as fd:
            write_all(fd, record.encode() + b"\n", 0)

    @contextlib.contextmanager
    def _changing(self, record: MountRecord) -> Iterator[None]:
        """Let one process at a time look at a record and change it: it is of another mount as soon
        as somebody unmounts and mounts anew.
        """
        try:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)
        except OSError as error:
            path = self._path(record.mountpoint)
            raise StoreError(
                f"cannot write {path}: {error.strerror}", hint=os_hint(error)
            ) from error


def mountpoint_key(mountpoint: str) -> str:
    """Return what names the files of a mountpoint."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32]


def _read(path: Path) -> MountRecord | None:
    try:
        with path.open("rb") as file:
            return MountRecord.decode(file.read(_LARGEST_RECORD))
    except (OSError, FormatError):
        return None
