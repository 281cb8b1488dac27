"""Compare two trees completely: everything that a container could notice.

Names, types, modes, owners, times, extended attributes, link structure, device numbers, link
targets, sizes and contents.  Memory is bounded: a directory at a time, a window of a file at a
time, and one entry for every inode that has several names.
"""

from __future__ import annotations

import stat as stat_bits
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, TypeAlias

from lamina.image.base import Image, MetDirectories, Stat, shown
from lamina.image.first_names import FirstNames
from lamina.image.folder import FolderImage

WINDOW_BYTES: Final = 1 << 20
THREADS: Final = 4
LOOKAHEAD: Final = 64
"""Files whose contents may be under comparison, or waiting for it, at a time."""

KINDS: Final = {
    stat_bits.S_IFREG: "file",
    stat_bits.S_IFDIR: "directory",
    stat_bits.S_IFLNK: "symbolic link",
    stat_bits.S_IFCHR: "character device",
    stat_bits.S_IFBLK: "block device",
    stat_bits.S_IFIFO: "fifo",
    stat_bits.S_IFSOCK: "socket",
}
ABSENT: Final = "absent"


class Difference(NamedTuple):
    """What of *path* differs, and how it is on either side, as text for people."""

    path: bytes
    what: str
    left: str
    right: str

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.what}: {self.left} / {self.right}"


_Pending: TypeAlias = Difference | Future[Difference | None]


def compare(left: Image, right: Image, *, contents: bool = True) -> Iterator[Difference]:
    """Yield every difference between two trees, in the order of a walk.

    Nanoseconds of times count where both sides have some, because tar files often have none.  An
    entry that is only on one side is one difference, whatever is below it.  Modes of symbolic links
    count where neither side is a folder.  Without *contents*
    only the metadata is compared.
    """
    pool = ThreadPoolExecutor(THREADS, "lamina-compare")
    waiting: deque[_Pending] = deque()
    try:
        for item in _begun(pool, left, right, contents=contents):
            waiting.append(item)
            while waiting and (len(waiting) > LOOKAHEAD or _is_done(waiting[0])):
                yield from _result(waiting.popleft())
        while waiting:
            yield from _result(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _begun(
    pool: ThreadPoolExecutor, left: Image, right: Image, *, contents: bool
) -> Iterator[_Pending]:
    for item in _Comparison(left, right).run():
        if isinstance(item, Difference):
            yield item
        elif contents:
            yield pool.submit(_compare_contents, left, right, *item)


def _is_done(item: _Pending) -> bool:
    return isinstance(item, Difference) or item.done()


def _result(item: _Pending) -> Iterator[Difference]:
    found = item.result() if isinstance(item, Future) else item
    if found is not None:
        yield found


class _Comparison:
    """One walk over both trees.  Yields differences, and pairs of files whose content is next."""

    def __init__(self, left: Image, right: Image) -> None:
        self._left = left
        self._right = right
        self._first_names = FirstNames(), FirstNames()
        self._met = [MetDirectories(each.most_directory_bytes) for each in (left, right)]

    def run(self) -> Iterator[Difference | tuple[Stat, Stat]]:
        stack = [(self._left.root, self._right.root)]
        while stack:
            left, right = stack.pop()
            yield from self._compare_entry(left, right)
            if left.is_dir and right.is_dir:
                for met, directory in zip(self._met, (left, right), strict=True):
                    met.add(directory)
                common: list[tuple[Stat, Stat]] = []
                yield from self._compare_names(left, right, common)
                common.reverse()
                stack += common

    def _compare_names(
        self, left: Stat, right: Stat, common: list[tuple[Stat, Stat]]
    ) -> Iterator[Difference]:
        theirs = dict(self._right.scandir(right))
        for name, mine in self._left.scandir(left):
            other = theirs.pop(name, None)
            if other is None:
                yield Difference(mine.path, "exists", _kind(mine), ABSENT)
            else:
                common.append((mine, other))
        for other in theirs.values():
            yield Difference(other.path, "exists", ABSENT, _kind(other))

    def _compare_entry(self, left: Stat, right: Stat) -> Iterator[Difference | tuple[Stat, Stat]]:
        path = left.path
        if stat_bits.S_IFMT(left.mode) != stat_bits.S_IFMT(right.mode):
            yield Difference(path, "type", _kind(left), _kind(right))
            return
        for what, mine, other in self._attributes(left, right):
            if mine != other:
                yield Difference(path, what, mine, other)
        yield from self._compare_links(left, right)
        yield from self._compare_xattrs(left, right)
        if left.is_file and left.size == right.size and left.size:
            yield left, right

    def _attributes(self, left: Stat, right: Stat) -> Iterator[tuple[str, str, str]]:
        # Linux gives no link that is made a mode of its own, so a folder cannot have that of a tar.
        if not (left.is_symlink and FolderImage in (type(self._left), type(self._right))):
            yield "mode", f"{left.mode & 0o7777:04o}", f"{right.mode & 0o7777:04o}"
        yield "owner", f"{left.uid}:{left.gid}", f"{right.uid}:{right.gid}"
        yield "mtime", *_times(left, right)
        if left.is_file:
            yield "size", str(left.size), str(right.size)
        if left.is_device:
            yield "device", "{}:{}".format(*left.device), "{}:{}".format(*right.device)
        if left.is_symlink:
            yield "target", shown(self._left.readlink(left)), shown(self._right.readlink(right))

    def _compare_links(self, left: Stat, right: Stat) -> Iterator[Difference]:
        """Compare which earlier name each shares its inode with."""
        if left.is_dir:
            return
        mine = self._first_names[0].of(left)
        other = self._first_names[1].of(right)
        if mine != other:
            yield Difference(left.path, "hard link", _link(left, mine), _link(right, other))

    def _compare_xattrs(self, left: Stat, right: Stat) -> Iterator[Difference]:
        mine, other = self._left.xattrs(left), self._right.xattrs(right)
        if mine == other:
            return
        for name in sorted(mine.keys() | other.keys()):
            if mine.get(name) != other.get(name):
                yield Difference(
                    left.path,
                    f"attribute {shown(name)}",
                    _value(mine.get(name)),
                    _value(other.get(name)),
                )


def _kind(stat: Stat) -> str:
    return KINDS.get(stat_bits.S_IFMT(stat.mode), "unknown")


def _times(left: Stat, right: Stat) -> tuple[str, str]:
    if left.mtime_ns and right.mtime_ns:
        return f"{left.mtime}.{left.mtime_ns:09}", f"{right.mtime}.{right.mtime_ns:09}"
    return str(left.mtime), str(right.mtime)


def _link(stat: Stat, first_name: bytes) -> str:
    return "first name" if first_name == stat.path else f"same as {shown(first_name)}"


def _value(value: bytes | None) -> str:
    return ABSENT if value is None else value.hex() or "empty"


def _compare_contents(left: Image, right: Image, mine: Stat, other: Stat) -> Difference | None:
    for offset in range(0, mine.size, WINDOW_BYTES):
        a = left.pread(mine, offset, WINDOW_BYTES)
        b = right.pread(other, offset, WINDOW_BYTES)
        if a != b:
            position = _first_difference(a, b)
            where = f"content at byte {offset + position}"
            return Difference(mine.path, where, _byte(a, position), _byte(b, position))
    return None


def _first_difference(left: bytes, right: bytes) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))


def _byte(data: bytes, position: int) -> str:
    return f"{data[position]:#04x}" if position < len(data) else "end of file"
