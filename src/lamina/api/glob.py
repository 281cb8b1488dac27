"""Patterns over the names of an image, as pathlib has them.

``*``, ``?`` and ``[…]`` match within one name, names that begin with a dot too; ``**`` as a whole
component stands for any number of directories, none included.  Links are followed where a name is
written out, and not by ``**``.
"""

from __future__ import annotations

import fnmatch
import re
import stat as stat_bits
from collections.abc import Iterable, Iterator, Sequence

from lamina.image.base import Image, MetDirectories, Stat
from lamina.image.errors import LinkLoopError, NotDirectoryError, PathNotFoundError

LEADS_NOWHERE = (PathNotFoundError, NotDirectoryError, LinkLoopError)
_MAGIC = re.compile(rb"[*?\[]")
_ANY_DEPTH = b"**"
_DIR = stat_bits.S_IFDIR >> 12


def glob(image: Image, pattern: bytes, start: Stat) -> Iterator[tuple[bytes, Stat]]:
    """Yield (path, Stat) of what matches below *start*, each once; links themselves, not targets.

    Paths are written as the pattern leads to them.  Within a directory they are in byte order, and
    what lies deeper comes later.  Raises ValueError for an empty pattern, and FormatError if
    directories of a damaged image lie on top of each other.
    """
    parts = [part for part in pattern.split(b"/") if part not in (b"", b".")]
    if not parts:
        raise ValueError("an empty pattern matches nothing")
    only_directories = pattern.endswith(b"/")
    seen: set[bytes] = set()
    depths = parts.count(_ANY_DEPTH)
    for path, stat in _select(image, start.path.rstrip(b"/"), start, parts):
        if depths > 1:
            # Two ways to share out the directories between two ``**`` reach the same name.
            if path in seen:
                continue
            seen.add(path)
        if not only_directories or _directory(image, path, stat) is not None:
            yield path or b"/", stat


def _select(
    image: Image, path: bytes, here: Stat, parts: Sequence[bytes]
) -> Iterator[tuple[bytes, Stat]]:
    if not parts:
        yield path, here
        return
    part, rest = parts[0], parts[1:]
    if part == _ANY_DEPTH:
        yield from _at_any_depth(image, path, here, rest)
    elif _MAGIC.search(part):
        directory = _directory(image, path, here)
        if directory is not None:
            yield from _matching(image, path, image.scandir(directory), parts)
    else:
        yield from _named(image, path + b"/" + part, rest)


def _named(image: Image, path: bytes, rest: Sequence[bytes]) -> Iterator[tuple[bytes, Stat]]:
    try:
        found = image.stat(path, follow_symlinks=False)
    except LEADS_NOWHERE:
        return
    yield from _select(image, path, found, rest)


def _matching(
    image: Image, path: bytes, entries: Iterable[tuple[bytes, Stat]], parts: Sequence[bytes]
) -> Iterator[tuple[bytes, Stat]]:
    matches = re.compile(fnmatch.translate(parts[0].decode("latin-1")).encode("latin-1")).match
    rest = parts[1:]
    prefix = path + b"/"
    for name, stat in entries:
        if matches(name):
            if rest:
                yield from _select(image, prefix + name, stat, rest)
            else:
                yield prefix + name, stat


def _at_any_depth(
    image: Image, path: bytes, here: Stat, rest: Sequence[bytes]
) -> Iterator[tuple[bytes, Stat]]:
    """Try *rest* in a directory and in all below it; each is read once."""
    met = MetDirectories(image.most_directory_bytes)
    top = _directory(image, path, here)
    todo = [] if top is None else [(path, top)]
    while todo:
        path, directory = todo.pop()
        met.add(directory)
        entries = list(image.scandir(directory))
        below = [(path + b"/" + name, stat) for name, stat in entries if stat.mode >> 12 == _DIR]
        if not rest:
            yield path, directory
            yield from ((path + b"/" + name, stat) for name, stat in entries if not stat.is_dir)
        elif _MAGIC.search(rest[0]) and rest[0] != _ANY_DEPTH:
            yield from _matching(image, path, entries, rest)
        else:
            yield from _select(image, path, directory, rest)
        todo += reversed(below)


def _directory(image: Image, path: bytes, here: Stat) -> Stat | None:
    """Return the directory that a path leads to, None if it leads to something else."""
    if here.is_symlink:
        try:
            here = image.stat(path)
        except LEADS_NOWHERE:
            return None
    return here if here.is_dir else None
