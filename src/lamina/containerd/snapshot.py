"""What is known of a snapshot: plain values, in containerd's words.

Source: containerd, ``docs/snapshotters`` and the comments of ``core/snapshots/snapshotter.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from lamina.errors import NotFoundError, UsageError

REF_LABEL: Final = "containerd.io/snapshot.ref"
"""The chain identifier that an unpacked layer is to have: its name in containerd's metadata."""
MAX_LABEL_BYTES: Final = 4096
"""Of a label with its key (containerd, ``labels.Validate``)."""


class Kind(StrEnum):
    """Of a snapshot; the values are the words of containerd's filters."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


class Mount(NamedTuple):
    """One mount(2) that the client makes: containerd passes the options on unchanged."""

    type: str
    source: str
    options: tuple[str, ...]


class Usage(NamedTuple):
    """What a snapshot takes on the disk beside its parents."""

    size_bytes: int = 0
    inodes: int = 0


class TreeLayer(NamedTuple):
    """The place of a lazy snapshot: the layers up to ``layer``, from 0, of the image that is
    mounted as tree number ``tree``.
    """

    tree: int
    layer: int


class Snapshot(NamedTuple):
    """A snapshot; ``parent`` is a name, or empty.  Times are nanoseconds since 1970.

    ``number`` never comes again, and names its folder.  ``lazy`` is of one that has no layer folder
    but a place in an image.  ``whole`` is of one whose folder has the files of its parents too.
    ``usage`` of a committed one is None until somebody asked.
    """

    number: int
    name: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]
    created_ns: int
    updated_ns: int
    usage: Usage | None = None
    lazy: TreeLayer | None = None
    whole: bool = False


class SnapshotMissingError(NotFoundError):
    """There is no snapshot of that name."""


class SnapshotExistsError(UsageError):
    """A snapshot of that name is there already."""


class SnapshotStateError(UsageError):
    """The snapshot is of a kind, or has children, with which that cannot be done."""


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise UsageError for a label that is longer than containerd lets one be."""
    for key, value in labels.items():
        if len(key.encode()) + len(value.encode()) > MAX_LABEL_BYTES:
            raise UsageError(
                f"the label {key:.40} has more than {MAX_LABEL_BYTES} bytes with its key"
            )
