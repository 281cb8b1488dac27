"""Folders of the store that are for a while: locked (flock(2)) as long as somebody uses them.

What a killed process left has no lock any more, and ``gc`` removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lamina.store.containers import disk_bytes

PULLED: Final = ".pull-"
"""What the names of those begin with that have layers on their way to a local index."""


@contextmanager
def scratch_folder(root: Path) -> Iterator[str]:
    """Yield a new folder of the store at *root*, which is removed at the end."""
    with tempfile.TemporaryDirectory(dir=root, prefix=PULLED) as folder:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield folder
        finally:
            os.close(fd)


def remove_abandoned(root: Path, before_s: float, *, dry_run: bool = False) -> tuple[int, int]:
    """Remove the folders that nobody uses and that were made before a time, in seconds since 1970;
    returns (number, bytes on disk).  A *dry_run* only counts.  Raises OSError.
    """
    count = freed = 0
    for folder in root.glob(f"{PULLED}*"):
        with suppress(FileNotFoundError, NotADirectoryError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                # A young one may be about to be locked.
                if os.fstat(fd).st_mtime >= before_s or not _is_free(fd):
                    continue
                freed += disk_bytes(folder)
                count += 1
                if not dry_run:
                    shutil.rmtree(folder)
            finally:
                os.close(fd)
    return count, freed


def _is_free(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
