"""containerd's snapshots: what each call means, apart from gRPC.

Source: containerd, the comments of ``Snapshotter`` in ``core/snapshots/snapshotter.go`` and what
its metadata store relies on.  ``commit`` is called inside the write transaction of the whole
daemon, ``remove`` under the lock of its snapshotter: neither reads or deletes a tree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from lamina.containerd.calls import Call
from lamina.containerd.claim import is_extraction
from lamina.containerd.filters import parse_filters
from lamina.containerd.id_map import NO_IDS, IdMap, read_ids
from lamina.containerd.layer_folders import LayerFolders
from lamina.containerd.lazy_layers import LazyLayers
from lamina.containerd.records import NewSnapshot, SnapshotRecords
from lamina.containerd.snapshot import (
    REF_LABEL,
    Kind,
    Mount,
    Snapshot,
    SnapshotExistsError,
    SnapshotStateError,
    Usage,
)
from lamina.containerd.trees import Trees
from lamina.errors import UsageError

_USAGE_REST: Final = 20
"""What of changing files was counted is taken for as many times as long as counting took."""


class Snapshotter:
    """All snapshots of a node.  Threads share it."""

    def __init__(
        self,
        records: SnapshotRecords,
        folders: LayerFolders,
        trees: Trees,
        lazy: LazyLayers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._folders = folders
        self._trees = trees
        self._lazy = lazy
        self._clock = clock
        self._counted: dict[int, tuple[float, Usage]] = {}

    def prepare(self, key: str, parent: str, labels: Mapping[str, str], call: Call) -> list[Mount]:
        """Make an active snapshot and return how to mount it.

        Raises SnapshotExistsError also for a layer that needs no unpacking: it is there already,
        and is found by its label.
        """
        is_new_layer = is_extraction(key, labels) and self._records.find(key) is None
        if is_new_layer and self._lazy.take(key, parent, labels, call):
            raise SnapshotExistsError(f"layer {labels[REF_LABEL]} is there already")
        return self._make(NewSnapshot(key, parent, Kind.ACTIVE, labels), call)

    def view(self, key: str, parent: str, labels: Mapping[str, str], call: Call) -> list[Mount]:
        """Make a read-only snapshot and return how to mount it."""
        return self._make(NewSnapshot(key, parent, Kind.VIEW, labels), call)

    def _make(self, new: NewSnapshot, call: Call) -> list[Mount]:
        lowers = self._lowers(new.parent, call)
        below = lowers[0] if lowers else None
        ids = _ids_of(new)
        made = self._records.add(
            new, lambda number: self._folders.make(number, new.kind, below, ids)
        )
        return self._folders.mounts(made.number, made.kind, lowers, ids)

    def mounts(self, key: str, call: Call) -> list[Mount]:
        """Return how to mount an active snapshot or a view."""
        found = self._records.get(key)
        if found.kind is Kind.COMMITTED:
            raise SnapshotStateError(f"snapshot {key} is not active, and no view")
        lowers = self._lowers(found.parent, call)
        ids = _ids_of(found)
        return self._folders.mounts(found.number, found.kind, lowers, ids)

    def _lowers(self, name: str, call: Call) -> list[str]:
        """Return the folders of a committed snapshot and of those below, the uppermost first."""
        found: list[str] = []
        while name:
            snapshot = self._records.get(name)
            if snapshot.lazy is not None and not snapshot.whole:
                self._lazy.make_readable(snapshot, call)
                snapshot = self._records.get(name)
            if snapshot.lazy is not None and not snapshot.whole:
                found.append(self._trees.path(snapshot.lazy.tree))
                break
            found.append(self._folders.layer(snapshot.number))
            name = "" if snapshot.whole else snapshot.parent
        return found

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Make a committed snapshot of an active one."""
        self._counted.pop(self._records.commit(name, key, labels).number, None)

    def remove(self, name: str) -> None:
        """Forget a snapshot, also one that is not known: a garbage collection of containerd would
        end with any other answer, and all that come after it.
        """
        self._records.remove(name)

    def cleanup(self) -> None:
        """Delete what was removed, and take away trees that no snapshot is of."""
        with self._records.frozen():
            kept = self._records.numbers()
            self._folders.set_aside(kept)
        for number in self._counted.keys() - kept:
            del self._counted[number]
        self._records.forget_unused_trees()
        folders = self._trees.numbers()
        for number in set(folders) - self._records.trees().keys():
            self._trees.unmount(number)
        self._folders.remove_set_aside()

    def stat(self, name: str) -> Snapshot:
        """Return a snapshot, from memory."""
        return self._records.get(name)

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Snapshot:
        """Change the labels that field paths name, ``labels`` or ``labels.KEY``; all without any.

        Raises UsageError for a path of something else.
        """
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise UsageError(f"the field {path:.80} of a snapshot cannot be changed")

        def change(old: Mapping[str, str]) -> Mapping[str, str]:
            new = dict(old)
            for path in paths or ("labels",):
                if path == "labels":
                    new = dict(labels)
                else:
                    key = path.removeprefix("labels.")
                    new[key] = labels.get(key, "")
            return new

        return self._records.update(name, change)

    def list(self, filters: Sequence[str]) -> list[Snapshot]:
        """Return the snapshots that fit one of the filters, all without any."""
        fits = parse_filters(filters)
        return [each for each in self._records.all() if fits(each)]

    def usage(self, name: str) -> Usage:
        """Return what a snapshot takes beside its parents; of a committed one it is kept."""
        found = self._records.get(name)
        if found.usage is not None:
            return found.usage
        if found.kind is Kind.VIEW or (found.lazy is not None and not found.whole):
            return Usage()
        now = self._clock()
        until, usage = self._counted.get(found.number, (now, Usage()))
        if now < until:
            return usage
        usage = self._folders.usage(found.number)
        if found.kind is Kind.COMMITTED:
            self._records.note_usage(found, usage)
        else:
            took_s = self._clock() - now
            self._counted[found.number] = now + took_s * (1 + _USAGE_REST), usage
        return usage


def _ids_of(container: NewSnapshot | Snapshot) -> IdMap:
    """Return how a container sees its files; labels of layers come from images, which decide
    nothing of that.
    """
    if is_extraction(container.name, container.labels):
        return NO_IDS
    return read_ids(container.labels, container.parent)
