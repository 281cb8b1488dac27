"""Holds that outlive the process: a kernel mount reads a cache file long after its server was
killed.

A lock ends with the last process that has it open; a superblock does not.  So a device also leaves
a record here, which counts as long as the superblock is there::

    ROOT/holds/STEM.NUMBER     JSON: boot (its id), paths (sysfs folders that exist as long as the
                               superblock does) or, while the mount is being made and its folder is
                               not known, before (those of all superblocks that are older)

Records need not survive a power cut, since no mount does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from lamina.posix.write import write_all
from lamina.store.files import make_private_directory, replacing, store_error
from lamina.store.readiness import current_boot_id

SYSFS: Final = "/sys/class/bdi"
PREFIX: Final = "erofs-"


class HoldRecord:
    """The record of one opened blob; made by the first :meth:`write`."""

    def __init__(self, root: Path, stem: str) -> None:
        self._folder = root / "holds"
        self._path = self._folder / f"{stem}.{os.urandom(8).hex()}"
        self._written = False

    def write(self, before: Iterable[str], paths: Iterable[str]) -> None:
        """Hold the blob while any of *paths* exists; without *paths*, while any superblock does
        that is not among *before*.  Raises StoreError.
        """
        make_private_directory(self._folder)
        document: dict[str, object] = {"boot": current_boot_id().hex()}
        found = sorted(paths)
        document |= {"paths": found} if found else {"before": sorted(before)}
        try:
            with replacing(self._path) as fd:
                write_all(fd, json.dumps(document).encode(), 0)
        except OSError as error:
            raise store_error(f"write {self._path}", error) from error
        self._written = True

    def settle(self) -> None:
        """Remove the record if the superblock is gone; may be called again."""
        if self._written and not _counts(self._path):
            self._path.unlink(missing_ok=True)


def held_blobs(root: Path) -> frozenset[str]:
    """Return the names, without endings, of the cache files that a kernel mount may read; records
    of superblocks that are gone are removed.
    """
    held = set()
    with suppress(FileNotFoundError):
        for name in os.listdir(root / "holds"):
            if name.startswith("."):
                continue
            if _counts(root / "holds" / name):
                held.add(name.rpartition(".")[0])
            else:
                (root / "holds" / name).unlink(missing_ok=True)
    return frozenset(held)


def _counts(path: Path) -> bool:
    try:
        document: Any = json.loads(path.read_bytes())
        if document["boot"] != current_boot_id().hex():
            return False
        if "paths" in document:
            return any(os.path.exists(each) for each in document["paths"])
        older = set(document["before"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        # What cannot be understood may be of a newer version.
        return True
    with suppress(FileNotFoundError):
        names = os.listdir(SYSFS)
        return any(n.startswith(PREFIX) and f"{SYSFS}/{n}" not in older for n in names)
    return True
