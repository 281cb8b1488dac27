"""User namespaces of containers: how the files of an image are owned inside (``remap-ids``).

A client that starts a container in a user namespace says the mapping in two labels, as
``INSIDE:HOST:COUNT`` (containerd, ``snapshots.LabelSnapshotUIDMapping``).  Its mounts then carry
the options ``uidmap=`` and ``gidmap=``, for which containerd 2 makes id-mapped mounts of the layers
below the overlay (mount_setattr(2), Linux 5.19), so that nothing of the image is read or changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from lamina.errors import UsageError

UID_LABEL: Final = "containerd.io/snapshot/uidmapping"
GID_LABEL: Final = "containerd.io/snapshot/gidmapping"

_REMAPPED: Final = "-remap"
"""How containerd calls what it has changed the owners of itself, file by file, for a snapshotter
that does not announce ``remap-ids``; it sends the labels all the same.
"""

_RANGE: Final = "[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}"
_RANGES: Final = re.compile(f"{_RANGE}(,{_RANGE}){{0,339}}")
"""The kernel takes 340 ranges (user_namespaces(7))."""


class IdMap(NamedTuple):
    """The mapping of users and that of groups, as they are written; empty for none."""

    users: str = ""
    groups: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """The options of a mount that is seen through it."""
        return (f"uidmap={self.users}", f"gidmap={self.groups}") if self.users else ()

    def on_host(self, uid: int, gid: int) -> tuple[int, int]:
        """Return who an owner inside is outside.  Raises UsageError for one that is nobody."""
        if not self.users:
            return uid, gid
        return _on_host(self.users, uid), _on_host(self.groups, gid)


NO_IDS: Final = IdMap()


def read_ids(labels: Mapping[str, str], parent: str) -> IdMap:
    """Return the mapping that the labels of a container's snapshot say, which is on ``parent``.

    Raises UsageError for a malformed one, or one of users alone or groups alone.
    """
    found = IdMap(labels.get(UID_LABEL, ""), labels.get(GID_LABEL, ""))
    if found == NO_IDS or parent.endswith(_REMAPPED):
        return NO_IDS
    for text in found:
        if not _RANGES.fullmatch(text):
            raise UsageError(f"{text[:80]!r} is no mapping of users or groups")
    return found


def _on_host(ranges: str, number: int) -> int:
    for each in ranges.split(","):
        inside, host, count = map(int, each.split(":"))
        if inside <= number < inside + count:
            return host + number - inside
    raise UsageError(f"the mapping {ranges[:80]} has no {number}, which owns the root of the image")
