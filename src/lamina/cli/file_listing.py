"""How files of an image are shown: one object for JSON, one line for people."""

from __future__ import annotations

import os
import stat as bits
import time
from typing import TYPE_CHECKING, Any, Final

from lamina.cli.output import shown_name

if TYPE_CHECKING:
    from lamina.image.base import Image, Stat

ENTRY_KEYS: Final = (
    ("path", "absolute path in the image"),
    ("type", "file, directory, symlink, character-device, block-device, fifo or socket"),
    ("mode", "permissions in octal, as 0755"),
    ("nlink", "number of names"),
    ("uid, gid", "owner and group, as numbers"),
    ("size", "bytes"),
    ("mtime, mtime_ns", "time of the last change: seconds since 1970, and nanoseconds beyond"),
    ("ino", "inode number"),
    ("target", "of a symlink: where it points"),
    ("device", "of a device: [major, minor]"),
)

_KINDS: Final = {
    bits.S_IFREG: "file",
    bits.S_IFDIR: "directory",
    bits.S_IFLNK: "symlink",
    bits.S_IFCHR: "character-device",
    bits.S_IFBLK: "block-device",
    bits.S_IFIFO: "fifo",
    bits.S_IFSOCK: "socket",
}


def kind_name(mode: int) -> str:
    """Return the kind of file that a mode tells."""
    return _KINDS.get(bits.S_IFMT(mode), "unknown")


def entry_object(image: Image, stat: Stat) -> dict[str, Any]:
    """Return what JSON says of a file; see ENTRY_KEYS."""
    entry = {
        "path": os.fsdecode(stat.path),
        "type": kind_name(stat.mode),
        "mode": f"{bits.S_IMODE(stat.mode):04o}",
        "nlink": stat.nlink,
        "uid": stat.uid,
        "gid": stat.gid,
        "size": stat.size,
        "mtime": stat.mtime,
        "mtime_ns": stat.mtime_ns,
        "ino": stat.ino,
    }
    if stat.is_symlink:
        entry["target"] = os.fsdecode(image.readlink(stat))
    if stat.is_device:
        entry["device"] = list(stat.device)
    return entry


def long_row(image: Image, name: bytes, stat: Stat) -> tuple[str, ...]:
    """Return the columns of ``ls -l``: mode, links, owner, group, size, time in UTC, name."""
    size = ",".join(str(part) for part in stat.device) if stat.is_device else str(stat.size)
    shown = shown_name(name)
    if stat.is_symlink:
        shown += f" -> {shown_name(image.readlink(stat))}"
    return (
        bits.filemode(stat.mode),
        str(stat.nlink),
        str(stat.uid),
        str(stat.gid),
        size,
        utc_time(stat.mtime),
        shown,
    )


def utc_time(seconds: int) -> str:
    """``2024-02-29 12:00:00`` in UTC, or the bare number where there is no such date."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)
