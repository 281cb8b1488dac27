"""A native image as a read-only file system of fsspec."""

from __future__ import annotations

import datetime as dt
import io
import logging
import os
import threading
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

import lamina
from lamina.errors import UsageError
from lamina.image.base import Stat
from lamina.image.errors import (
    LinkLoopError,
    NotDirectoryError,
    PathNotFoundError,
    ReadOnlyError,
)
from lamina.image.file import require_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina.opening.request import IndexUse, OpenRequest, PullUse

SCHEME: Final = "lamina://"
LOG: Final = logging.getLogger("lamina")
_CACHE_OPTIONS: Final = frozenset(("block_size", "cache_options"))
_REGISTRY: Final = "docker://"
_LEADS_NOWHERE: Final = (PathNotFoundError, NotDirectoryError, LinkLoopError)


MAX_LISTINGS: Final = 4096
"""Directories whose listings are kept; fsspec calls it ``max_paths``."""


class SizedReader(io.BufferedReader):
    """A file of an image that tells its size, as fsspec's block readers expect."""

    def __init__(self, raw: io.RawIOBase, size: int) -> None:
        super().__init__(raw, 128 * 1024)
        self.size = size


class CacheableFile(AbstractBufferedFile):
    """A file of an image for ``blockcache``, and for whoever names a ``cache_type``."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        found: bytes = self.fs.cat_file(self.path, start, end)
        return found


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
        index: IndexUse = "auto",
        pull: PullUse = "newer",
        **storage_options: Any,
    ) -> None:
        """Name an image.

        *store* is the directory of the node store, *platform* chooses from an index, *client* has
        fields of :class:`lamina.http.client_options.ClientOptions`, as ``{"plain_http":
        True}``; the others are those of :func:`lamina.open`.  Raises UsageError without a
        reference.
        """
        super().__init__(**{"max_paths": MAX_LISTINGS, **storage_options})
        if not reference:
            raise UsageError(
                "no image was named",
                hint="write lamina://REFERENCE//PATH, two slashes between image and path, or pass "
                "reference=REFERENCE",
            )
        self.reference = reference
        self._client = client or {}
        self._keywords: dict[str, Any] = {
            "store": store,
            "platform": platform,
            "decryption_keys": decryption_keys,
            "policy": policy,
            "allow_older": allow_older,
            "index": index,
            "pull": pull,
        }
        self._opened: lamina.Image | None = None
        self._opening = threading.Lock()

    @property
    def request(self) -> OpenRequest:
        """What is opened.  Raises UsageError for options that there are not."""
        from lamina.http.client_options import ClientOptions
        from lamina.opening.request import request_of

        try:
            options = ClientOptions(**self._client)
        except TypeError as error:
            raise UsageError(f"the option client is wrong: {error}") from error
        return request_of(self.reference, options=options, **self._keywords)

    @property
    def image(self) -> lamina.Image:
        """The image behind the file system."""
        with self._opening:
            if self._opened is None:
                self._opened = lamina.open(self.request)
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
        """Describe what *path* leads to.

        A symbolic link is described as its target, with ``islink`` and ``destination``; one that
        leads nowhere has the type ``link``.
        """
        path = self._strip_protocol(path)
        here = self.image.lstat(path)
        return self._entry(path, here, follows=True) if here.is_symlink else _describe(path, here)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List a directory, or the one file that *path* names.

        A symbolic link to a file counts as that file; one to a directory has the type ``link`` and
        is not followed by :meth:`walk`.  Listings are kept: an image never changes.
        """
        path = self._strip_protocol(path)
        found = self._listing(path)
        return list(found) if detail else [entry["name"] for entry in found]

    def _listing(self, path: str) -> list[dict[str, Any]]:
        try:
            kept: list[dict[str, Any]] = self.dircache[path]
        except KeyError:
            pass
        else:
            return kept
        here = self.image.stat(path)
        if not here.is_dir:
            return [self.info(path)]
        prefix = path if path.endswith("/") else path + "/"
        found = [
            self._entry(prefix + name, stat) if stat.is_symlink else _describe(prefix + name, stat)
            for name, stat in self.image.scandir(here)
        ]
        self.dircache[path] = found
        return found

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget listings, of one directory or all, to free their memory."""
        if path is None:
            self.dircache.clear()
        else:
            self.dircache.pop(self._strip_protocol(path), None)

    def _entry(self, name: str, link: Stat, *, follows: bool = False) -> dict[str, Any]:
        """Describe a symbolic link."""
        described = _describe(name, link)
        described["destination"] = self.image.readlink(link)
        target = self._find(name)
        if target is not None and (follows or target.is_file):
            described |= {"type": _kind(target), "size": target.size if target.is_file else 0}
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

    def _open(
        self, path: str, mode: str = "rb", cache_type: str | None = None, **options: Any
    ) -> SizedReader | CacheableFile:
        if mode != "rb":
            if set(mode) - set("rwaxbt+"):
                raise ValueError(f"invalid mode: {mode!r}")
            _refuse()
        stat = self.image.stat(path)
        require_file(stat)
        if cache_type is not None:
            options = {name: options[name] for name in _CACHE_OPTIONS & options.keys()}
            return CacheableFile(self, path, cache_type=cache_type, size=stat.size, **options)
        return SizedReader(self.image.open(stat).detach(), stat.size)

    def get_file(self, rpath: str, lpath: Any = None, *more: Any, **options: Any) -> None:
        """Copy a file to this machine.

        What is neither file nor directory (a link that leads nowhere, a device) is passed over, as
        it has no content; raises FileNotFoundError for what is not there at all.
        """
        info = self.info(rpath)
        if info["type"] in ("file", "directory"):
            super().get_file(rpath, lpath, *more, **options)
        else:
            LOG.info("%s is passed over: it has no content", info["name"])

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Return the bytes ``[start, end)`` of a file; negative ones count from its end."""
        stat = self.image.stat(self._strip_protocol(path))
        first, stop, _step = slice(start, end).indices(stat.size)
        return self.image.pread(stat, first, max(stop - first, 0))

    def ukey(self, path: str) -> str:
        """Return what changes when the file does: a tag may mean another image tomorrow."""
        return f"{self.image.digest}:{self.image.stat(self._strip_protocol(path)).ino}"

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


_KINDS: Final = {S_IFDIR: "directory", S_IFREG: "file", S_IFLNK: "link"}


def _kind(stat: Stat) -> str:
    return _KINDS.get(S_IFMT(stat.mode), "other")


def _describe(name: str, stat: Stat) -> dict[str, Any]:
    kind = _kind(stat)
    return {
        "name": name,
        "size": stat.size if kind == "file" else 0,
        "type": kind,
        "islink": kind == "link",
        "mode": stat.mode,
        "uid": stat.uid,
        "gid": stat.gid,
        "mtime": stat.mtime + stat.mtime_ns / 1_000_000_000,
        "ino": stat.ino,
        "nlink": stat.nlink,
    }


def _refuse() -> NoReturn:
    raise ReadOnlyError("an image is read-only", hint="build a new image with what is to change")
