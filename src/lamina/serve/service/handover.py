"""What the service keeps of a mount, in all three processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from lamina.errors import FormatError
from lamina.serve.mount_records import MountRecord
from lamina.serve.service.spec import MountSpec


class MountDescription(msgspec.Struct, frozen=True, kw_only=True):
    """All of a :class:`MountHandover` but its descriptors, whose ``names`` are in their order."""

    number: str
    spec: MountSpec
    device: str
    names: tuple[str, ...]
    record: MountRecord | None = None
    watch: tuple[str, ...] = ()
    connection: int = 0
    before: tuple[str, ...] = ()
    shares: str = ""


@dataclass(slots=True)
class MountHandover:
    """A mount from the moment that somebody is to answer for it.

    ``fds`` by name: ``device`` of a FUSE connection; or ``group`` and ``slots`` of fanotify, and
    ``blob.N`` for every blob that is watched.  ``record`` is what ``lamina mounts`` tells, None
    while the mount is being made; ``watch`` are the files in sysfs that live as long as its
    superblock, and ``before`` those that were there when its client began to mount it;
    ``connection`` is ``st_dev`` of the FUSE mount, 0 if there is none.  One that ``shares`` the
    superblock of another mount, of which it has the number, has no descriptors, and ends before
    that does.
    """

    number: str
    spec: MountSpec
    device: str
    fds: dict[str, int] = field(default_factory=dict)
    record: MountRecord | None = None
    watch: tuple[str, ...] = ()
    connection: int = 0
    before: tuple[str, ...] = ()
    shares: str = ""

    @property
    def mountpoint(self) -> str:
        """Where it is."""
        return self.spec.mountpoint if self.record is None else self.record.mountpoint

    def describe(self) -> MountDescription:
        """Return all but the descriptors."""
        return MountDescription(
            number=self.number,
            spec=self.spec,
            device=self.device,
            names=tuple(self.fds),
            record=self.record,
            watch=self.watch,
            connection=self.connection,
            before=self.before,
            shares=self.shares,
        )

    @classmethod
    def of(cls, description: MountDescription, fds: Sequence[int]) -> MountHandover:
        """Return the mount with its descriptors.  Raises FormatError if they are not as many as
        their names.
        """
        if len(fds) != len(description.names):
            raise FormatError(
                f"a mount has {len(description.names)} descriptors, and {len(fds)} came"
            )
        return cls(
            description.number,
            description.spec,
            description.device,
            dict(zip(description.names, fds, strict=True)),
            description.record,
            description.watch,
            description.connection,
            description.before,
            description.shares,
        )

    def close(self) -> None:
        """Close the descriptors; may be called again."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
