"""A native image as a read-only file system of fsspec."""

from __future__ import annotations

import datetime as dt
import io
import os
import threading
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NoReturn

from fsspec.spec import AbstractFileSystem

import lamina
from lamina.errors import UsageError
from lamina.image.base import Stat
from lamina.image.errors import (
    LinkLoopError,
    NotDirectoryError,
    PathNotFoundError,
    ReadOnlyError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina.image.indexed import IndexUse
    from lamina.image.native import NativeImage

SCHEME: Final = "lamina://"
_REGISTRY: Final = "docker://"
_LEADS_NOWHERE: Final = (PathNotFoundError, NotDirectoryError, LinkLoopError)


class SizedReader(io.BufferedReader):
    """A file of an image that tells its size, as fsspec's block readers expect."""

    def __init__(self, raw: io.RawIOBase, size: int) -> None:
        super().__init__(raw, 128 * 1024)
        self.size = size


class LaminaFileSystem(AbstractFileSystem):
    """The files of one native image, fetched and verified as they are read.

    A URL is ``lamina://REFERENCE//PATH``: everything up to the first ``//``, not counting that of
    ``docker://``, names the image, as ``registry.example/app:1`` or ``oci:/srv/layout:latest``.
    With the option *reference* a URL is only ``lamina://PATH``.  Paths in answers are absolute
    inside the image.

    The image is opened at the first access and kept open, because fsspec keeps file systems;
    :meth:`close` lets go of both.  Whatever would write raises
    :class:`~lamina.image.errors.ReadOnlyError`.
    """

    protocol: ClassVar[str] = "lamina"
    root_marker: ClassVar[str] = "/"

    def __init__(
        self,
        reference: str | None = None,
        *,
        store: str | None = None,
        platform: str | None = None,
        client: dict[str, Any] | None = None,
        decryption_keys: Sequence[str] | str = (),
        policy: str | None = None,
        allow_older: bool = False,
        index: IndexUse | Literal["always"] = "auto",
        **storage_options: Any,
    ) -> None:
        """Name an image.

        *store* is the directory of the node store, *platform* chooses from an index, *client* has
        fields of :class:`lamina.registry.repository.ClientOptions`, as ``{"plain_http": True}``;
        the others are those of :func:`lamina.open`.  Raises UsageError without a reference.
        """
        super().__init__(**storage_options)
        if not reference:
            raise UsageError(
                "no image was named",
                hint="Write lamina://REFERENCE//PATH, or pass reference=REFERENCE.",
            )
        self.reference = reference
        self._store = store
        self._platform = platform
        self._client = client or {}
        self._keys = decryption_keys
        self._policy = policy
        self._allow_older = allow_older
        self._index = index
        self._opened: NativeImage | None = None
        self._opening = threading.Lock()

    @property
    def image(self) -> NativeImage:
        """The image behind the file system."""
        with self._opening:
            if self._opened is None:
                from lamina.registry.repository import ClientOptions

                try:
                    options = ClientOptions(**self._client)
                except TypeError as error:
                    raise UsageError(f"the option client is wrong: {error}") from error
                self._opened = lamina.open(
                    self.reference,
                    store=self._store,
                    options=options,
                    platform=self._platform,
                    decryption_keys=self._keys,
                    policy=self._policy,
                    allow_older=self._allow_older,
                    index=self._index,
                )
            return self._opened

    def close(self) -> None:
        """Close the image, and make fsspec forget this file system; may be called again."""
        type(self)._cache.pop(self._fs_token_, None)
        with self._opening:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        text = os.fspath(path)
        if text.startswith(SCHEME):
            _, _, text = _split(text)
        return "/" + text.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        reference, found, _ = _split(path)
        return {"reference": reference} if found else {}

    def unstrip_protocol(self, name: str) -> str:
        """Return the full URL of a path."""
        return f"{SCHEME}{self.reference}/{self._strip_protocol(name)}"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Describe what *path* leads to; symbolic links are followed."""
        path = self._strip_protocol(path)
        return _describe(path, self.image.stat(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List a directory, or the one file that *path* names.

        A symbolic link to a file counts as that file; one to a directory has the type ``link`` and
        is not followed by :meth:`walk`.
        """
        path = self._strip_protocol(path)
        here = self.image.stat(path)
        if not here.is_dir:
            return [_describe(path, here)] if detail else [path]
        prefix = path if path.endswith("/") else path + "/"
        entries = ((prefix + os.fsdecode(name), stat) for name, stat in self.image.scandir(here))
        if detail:
            return [self._entry(name, stat) for name, stat in entries]
        return [name for name, _ in entries]

    def _entry(self, name: str, stat: Stat) -> dict[str, Any]:
        described = _describe(name, stat)
        if stat.is_symlink:
            described["destination"] = os.fsdecode(self.image.readlink(stat))
            try:
                target = self.image.stat(stat.path)
            except _LEADS_NOWHERE:
                return described
            if target.is_file:
                described.update(type="file", size=target.size)
        return described

    def exists(self, path: str, **_: Any) -> bool:
        """Tell whether *path* leads to anything; a registry that fails is no answer but raises."""
        return self._find(path) is not None

    def isfile(self, path: str) -> bool:
        """Tell whether *path* leads to a regular file; raises as :meth:`exists` does."""
        found = self._find(path)
        return found is not None and found.is_file

    def isdir(self, path: str) -> bool:
        """Tell whether *path* leads to a directory; raises as :meth:`exists` does."""
        found = self._find(path)
        return found is not None and found.is_dir

    def _find(self, path: str) -> Stat | None:
        try:
            return self.image.stat(self._strip_protocol(path))
        except _LEADS_NOWHERE:
            return None

    def _open(self, path: str, mode: str = "rb", **_: Any) -> SizedReader:
        if mode != "rb":
            if set(mode) - set("rwaxbt+"):
                raise ValueError(f"invalid mode: {mode!r}")
            _refuse()
        stat = self.image.stat(path)
        return SizedReader(self.image.open(stat).detach(), stat.size)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Return the bytes ``[start, end)`` of a file; negative ones count from its end."""
        stat = self.image.stat(self._strip_protocol(path))
        first, stop, _step = slice(start, end).indices(stat.size)
        return self.image.pread(stat, first, max(stop - first, 0))

    def modified(self, path: str) -> dt.datetime:
        """Return the time of the last change of what *path* leads to."""
        stat = self.image.stat(self._strip_protocol(path))
        seconds = stat.mtime + stat.mtime_ns / 1_000_000_000
        return dt.datetime.fromtimestamp(seconds, dt.UTC)

    def mkdir(self, *_: Any, **__: Any) -> NoReturn:
        """Raise ReadOnlyError."""
        _refuse()

    makedirs = rmdir = rm = rm_file = cp_file = mv = touch = pipe_file = put_file = mkdir
    _rm = mkdir


def _split(url: str) -> tuple[str, bool, str]:
    """Split a URL into (reference, whether it has one, path)."""
    rest = url.removeprefix(SCHEME)
    reference, separator, path = rest.removeprefix(_REGISTRY).partition("//")
    if rest.startswith(_REGISTRY):
        reference = _REGISTRY + reference
    return (reference, True, path) if separator and reference else ("", False, reference + path)


def _describe(name: str, stat: Stat) -> dict[str, Any]:
    kind = "directory" if stat.is_dir else "file" if stat.is_file else "other"
    return {
        "name": name,
        "size": stat.size if stat.is_file else 0,
        "type": "link" if stat.is_symlink else kind,
        "islink": stat.is_symlink,
        "mode": stat.mode,
        "uid": stat.uid,
        "gid": stat.gid,
        "mtime": stat.mtime + stat.mtime_ns / 1_000_000_000,
        "ino": stat.ino,
        "nlink": stat.nlink,
    }


def _refuse() -> NoReturn:
    raise ReadOnlyError("an image is read-only", hint="Build a new image with what is to change.")
