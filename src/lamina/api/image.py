"""An opened image as Python programs see it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Literal, Self, overload

import msgspec

from lamina.api.glob import LEADS_NOWHERE, glob
from lamina.api.hints import GUESSED_NAMES
from lamina.api.path import ImagePath
from lamina.api.text import Name, as_text, decoded, encoded, encoded_name, is_binary
from lamina.image.base import Stat, Where
from lamina.image.file import ImageFile
from lamina.oci.reference import parse_reference
from lamina.opening.lazy_index import indexed_image

if TYPE_CHECKING:
    from types import TracebackType

    from lamina.content.lazy_image import LazyImage
    from lamina.content.statistics import Statistics
    from lamina.oci.manifest import ImageConfig, Manifest
    from lamina.opening.request import OpenRequest


class Image:
    """The files of an image: walked, looked at and read without mounting it.

    :func:`lamina.open` makes it.  Threads may share it; close it when done, or use it in a ``with``
    statement.  Nothing is fetched before it is asked for, and nothing is seen that was not
    verified.

    Paths are ``str`` or ``bytes``, from the root of the image, with or without a leading slash;
    no link leads out of it.  A :class:`Stat` that the image gave is taken as well.  Names come back
    as they were asked with: ``bytes`` for ``bytes``, otherwise ``str`` with ``surrogateescape``.

    It can be pickled: what arrives opens the same version again, by its digest, with the keywords
    it was opened with, passwords among them.
    """

    __slots__ = ("_native", "_picklable", "_request")

    def __init__(
        self, native: LazyImage, request: OpenRequest, *, is_picklable: bool = True
    ) -> None:
        """Own *native*, which *request* opened."""
        self._native = native
        self._request = request
        self._picklable = is_picklable

    @property
    def reference(self) -> str:
        """What the image is called, with its transport: ``docker://registry.example/app:1``."""
        return str(parse_reference(self._request.reference))

    @property
    def digest(self) -> str:
        """The digest of the manifest: the version that a tag meant when the image was opened."""
        origin = self._native.origin
        assert origin is not None
        assert origin.reference is not None
        assert origin.reference.digest is not None
        manifest = origin.manifest
        image = None if manifest is None else indexed_image(manifest)
        return origin.reference.digest if image is None else image.digest

    @property
    def platform(self) -> str:
        """``OS/ARCHITECTURE[/VARIANT]``."""
        return str(self.config.platform)

    @property
    def config(self) -> ImageConfig:
        """The image configuration; ``config.config`` says what a container of it runs."""
        return self._native.config

    @property
    def manifest(self) -> Manifest | None:
        """The manifest that brought the metadata."""
        return self._native.manifest

    @property
    def statistics(self) -> Statistics:
        """What was fetched since the image was opened: requests and bytes."""
        return self._native.statistics

    @property
    def root(self) -> Stat:
        """The root directory."""
        return self._native.root

    def stat(self, path: Where, *, follow_symlinks: bool = True) -> Stat:
        """Look *path* up.

        Raises FileNotFoundError, NotADirectoryError or OSError (ELOOP), as :func:`os.stat` does.
        """
        return self._native.find(encoded(path), follow_symlinks=follow_symlinks)

    def lstat(self, path: Where) -> Stat:
        """Look *path* up without following a link at its end."""
        return self.stat(path, follow_symlinks=False)

    def exists(self, path: Where) -> bool:
        """Tell whether *path* leads to anything; a registry that fails is no answer but raises."""
        return self._found(path) is not None

    def is_dir(self, path: Where) -> bool:
        """Tell whether *path* leads to a directory."""
        found = self._found(path)
        return found is not None and found.is_dir

    def is_file(self, path: Where) -> bool:
        """Tell whether *path* leads to a regular file."""
        found = self._found(path)
        return found is not None and found.is_file

    def is_symlink(self, path: Where) -> bool:
        """Tell whether *path* itself is a symbolic link."""
        found = self._found(path, follow_symlinks=False)
        return found is not None and found.is_symlink

    def _found(self, path: Where, *, follow_symlinks: bool = True) -> Stat | None:
        try:
            return self.stat(path, follow_symlinks=follow_symlinks)
        except LEADS_NOWHERE:
            return None

    @overload
    def listdir(self, path: str | Stat = "/") -> list[str]: ...
    @overload
    def listdir(self, path: bytes) -> list[bytes]: ...
    def listdir(self, path: Where = "/") -> list[str] | list[bytes]:
        """Return the names in a directory in byte order, as :func:`os.listdir`."""
        names = [name for name, _ in self._native.scandir(encoded(path))]
        return names if isinstance(path, bytes) else list(map(decoded, names))

    @overload
    def scandir(self, path: str | Stat = "/") -> Iterator[tuple[str, Stat]]: ...
    @overload
    def scandir(self, path: bytes) -> Iterator[tuple[bytes, Stat]]: ...
    def scandir(self, path: Where = "/") -> Iterator[tuple[str | bytes, Stat]]:
        """Yield (name, Stat) of a directory in byte order, without ``.`` and ``..``."""
        return _named(self._native.scandir(encoded(path)), path)

    @overload
    def walk(self, path: str | Stat = "/") -> Iterator[tuple[str, Stat]]: ...
    @overload
    def walk(self, path: bytes) -> Iterator[tuple[bytes, Stat]]: ...
    def walk(self, path: Where = "/") -> Iterator[tuple[str | bytes, Stat]]:
        """Yield (path, Stat) of *path* and all below: parents first, names in byte order."""
        return _named(self._native.walk(encoded(path)), path)

    def glob(self, pattern: Name) -> Iterator[Name]:
        """Yield the paths that match, from the root: ``/usr/**/*.py``.

        ``*``, ``?`` and ``[...]`` match within one name, hidden ones too; ``**`` stands for any
        number of directories.  Raises ValueError for an empty pattern.
        """
        if isinstance(pattern, bytes):
            return (path for path, _ in glob(self._native, pattern, self.root))
        wanted = encoded_name(pattern)
        return (decoded(path) for path, _ in glob(self._native, wanted, self.root))

    @overload
    def readlink(self, path: str | Stat) -> str: ...
    @overload
    def readlink(self, path: bytes) -> bytes: ...
    def readlink(self, path: Where) -> str | bytes:
        """Return the target of a symbolic link; raises OSError (EINVAL) if it is none."""
        target = self._native.readlink(encoded(path))
        return target if isinstance(path, bytes) else decoded(target)

    def xattrs(self, path: Where) -> dict[str, bytes]:
        """Return the extended attributes by full name, of a link itself."""
        found = self._native.xattrs(encoded(path))
        return {decoded(name): value for name, value in found.items()}

    @overload
    def open(self, path: Where, mode: Literal["rb", "br"] = "rb") -> io.BufferedReader: ...
    @overload
    def open(
        self,
        path: Where,
        mode: Literal["r", "rt", "tr"],
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[str]: ...
    @overload
    def open(
        self,
        path: Where,
        mode: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.BufferedReader | IO[str]: ...
    def open(
        self,
        path: Where,
        mode: str = "rb",
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.BufferedReader | IO[str]:
        """Open a regular file (links are followed), for bytes by default, for text with ``"r"``.

        The rest is that of :func:`open`, but text is UTF-8 unless *encoding* says otherwise.

        Raises FileNotFoundError, IsADirectoryError, OSError (EINVAL) for what is no file and
        (EROFS) for modes that write, and ValueError for a mode that there is not.  Reading raises
        ``lamina.Error`` if the bytes cannot be had or are not the right ones.
        """
        binary = is_binary(mode, encoding, errors, newline)
        file = self._native.open(encoded(path))
        return file if binary else as_text(file, encoding, errors, newline)

    def read_bytes(self, path: Where) -> bytes:
        """Return the content of a regular file."""
        with ImageFile(self._native, self.stat(path)) as file:
            return file.readall()

    def read_text(self, path: Where, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the content of a regular file as text, UTF-8 unless *encoding* says otherwise."""
        with self.open(path, "r", encoding, errors) as file:
            return file.read()

    def pread(self, path: Where, offset: int, size: int) -> bytes:
        """Return *size* bytes of a regular file from *offset*; fewer only at its end."""
        return self._native.pread(self.stat(path), offset, size)

    def close(self) -> None:
        """Release what the image holds; what needs that later raises ValueError."""
        self._native.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._native.closed

    def __truediv__(self, part: str | ImagePath) -> ImagePath:
        """Return a path in the image: ``image / "etc" / "os-release"``."""
        return ImagePath(self) / part

    def joinpath(self, *parts: str | ImagePath) -> ImagePath:
        """Return a path in the image: ``image.joinpath("etc", "os-release")``."""
        return ImagePath(self).joinpath(*parts)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            hint = GUESSED_NAMES.get(name)
            said = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(f"{said}; {hint}" if hint else said, name=name, obj=self)

    def __contains__(self, path: Where) -> bool:
        return self.exists(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.platform
        return f"<lamina.Image {self.reference!r} {self.digest} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        if not self._picklable:
            raise TypeError("an image that an IndexRule's own policy opened cannot be pickled")
        return reopen, (self._pinned(),)

    def _pinned(self) -> OpenRequest:
        from lamina.opening.request import for_another_process

        origin = self._native.origin
        assert origin is not None
        index = "auto" if self._request.index == "always" else self._request.index
        return for_another_process(
            msgspec.structs.replace(self._request, pinned=origin.pinned, index=index)
        )


def reopen(request: OpenRequest) -> Image:
    """Open what was pickled."""
    import lamina

    return lamina.open(request)


def _named(
    entries: Iterator[tuple[bytes, Stat]], asked: Where
) -> Iterator[tuple[str | bytes, Stat]]:
    if isinstance(asked, bytes):
        return entries
    return ((decoded(name), stat) for name, stat in entries)
