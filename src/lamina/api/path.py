"""Paths in an image, as :class:`pathlib.Path` has them on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import total_ordering
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING

from lamina.api.text import decoded, encoded_name

if TYPE_CHECKING:
    from lamina.api.image import Image
    from lamina.image.base import Stat


@total_ordering
class ImagePath:
    """One path of an image: ``image / "etc" / "os-release"``.

    It is absolute, and means a file only when it is asked: whether there is one is not looked up
    before.  What :class:`pathlib.PurePosixPath` can do, it can do too.  It is no path
    of this machine, so the builtin :func:`open` refuses it; use :meth:`open`.
    """

    __slots__ = ("_image", "_pure")

    def __init__(self, image: Image, *parts: str | PurePosixPath) -> None:
        """Join *parts* below the root of *image*; as in pathlib, an absolute one starts anew."""
        self._image = image
        self._pure = PurePosixPath("/", *parts)

    def _with(self, pure: PurePosixPath) -> ImagePath:
        return ImagePath(self._image, pure)

    @property
    def name(self) -> str:
        """The last component, empty for the root."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """What follows the last dot of the name, with it."""
        return self._pure.suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes of the name: ``[".tar", ".gz"]``."""
        return self._pure.suffixes

    @property
    def parts(self) -> tuple[str, ...]:
        """The components, the root first."""
        return self._pure.parts

    @property
    def parent(self) -> ImagePath:
        """The directory that it is in; that of the root is the root."""
        return self._with(self._pure.parent)

    @property
    def parents(self) -> tuple[ImagePath, ...]:
        """All directories above, the nearest first."""
        return tuple(map(self._with, self._pure.parents))

    def joinpath(self, *others: str | ImagePath) -> ImagePath:
        """Return a path below; an absolute part starts anew from the root."""
        return self._with(self._pure.joinpath(*map(str, others)))

    def with_name(self, name: str) -> ImagePath:
        """Return the path with another name."""
        return self._with(self._pure.with_name(name))

    def with_suffix(self, suffix: str) -> ImagePath:
        """Return the path with another suffix."""
        return self._with(self._pure.with_suffix(suffix))

    def relative_to(self, other: str | ImagePath) -> PurePosixPath:
        """Return how it is reached from *other*; raises ValueError if it is not below that."""
        return self._pure.relative_to(str(other))

    def is_relative_to(self, other: str | ImagePath) -> bool:
        """Tell whether it is *other* or below it."""
        return self._pure.is_relative_to(str(other))

    def match(self, pattern: str) -> bool:
        """Tell whether it matches a pattern, as :meth:`pathlib.PurePath.match`."""
        return self._pure.match(pattern)

    def resolve(self) -> ImagePath:
        """Return the path without links and ``..``.

        Raises FileNotFoundError if it leads nowhere.
        """
        return ImagePath(self._image, decoded(self.stat().path))

    def stat(self, *, follow_symlinks: bool = True) -> Stat:
        """Look it up; raises what :meth:`lamina.Image.stat` does."""
        return self._image.stat(str(self), follow_symlinks=follow_symlinks)

    def lstat(self) -> Stat:
        """Look it up without following a link at its end."""
        return self.stat(follow_symlinks=False)

    def exists(self) -> bool:
        """Tell whether it leads to anything."""
        return self._image.exists(str(self))

    def is_dir(self) -> bool:
        """Tell whether it leads to a directory."""
        return self._image.is_dir(str(self))

    def is_file(self) -> bool:
        """Tell whether it leads to a regular file."""
        return self._image.is_file(str(self))

    def is_symlink(self) -> bool:
        """Tell whether it is itself a symbolic link."""
        return self._image.is_symlink(str(self))

    def readlink(self) -> PurePosixPath:
        """Return the target of a symbolic link as it is written; raises OSError if it is none."""
        return PurePosixPath(self._image.readlink(str(self)))

    def iterdir(self) -> Iterator[ImagePath]:
        """Yield what is in the directory, in byte order."""
        return (self._with(self._pure / name) for name in self._image.listdir(str(self)))

    def glob(self, pattern: str) -> Iterator[ImagePath]:
        """Yield what matches below; see :meth:`lamina.Image.glob`.

        Raises ValueError for an empty pattern and NotImplementedError for an absolute one.
        """
        if pattern.startswith("/"):
            raise NotImplementedError("patterns are relative to the path; image.glob takes others")
        for name in self._image.glob(_quoted(str(self)) + "/" + pattern if pattern else ""):
            yield ImagePath(self._image, name)

    def rglob(self, pattern: str) -> Iterator[ImagePath]:
        """Yield what matches at any depth below."""
        return self.glob(f"**/{pattern}")

    def open(
        self,
        mode: str = "r",
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[str] | IO[bytes]:
        """Open the file, for text by default as pathlib does; see :meth:`lamina.Image.open`."""
        return self._image.open(str(self), mode, encoding, errors, newline)

    def read_bytes(self) -> bytes:
        """Return the content of the file."""
        return self._image.read_bytes(str(self))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the content of the file as text, UTF-8 unless *encoding* says otherwise."""
        return self._image.read_text(str(self), encoding, errors)

    def __truediv__(self, part: str | ImagePath) -> ImagePath:
        return self.joinpath(part)

    def __str__(self) -> str:
        return str(self._pure)

    def __bytes__(self) -> bytes:
        return encoded_name(str(self))

    def __repr__(self) -> str:
        return f"ImagePath({str(self)!r} in {self._image.reference!r})"

    def _key(self) -> tuple[str, PurePosixPath]:
        return self._image.digest, self._pure

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, ImagePath) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self._key() < other._key() if isinstance(other, ImagePath) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._pure)


def _quoted(path: str) -> str:
    """Return a pattern that matches only the path itself."""
    import glob as patterns

    return patterns.escape(path).rstrip("/")
