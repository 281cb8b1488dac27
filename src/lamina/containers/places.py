"""Where containers are found: those that somebody looks after by their bundles, those that have
ended by what the store keeps of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lamina.containers.claim import ClaimSeen
from lamina.containers.record import ContainerRecord, read_record
from lamina.errors import NotFoundError
from lamina.serve.container_folders import NAME
from lamina.serve.runtime_folder import state_directory


class Container(NamedTuple):
    """A container: ``folder`` has its record, log and changes; ``bundle`` is there while it is
    live.
    """

    record: ContainerRecord
    folder: str
    bundle: str
    is_live: bool
    is_lost: bool = False
    """Whether it is live and nobody looks after it any more."""

    @property
    def name(self) -> str:
        """Its name, which is its id."""
        return self.record.name


def bundles() -> str:
    """Return the folder of the bundles of live containers.  Raises StoreError."""
    return os.path.join(state_directory(), "containers")


def list_live() -> Iterator[Container]:
    """Yield the containers that run or are lost, of every store, by name."""
    folder = bundles()
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if (found := _live(name)) is not None:
            yield found


def list_ended(store_root: Path) -> Iterator[Container]:
    """Yield the containers of a store that have ended and are kept, by name."""
    live = {container.folder for container in list_live()}
    folder = store_root / "containers"
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            record = read_record(path)
            if record is not None and path not in live:
                yield Container(record, path, record.bundle, is_live=False)


def find_container(name: str, store_root: Path) -> Container:
    """Return the container of that name, live or kept.  Raises NotFoundError."""
    if NAME.fullmatch(name):
        if (live := _live(name)) is not None:
            return live
        folder = os.path.join(store_root, "containers", name)
        if (record := read_record(folder)) is not None:
            return Container(record, folder, record.bundle, is_live=False)
    raise NotFoundError(f"there is no container {name!r}", hint="`lamina ps -a` lists them")


def _live(name: str) -> Container | None:
    bundle = os.path.join(bundles(), name)
    claim = ClaimSeen.of(bundle)
    if claim is None:
        return None
    with claim:
        folder = claim.folder
        record = read_record(folder) if folder else None
        if record is None:
            return None
        return Container(record, folder, bundle, is_live=True, is_lost=not claim.is_held())


def is_container(name: str, store_root: Path) -> bool:
    """Tell whether a container of that name is live, or kept with a record."""
    try:
        find_container(name, store_root)
    except NotFoundError:
        return False
    return True
