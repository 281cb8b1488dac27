"""The tree of a container before it runs: where its paths lead, and what is made there.

An image decides what stands at every path, so nothing here hands a path with links in it to the
kernel: links are read and followed one by one, inside the tree, and what comes out has none.  The
tree is the one that is mounted, so what is attached to it is walked into.  ``/proc``, ``/sys`` and
``/dev`` are left out: the runtime mounts the kernel's own there, and what the image has there is
never seen.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

from lamina.errors import FormatError
from lamina.linux.openat2 import open_below
from lamina.linux.syscalls import SyscallError, from_os_error

KERNEL_FOLDERS: Final = ("proc", "sys", "dev")
MAX_LINKS: Final = 40
"""What the kernel follows in one path (path_resolution(7))."""
MAX_PATH_BYTES: Final = 4096

_MISSING: Final = (errno.ENOENT, errno.ENOTDIR)
_OF_THE_IMAGE: Final = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
"""What the kernel says of a tree that is in the way; all else is the machine's."""
_SHARED_MEMORY: Final = ("dev", "shm")
_LINKS_IN_DEV: Final = ("fd", "stdin", "stdout", "stderr", "core")
_KINDS: Final = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Place(NamedTuple):
    """Where a path of the container leads: ``parts`` are names from its root on, none of them a
    link; ``by_link`` if it led there by one.
    """

    wanted: str
    parts: tuple[str, ...]
    by_link: bool = False

    @property
    def path(self) -> str:
        """The path without links."""
        return "/" + "/".join(self.parts)

    @property
    def in_kernel_folder(self) -> bool:
        """Whether it is at or below ``/proc``, ``/sys`` or ``/dev``."""
        return bool(self.parts) and self.parts[0] in KERNEL_FOLDERS

    def refused(self, why: str) -> FormatError:
        """Return an error about it."""
        name = self.wanted if not self.by_link else f"{self.wanted} (which leads to {self.path})"
        return FormatError(f"{name} in the container cannot be used: {why}")


class ContainerTree:
    """The root file system of a container that does not run yet, mounted at ``rootfs``."""

    def __init__(self, rootfs: str) -> None:
        self._root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._volumes: list[tuple[str, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._root)

    def note_volume(self, place: Place) -> None:
        """From now on something of the host is mounted there, which is not the image's to fill."""
        self._volumes.append(place.parts)

    def in_volume(self, parts: tuple[str, ...]) -> bool:
        """Tell whether that is at or below something of the host."""
        return any(parts[: len(volume)] == volume for volume in self._volumes)

    def resolve(self, wanted: str) -> Place:
        """Follow the links of an absolute path inside the tree, as the container would.

        What is not there yet is taken as it is written.  Raises FormatError for a path that is
        endless, or leads into a part of ``/proc`` or ``/dev`` that leads on, to open files of some
        process for instance.
        """
        with contextlib.closing(_Walk(self._root, wanted)) as walk:
            while walk.pending:
                walk.step()
        place = Place(wanted, tuple(walk.done), walk.links > 0)
        _check_kernel_folder(place)
        return place

    def folder(self, place: Place) -> tuple[int, bool]:
        """Open the folder at a place (``O_PATH``), made if it is not there; also say if it was.

        Raises FormatError where something else is in the way, KernelError where it cannot be made.
        """
        return self._descend(place, place.parts)

    def file(self, place: Place) -> int:
        """Open the regular file at a place (``O_PATH``), made, and empty, if it is not there.

        Raises what :meth:`folder` does.
        """
        *above, name = place.parts
        parent, _ = self._descend(place, tuple(above))
        try:
            fd = self._opened(place, parent, name)
            if fd is None:
                self._require_ours(place, place.parts)
                with _made_as(0o022, place):
                    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    os.close(os.open(name, flags, 0o644, dir_fd=parent))
                fd = self._opened(place, parent, name)
        finally:
            os.close(parent)
        return _of_kind(place, fd, stat.S_IFREG)

    def exists(self, place: Place) -> bool:
        """Tell whether anything is at a place."""
        with contextlib.suppress(SyscallError):
            os.close(open_below(self._root, "/".join(place.parts), os.O_PATH | os.O_NOFOLLOW))
            return True
        return False

    def _descend(self, place: Place, parts: tuple[str, ...]) -> tuple[int, bool]:
        here, made = os.dup(self._root), False
        for count, name in enumerate(parts, 1):
            try:
                following = self._opened(place, here, name)
                if following is None:
                    self._require_ours(place, parts[:count])
                    with _made_as(0o022, place):
                        os.mkdir(name, 0o755, dir_fd=here)
                    made = True
                    following = self._opened(place, here, name)
            finally:
                os.close(here)
            here = _of_kind(place, following, stat.S_IFDIR)
        return here, made

    @staticmethod
    def _opened(place: Place, folder: int, name: str) -> int | None:
        try:
            return open_below(folder, name, os.O_PATH | os.O_NOFOLLOW)
        except SyscallError as error:
            if error.code == errno.ENOENT:
                return None
            if error.code not in _OF_THE_IMAGE:
                raise
            raise place.refused(os.strerror(error.code)) from error

    def _require_ours(self, place: Place, parts: tuple[str, ...]) -> None:
        """Refuse to make what the image's links led to in a folder of the host."""
        if place.by_link and self.in_volume(parts):
            raise place.refused("a link of the image leads into a volume, where nothing is there")


class _Walk:
    """One path on its way: names that are done, and names to come."""

    def __init__(self, root: int, wanted: str) -> None:
        self._root = root
        self._here: int | None = None
        """The folder of the names that are done, if it is open."""
        self.wanted = wanted
        self.pending = deque(_names(wanted))
        self.done: list[str] = []
        self.links = 0
        self._require_end()

    def close(self) -> None:
        """Forget the open folder."""
        if self._here is not None:
            os.close(self._here)
            self._here = None

    def step(self) -> None:
        """Take the next name."""
        name = self.pending.popleft()
        if name == "..":
            del self.done[-1:]
            self.close()
            return
        target = None if self.done and self.done[0] in KERNEL_FOLDERS else self._enter(name)
        if target is None:
            self.done.append(name)
            return
        self.links += 1
        if target.startswith("/"):
            self.done.clear()
            self.close()
        self.pending.extendleft(reversed(_names(target)))
        self._require_end()

    def _require_end(self) -> None:
        length = sum(len(os.fsencode(part)) + 1 for part in (*self.done, *self.pending))
        if self.links > MAX_LINKS or length > MAX_PATH_BYTES:
            raise Place(self.wanted, ()).refused("its links have no end, or it is too long")

    def _enter(self, name: str) -> str | None:
        """Go on to ``name``, and return None; or its target, if it is a link."""
        try:
            if self._here is None:
                self._here = open_below(self._root, "/".join(self.done), os.O_PATH)
            fd = open_below(self._here, name, os.O_PATH | os.O_NOFOLLOW)
        except SyscallError as error:
            if error.code in _MISSING:
                self.close()
                return None
            if error.code not in _OF_THE_IMAGE:
                raise
            raise Place(self.wanted, ()).refused(os.strerror(error.code)) from error
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            try:
                return os.readlink("", dir_fd=fd)
            finally:
                os.close(fd)
        self.close()
        self._here = fd
        return None


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _of_kind(place: Place, fd: int | None, kind: int) -> int:
    """Return the descriptor, if it is of something of that kind."""
    if fd is None:
        raise place.refused("what was made there is gone")
    found = stat.S_IFMT(os.fstat(fd).st_mode)
    if found != kind:
        os.close(fd)
        raise place.refused(f"{_KINDS[found]} is there, or above, where {_KINDS[kind]} is needed")
    return fd


@contextlib.contextmanager
def _made_as(umask: int, place: Place) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    except OSError as error:
        raise from_os_error(error, "mkdir", f"cannot make {place.path} in the container") from error
    finally:
        os.umask(before)


def _check_kernel_folder(place: Place) -> None:
    """Refuse what leads on from the kernel's folders, and a link of the image into them.

    ``/dev/shm`` is let through, since distributions have ``/run/shm`` as a link to it.
    """
    if not place.in_kernel_folder:
        return
    top, second = place.parts[0], "".join(place.parts[1:2])
    if place.by_link and place.parts[:2] != _SHARED_MEMORY:
        raise place.refused(f"a link of the image leads to /{top}")
    of_process = second.isdigit() or second in ("self", "thread-self")
    if (top == "proc" and of_process) or (top == "dev" and second in _LINKS_IN_DEV):
        raise place.refused(f"{second} of /{top} leads out of the container")
