"""Which user a container runs as: ``NAME``, ``UID``, ``NAME:GROUP``, ``UID:GID``, looked up in the
image's own files.

The rules are those of docker and runc (moby ``user.GetExecUser``): a number is always an id, even
where a user of that name exists, and may have a sign as for Go's ``strconv.Atoi``; without a user
it is root, and nothing after the colon names no group; a number that ``/etc/passwd`` does not know
is fine and belongs to group 0; supplementary groups are taken from ``/etc/group`` only where no
group was named.  Nothing of the host is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

from lamina.errors import FormatError, NotFoundError, UsageError
from lamina.image.base import Image

MAX_ID: Final = (1 << 31) - 1
MAX_FILE_BYTES: Final = 4 << 20


class ContainerUser(NamedTuple):
    """Numbers for the kernel, and the home directory for the environment."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


class PasswdEntry(NamedTuple):
    """A line of ``/etc/passwd``."""

    name: str
    uid: int
    gid: int
    home: str


class GroupEntry(NamedTuple):
    """A line of ``/etc/group``."""

    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(image: Image, wanted: str) -> ContainerUser:
    """Resolve the ``User`` of an image configuration (or of ``--user``) in an image.

    Raises NotFoundError for a name that the image does not know, UsageError for a malformed
    request, and whatever reading the image raises.
    """
    return resolve_in(partial(_read, image), wanted)


def resolve_in(read: Callable[[str], bytes], wanted: str) -> ContainerUser:
    """Resolve a user where *read* returns the files; raises as :func:`resolve_user`."""
    name, _, group = wanted.partition(":")
    if ":" in group:
        raise UsageError(
            f"{wanted!r} is no user", hint="write USER, USER:GROUP, UID or UID:GID, as docker does"
        )
    entry = _find_user(parse_passwd(read("/etc/passwd")), name or "0")
    lines = parse_group(read("/etc/group")) if group or entry.name else iter(())
    if group:
        return ContainerUser(entry.uid, _find_group(lines, group), (), entry.home)
    groups = tuple(line.gid for line in lines if entry.name in line.members)
    return ContainerUser(entry.uid, entry.gid, groups, entry.home)


def add_groups(image: Image, user: ContainerUser, wanted: Sequence[str]) -> ContainerUser:
    """Return the user with more supplementary groups, by name or number as the image knows them.

    Raises what :func:`resolve_user` does.
    """
    if not wanted:
        return user
    data = _read(image, "/etc/group")
    more = [_find_group(parse_group(data), group) for group in wanted]
    return user._replace(groups=tuple(dict.fromkeys((*user.groups, *more))))


def parse_passwd(data: bytes) -> Iterator[PasswdEntry]:
    """Yield the well-formed lines of a passwd file (passwd(5)); others are passed over, as runc
    does.
    """
    for fields in _lines(data):
        if len(fields) >= 4 and fields[0] and _is_id(fields[2]) and _is_id(fields[3]):
            home = fields[5] if len(fields) > 5 and fields[5] else "/"
            yield PasswdEntry(fields[0], int(fields[2]), int(fields[3]), home)


def parse_group(data: bytes) -> Iterator[GroupEntry]:
    """Yield the well-formed lines of a group file (group(5)); others are passed over."""
    for fields in _lines(data):
        if len(fields) >= 3 and fields[0] and _is_id(fields[2]):
            members = tuple(filter(None, fields[3].split(","))) if len(fields) > 3 else ()
            yield GroupEntry(fields[0], int(fields[2]), members)


def _lines(data: bytes) -> Iterator[list[str]]:
    for line in data.decode(errors="surrogateescape").split("\n"):
        if line.strip() and not line.startswith("#"):
            yield line.strip().split(":")


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID


def _find_user(entries: Iterator[PasswdEntry], wanted: str) -> PasswdEntry:
    number = _number(wanted)
    for entry in entries:
        if entry.uid == number if number is not None else entry.name == wanted:
            return entry
    if number is None:
        raise NotFoundError(
            f"the image has no user {wanted!r} in /etc/passwd",
            hint="choose a number with --user UID:GID",
        )
    return PasswdEntry("", number, 0, "/")


def _find_group(entries: Iterator[GroupEntry], wanted: str) -> int:
    number = _number(wanted)
    if number is not None:
        return number
    for entry in entries:
        if entry.name == wanted:
            return entry.gid
    raise NotFoundError(
        f"the image has no group {wanted!r} in /etc/group",
        hint="choose a number with --user UID:GID",
    )


def _number(text: str) -> int | None:
    """Return the id that a text of digits means, with a sign or without; UsageError if it is out of
    range.
    """
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not (digits.isascii() and digits.isdigit()):
        return None
    digits = digits.lstrip("0") or "0"
    if not _is_id(digits) or (text[0] == "-" and digits != "0"):
        raise UsageError(f"the id {text[:20]} is not between 0 and {MAX_ID}")
    return int(digits)


def _read(image: Image, path: str) -> bytes:
    """Return a whole small file of the image; empty if it is not there or is no file."""
    try:
        stat = image.stat(path)
    except NotFoundError:
        return b""
    if not stat.is_file:
        return b""
    if stat.size > MAX_FILE_BYTES:
        raise FormatError(f"{path} of the image has {stat.size} bytes, more than {MAX_FILE_BYTES}")
    return image.pread(stat, 0, stat.size)
