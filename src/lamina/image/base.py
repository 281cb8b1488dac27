"""What an opened image looks like, whatever stands behind it.

:class:`Image` is the one interface over file trees: a native image
(:mod:`lamina.content.lazy_image`), a folder on disk (:mod:`lamina.image.folder`), an OCI image that
was not converted.  Comparing, listing, unpacking and serving are written against it.

Paths go in as ``str`` or ``bytes`` (text is encoded as :func:`os.fsencode` does) and are relative
to the root of the image, with or without a leading slash.  Names and paths come out as ``bytes``,
as Linux has them; :func:`os.fsdecode` makes text of them.  Wherever a path is taken, a
:class:`Stat` that came from the same image is taken too, which saves the lookup.
"""

from __future__ import annotations

import io
import os
import stat as stat_bits
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self, TypeAlias

from lamina.errors import FormatError
from lamina.image.errors import LinkLoopError, NotDirectoryError, PathNotFoundError


class Stat(NamedTuple):
    """One inode and the path it was reached by.

    Two names with the same ``ino`` are the same inode; directories have one name.
    ``path`` is absolute inside the image (``b"/"`` for the root); ``mode`` is the whole
    ``st_mode``; ``mtime`` is in seconds and ``mtime_ns`` only the nanoseconds below one second;
    ``rdev`` is in the kernel's "new" device encoding, as :class:`lamina.erofs.tree.Node` has it.
    """

    path: bytes
    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime: int
    mtime_ns: int
    rdev: int

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return stat_bits.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """True for a regular file."""
        return stat_bits.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """True for a symbolic link."""
        return stat_bits.S_ISLNK(self.mode)

    @property
    def is_device(self) -> bool:
        """True for a character or block device."""
        return stat_bits.S_ISCHR(self.mode) or stat_bits.S_ISBLK(self.mode)

    @property
    def device(self) -> tuple[int, int]:
        """(major, minor) of a device node."""
        return self.rdev >> 8 & 0xFFF, self.rdev & 0xFF | self.rdev >> 12 & 0xFFF00

    @property
    def name(self) -> str:
        """The last component of the path as text; bytes that are no UTF-8 are lone surrogates."""
        return self.path.rpartition(b"/")[2].decode("utf-8", "surrogateescape")

    # As os.stat_result has it.

    @property
    def st_mode(self) -> int:
        """Type and permissions."""
        return self.mode

    @property
    def st_ino(self) -> int:
        """Inode number."""
        return self.ino

    @property
    def st_nlink(self) -> int:
        """Number of names."""
        return self.nlink

    @property
    def st_uid(self) -> int:
        """Owner."""
        return self.uid

    @property
    def st_gid(self) -> int:
        """Group."""
        return self.gid

    @property
    def st_size(self) -> int:
        """Size in bytes."""
        return self.size

    @property
    def st_mtime(self) -> float:
        """Time of the last change in seconds."""
        return self.mtime + self.mtime_ns / 1_000_000_000

    @property
    def st_mtime_ns(self) -> int:
        """Time of the last change in nanoseconds."""
        return self.mtime * 1_000_000_000 + self.mtime_ns


MAX_LINKS: Final = 40
"""Symbolic links followed in one lookup, as Linux has it (MAXSYMLINKS)."""

Where: TypeAlias = str | bytes | Stat
"""A path in the image, or a Stat that the image gave."""


class Image(Protocol):
    """A file tree that can be walked and read without mounting it.  Threads may share it."""

    @property
    def most_directory_bytes(self) -> int | None:
        """What all directories of a sound tree take together, at most.

        None of a tree that a file system has, which sees to its soundness.
        """

    @property
    def root(self) -> Stat:
        """The root directory."""

    def stat(self, path: str | bytes, *, follow_symlinks: bool = True) -> Stat:
        """Look *path* up.  A symbolic link at its end is followed unless told otherwise.

        Raises PathNotFoundError, NotDirectoryError or LinkLoopError.
        """

    def scandir(self, where: Where) -> Iterator[tuple[bytes, Stat]]:
        """Yield (name, Stat) of a directory in byte order, without ``.`` and ``..``."""

    def readlink(self, where: Where) -> bytes:
        """Return the target of a symbolic link; raises FileKindError if it is none."""

    def xattrs(self, where: Where) -> dict[bytes, bytes]:
        """Return the extended attributes, by full name, of the inode itself (no link followed)."""

    def walk(self, where: Where = b"/") -> Iterator[tuple[bytes, Stat]]:
        """Yield (path, Stat) of *where* and all below: parents first, names in byte order."""

    def open(self, where: Where) -> io.BufferedReader:
        """Open a regular file (links are followed) for reading bytes."""

    def pread(self, stat: Stat, offset: int, size: int) -> bytes:
        """Read *size* bytes of a regular file at *offset*; fewer only at the end of the file."""

    def close(self) -> None:
        """Release what the image holds; may be called again."""


class ImageBase(ABC):
    """The parts of :class:`Image` that follow from the others."""

    @property
    def most_directory_bytes(self) -> int | None:
        """What all directories of a sound tree take together, at most.

        None of a tree that a file system has, which sees to its soundness.
        """
        return None

    @property
    @abstractmethod
    def root(self) -> Stat:
        """The root directory."""

    @abstractmethod
    def scandir(self, where: Where) -> Iterator[tuple[bytes, Stat]]:
        """Yield (name, Stat) of a directory."""

    @abstractmethod
    def readlink(self, where: Where) -> bytes:
        """Return the target of a symbolic link."""

    @abstractmethod
    def pread(self, stat: Stat, offset: int, size: int) -> bytes:
        """Read a part of a regular file."""

    @abstractmethod
    def close(self) -> None:
        """Release what the image holds."""

    def child(self, directory: Stat, name: bytes) -> Stat | None:
        """Return the entry *name* of a directory, or None; a search if nothing better is known."""
        return next((child for found, child in self.scandir(directory) if found == name), None)

    def stat(self, path: str | bytes, *, follow_symlinks: bool = True) -> Stat:
        """Look *path* up as Linux does with this tree as its root: no link leads out of it.

        Raises PathNotFoundError, NotDirectoryError or LinkLoopError.
        """
        wanted = path_bytes(path)
        todo = _components(wanted)
        trail = [self.root]
        links = 0
        while todo:
            name = todo.pop()
            if not trail[-1].is_dir:
                raise NotDirectoryError(f"{shown(wanted)} leads through what is not a directory")
            if name == b".":
                continue
            if name == b"..":
                trail[1:] = trail[1:-1]
                continue
            child = self.child(trail[-1], name)
            if child is None:
                raise PathNotFoundError(f"there is no {shown(wanted)} in the image")
            if child.is_symlink and (todo or follow_symlinks):
                links += 1
                if links > MAX_LINKS:
                    raise LinkLoopError(f"{shown(wanted)} leads through too many symbolic links")
                target = self.readlink(child)
                todo += _components(target)
                if target.startswith(b"/"):
                    del trail[1:]
            else:
                trail.append(child)
        return trail[-1]

    def walk(self, where: Where = b"/") -> Iterator[tuple[bytes, Stat]]:
        """Yield (path, Stat) of *where* and all below: parents first, names in byte order.

        Raises FormatError if a directory is reached twice, as in a damaged image with a cycle, or
        directories lie on top of each other.
        """
        met = MetDirectories(self.most_directory_bytes)
        # One open directory a level: a large one is never in memory as a whole.
        stack: list[Iterator[Stat]] = [iter([self.find(where, follow_symlinks=False)])]
        while stack:
            here = next(stack[-1], None)
            if here is None:
                stack.pop()
                continue
            if here.is_dir:
                met.add(here)
            yield here.path, here
            if here.is_dir:
                stack.append(child for _, child in self.scandir(here))

    def open(self, where: Where) -> io.BufferedReader:
        """Open a regular file (links are followed) for reading bytes.

        Raises PathNotFoundError, IsDirectoryError or FileKindError.
        """
        from lamina.image.file import ImageFile

        return io.BufferedReader(ImageFile(self, self.find(where)), 128 * 1024)

    def find(self, where: Where, *, follow_symlinks: bool = True) -> Stat:
        """Turn a path or a Stat into a Stat."""
        if isinstance(where, Stat) and not (follow_symlinks and where.is_symlink):
            return where
        path = where.path if isinstance(where, Stat) else where
        return self.stat(path, follow_symlinks=follow_symlinks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class MetDirectories:
    """Notices in a walk that a tree is none, before that takes more time than reading it may."""

    def __init__(self, most_bytes: int | None) -> None:
        """*most_bytes* is :attr:`Image.most_directory_bytes`."""
        self._most_bytes = most_bytes
        self._bytes = 0
        self._numbers: set[int] = set()

    def add(self, directory: Stat) -> None:
        """Note one.  Raises FormatError if it was met before, or shares its bytes with others."""
        if self._most_bytes is None:
            return
        if directory.ino in self._numbers:
            raise FormatError(f"{shown(directory.path)}: this directory has another name too")
        self._numbers.add(directory.ino)
        self._bytes += directory.size
        if self._bytes > self._most_bytes:
            raise FormatError(f"{shown(directory.path)}: directories lie on top of each other")


def below(directory: Stat, name: bytes) -> bytes:
    """Return the path of an entry of *directory*."""
    return directory.path + name if directory.path.endswith(b"/") else directory.path + b"/" + name


def _components(path: bytes) -> list[bytes]:
    """Return the components, the last one first; a slash at the end wants a directory."""
    names = [name for name in path.split(b"/") if name]
    if names and path.endswith(b"/"):
        names.append(b".")
    names.reverse()
    return names


def path_bytes(path: str | bytes) -> bytes:
    """Encode a path as the operating system would."""
    return path if isinstance(path, bytes) else os.fsencode(path)


def shown(path: str | bytes) -> str:
    """Make a path printable for a message, whatever bytes it has."""
    text = os.fsdecode(path)
    return text if text.isprintable() else ascii(text)[1:-1]
