"""The folders of unpacked layers and of what containers wrote, laid out as containerd's overlayfs.

``s/NUMBER/fs`` is the layer or the changes, ``s/NUMBER/work`` is for overlayfs (kernel:
filesystems/overlayfs.rst).  Paths are short and below one folder, since all that an image of a
hundred layers is mounted from has to fit into the kernel's page of options, once relative to it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from lamina.containerd.id_map import NO_IDS, IdMap
from lamina.containerd.snapshot import Kind, Mount, Usage
from lamina.errors import StoreError, os_hint

_REMOVED: Final = ".removed"
_NEW: Final = ".new"
"""Of a folder that is being filled."""
_BLOCK_BYTES: Final = 512
"""Of ``st_blocks``, whatever the file system's own are (stat(2))."""


class LayerFolders:
    """The folders below ``root``, which exists."""

    def __init__(self, root: Path) -> None:
        self._root = root / "s"
        with _storing(self._root):
            self._root.mkdir(mode=0o700, exist_ok=True)
        index_off = os.path.exists("/sys/module/overlay/parameters/index")
        # Layers are shared by overlays, which an index would take for a mistake.
        self._options = ("index=off",) if index_off else ()

    def layer(self, number: int) -> str:
        """Return the folder of the files of a snapshot."""
        return str(self._root / str(number) / "fs")

    def fill(self, number: int, unpack: Callable[[str, str], None]) -> None:
        """Make the folder of the files of a snapshot by ``unpack``, which is given it and a folder
        for what it needs meanwhile; it is there whole or not at all.

        Raises StoreError, and what ``unpack`` raises.
        """
        folder, fresh = self._root / str(number), self._root / f"{number}{_NEW}"
        with _storing(folder):
            for each in (folder, fresh):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(each)
            fresh.mkdir(mode=0o700)
        try:
            unpack(str(fresh / "fs"), str(fresh))
            with _storing(folder):
                fresh.rename(folder)
        except BaseException:
            # It may be large, and nobody asks again.
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def make(self, number: int, kind: Kind, below: str | None, ids: IdMap = NO_IDS) -> None:
        """Make the folder of a new snapshot, owned as the root of the tree ``below`` it is, seen
        through ``ids``.

        Raises StoreError.
        """
        folder = self._root / str(number)
        with _storing(folder):
            with contextlib.suppress(FileNotFoundError):
                # Its record was on the way when the machine stopped.
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
            (folder / "fs").mkdir()
            os.chmod(folder / "fs", 0o755)  # noqa: S103 - the root of a container, in a closed folder
            if kind is Kind.ACTIVE:
                (folder / "work").mkdir(mode=0o711)
            if below is not None:
                status = os.lstat(below)
                os.chown(folder / "fs", *ids.on_host(status.st_uid, status.st_gid))

    def mounts(
        self, number: int, kind: Kind, lowers: list[str], ids: IdMap = NO_IDS
    ) -> list[Mount]:
        """Return how to mount a snapshot on folders below it, the uppermost first, which are seen
        through ``ids``: containerd 2 has the kernel map them, as for its own overlayfs.
        """
        if kind is Kind.ACTIVE:
            if not lowers:
                return [Mount("bind", self.layer(number), ("rw", "rbind"))]
            work = str(self._root / str(number) / "work")
            upper = (f"workdir={work}", f"upperdir={self.layer(number)}")
            lower = f"lowerdir={':'.join(lowers)}"
            return [Mount("overlay", "overlay", (*self._options, *ids.options, *upper, lower))]
        lowers = lowers or [self.layer(number)]
        if len(lowers) == 1:
            return [Mount("bind", lowers[0], ("ro", "rbind"))]
        return [Mount("overlay", "overlay", (*self._options, f"lowerdir={':'.join(lowers)}"))]

    def usage(self, number: int) -> Usage:
        """Return what the files of a snapshot take on the disk, as du(1) counts it."""
        seen: set[tuple[int, int]] = set()
        size_bytes = 0
        for status in _walk(self.layer(number)):
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                size_bytes += status.st_blocks * _BLOCK_BYTES
        return Usage(size_bytes, len(seen))

    def set_aside(self, kept: set[int]) -> None:
        """Rename the folders of snapshots that are not among the kept, so that their numbers are
        free.  Raises StoreError.
        """
        with _storing(self._root):
            for name in os.listdir(self._root):
                number = name.removesuffix(_NEW)
                if number.isdigit() and int(number) not in kept:
                    os.rename(self._root / name, self._root / (name + _REMOVED))

    def remove_set_aside(self) -> None:
        """Remove what was set aside.  Raises StoreError."""
        for name in os.listdir(self._root):
            if name.endswith(_REMOVED):
                with _storing(self._root / name), contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(self._root / name)


def _walk(folder: str) -> Iterator[os.stat_result]:
    """Yield the status of a folder and of all below it; what vanishes meanwhile is passed over."""
    with contextlib.suppress(FileNotFoundError):
        yield os.lstat(folder)
    pending = [folder]
    while pending:
        with contextlib.suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    yield entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the folder {path} of a snapshot cannot be used: {error.strerror}",
            hint=os_hint(error),
        ) from error
