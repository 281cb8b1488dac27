"""An image as one tar archive, the same bytes for the same tree."""

from __future__ import annotations

import stat as stat_bits
from collections.abc import Callable
from dataclasses import dataclass, field

from lamina.archive.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
)
from lamina.archive.tar_writer import END_MARK, encode_entry, padding
from lamina.errors import IntegrityError
from lamina.image.base import Image, Stat, shown
from lamina.image.first_names import FirstNames

COPY_BYTES = 1 << 20
KINDS = {
    stat_bits.S_IFREG: REGULAR,
    stat_bits.S_IFDIR: DIRECTORY,
    stat_bits.S_IFLNK: SYMLINK,
    stat_bits.S_IFCHR: CHARACTER,
    stat_bits.S_IFBLK: BLOCK_DEVICE,
    stat_bits.S_IFIFO: FIFO,
}


@dataclass(slots=True)
class UnpackReport:
    """What was written: entries, bytes of file contents; ``notes`` say what was not kept."""

    entries: int = 0
    content_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


def write_layer(image: Image, write: Callable[[bytes], object]) -> UnpackReport:
    """Write the tree of an image as one OCI layer: a pax tar, parents first, names in byte order.

    Sockets, which tar cannot hold, are left out with a note.
    """
    report = UnpackReport()
    first_names = FirstNames()
    for path, status in image.walk():
        kind = KINDS.get(stat_bits.S_IFMT(status.mode))
        if kind is None:
            report.note(f"{shown(path)}: a socket has no place in a tar archive and is left out")
            continue
        name = path.strip(b"/")
        link = name if kind == DIRECTORY else first_names.of(status).strip(b"/")
        if link != name:
            write(encode_entry(_entry(status, name, HARD_LINK, link, {})))
        else:
            target = image.readlink(status) if kind == SYMLINK else b""
            write(encode_entry(_entry(status, name, kind, target, image.xattrs(status))))
            if kind == REGULAR:
                copy_content(image, status, write)
                write(padding(status.size))
                report.content_bytes += status.size
        report.entries += 1
    write(END_MARK)
    return report


def copy_content(image: Image, status: Stat, write: Callable[[bytes], object]) -> None:
    """Write the content of a regular file piece by piece; IntegrityError if it ends early."""
    offset = 0
    while offset < status.size:
        data = image.pread(status, offset, min(COPY_BYTES, status.size - offset))
        if not data:
            raise IntegrityError(f"{shown(status.path)} ends after {offset} of {status.size} bytes")
        write(data)
        offset += len(data)


def _entry(status: Stat, name: bytes, kind: int, link: bytes, xattrs: dict[bytes, bytes]) -> Entry:
    major, minor = status.device if kind in (CHARACTER, BLOCK_DEVICE) else (0, 0)
    # fmt: off
    return Entry(name, kind, status.mode & 0o7777, status.uid, status.gid, status.mtime,
                 status.mtime_ns, status.size if kind == REGULAR else 0, link, major, minor,
                 xattrs, 0)
    # fmt: on
