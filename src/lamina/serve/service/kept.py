"""What the service keeps of a mount, in all three processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lamina.serve.service.spec import MountSpec


@dataclass(slots=True)
class KeptMount:
    """A mount from the moment that somebody is to answer for it.

    ``fds`` by name: ``device`` of a FUSE connection; or ``group`` and ``slots`` of fanotify, and
    ``blob.N`` for every blob that is watched.  ``record`` is what ``lamina mounts`` tells, None
    while the mount is being made; ``watch`` are the files in sysfs that live as long as its
    superblock, and ``before`` those that were there when its client began to mount it;
    ``connection`` is ``st_dev`` of the FUSE mount, 0 if there is none.
    """

    number: str
    spec: MountSpec
    device: str
    fds: dict[str, int] = field(default_factory=dict)
    record: dict[str, Any] | None = None
    watch: list[str] = field(default_factory=list)
    connection: int = 0
    before: list[str] = field(default_factory=list)

    def encode(self) -> dict[str, Any]:
        """Return all but the descriptors as an object of JSON; their names are in its order."""
        return {
            "number": self.number,
            "spec": self.spec.to_json(),
            "device": self.device,
            "names": list(self.fds),
            "record": self.record,
            "watch": self.watch,
            "connection": self.connection,
            "before": self.before,
        }

    @classmethod
    def decode(cls, fields: dict[str, Any], fds: Sequence[int]) -> KeptMount:
        """Return what :meth:`encode` made of one, with its descriptors."""
        return cls(
            fields["number"],
            MountSpec.from_json(fields["spec"]),
            fields["device"],
            dict(zip(fields["names"], fds, strict=True)),
            fields["record"],
            fields["watch"],
            fields["connection"],
            fields.get("before", []),
        )

    def close(self) -> None:
        """Close the descriptors; may be called again."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
