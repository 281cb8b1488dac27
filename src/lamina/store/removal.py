"""Removing files of the store that nothing uses."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from lamina.store.files import store_error
from lamina.store.locks import Lock, lock_exclusive

YOUNG_S: Final = 600
"""What was written so lately may belong to something that is being made."""
UNFINISHED: Final = ("metadata/.*", "index/.*", "holds/.*", "records/*/.*", ".spool.*")
"""Files that whoever was killed left before they had their names; *blobs* has some as well."""


def remove_unused(
    folder: Path, kept: Collection[str], *, dry_run: bool = False
) -> tuple[tuple[int, int], frozenset[str]]:
    """Remove the cache files below *folder* that nobody has open and that are not *kept*; a
    *dry_run* only counts.

    The caller has the store's lock, so that nobody opens one meanwhile.  Returns (number of blobs,
    bytes on disk) and the names, without endings, of the blobs that stay.  Raises StoreError.
    """
    count = freed = 0
    staying = set()
    names = os.listdir(folder)
    for name in names:
        path = folder / name
        if name.startswith("."):
            freed += remove_old([path], dry_run=dry_run)[1]
        elif name.endswith(".data"):
            stem = name.removesuffix(".data")
            if stem in kept or _is_open(path.with_suffix(".ready")):
                staying.add(stem)
            else:
                count += 1
                freed += _remove(path, dry_run) + _remove(path.with_suffix(".ready"), dry_run)
    return (count, freed), frozenset(staying)


def remove_old(paths: Iterable[Path], *, dry_run: bool = False) -> tuple[int, int]:
    """Remove files that are not young; returns (number, bytes on disk).  Raises StoreError."""
    limit = time.time() - YOUNG_S
    return remove_files((path for path in paths if _written_s(path) < limit), dry_run=dry_run)


def remove_files(paths: Iterable[Path], *, dry_run: bool = False) -> tuple[int, int]:
    """Remove files; returns (number, bytes on disk) of those that were there.  Raises StoreError.
    A *dry_run* only counts.
    """
    count = freed = 0
    for path in paths:
        if path.exists():
            freed += _remove(path, dry_run)
            count += 1
    return count, freed


def _written_s(path: Path) -> float:
    """Return when a file was written; later than now if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _is_open(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise store_error(f"open {path}", error) from error
    try:
        return not lock_exclusive(fd, Lock.OPEN, wait=False)
    finally:
        os.close(fd)


def _remove(path: Path, dry_run: bool = False) -> int:
    try:
        size = path.stat().st_blocks * 512
        if not dry_run:
            path.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise store_error(f"remove {path}", error) from error
    return size
