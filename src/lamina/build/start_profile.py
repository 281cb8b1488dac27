"""A start profile: which pages of which files a start reads, in the order in which it does.

It is text that a person can read, edit and keep beside the source of an image::

    # lamina start profile 1
    # command: ["node","-v"]
    # metadata: 0-1,17,130
    0-3,17,40-63 /usr/local/bin/node
    0-1 /lib/x86_64-linux-gnu/libc.so.6
    * /etc/passwd

A line has pages of 4 KiB and a path, in which a line feed or backslash is written ``\\n`` or
``\\\\``.  ``*`` is the whole file.  Lines that begin with ``#`` are comments but for the command,
and the pages of the image's metadata that a kernel read, which are those of the build that was
recorded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final, NamedTuple

import msgspec

from lamina.errors import FormatError

TITLE: Final = "# lamina start profile 1"
REGION_PAGES: Final = 64
"""A line has the pages of about so much of a file (256 KiB) that was read at about the same time.
"""
MAX_LINES: Final = 1 << 18
_COMMAND: Final = "# command: "
_METADATA: Final = "# metadata: "
_SPAN: Final = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
MAX_PAGE: Final = 1 << 28


class ProfileLine(NamedTuple):
    """Some pages of a file, as (first, behind the last) ascending; none means all of them."""

    path: bytes
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def page_count(self) -> int:
        """Return how many pages; 0 if it is the whole file."""
        return sum(stop - first for first, stop in self.spans)


class Profile(NamedTuple):
    """What a start of ``command`` reads."""

    lines: tuple[ProfileLine, ...]
    command: tuple[str, ...] = ()
    metadata: tuple[tuple[int, int], ...] = ()
    """Pages of the bootstrap, as those of a line."""


def profile_of(pages: Iterable[tuple[bytes, int]], command: Sequence[str] = ()) -> Profile:
    """Return the profile of (path, page) in the order of first touch, each once or more."""
    regions: dict[tuple[bytes, int], set[int]] = {}
    for path, page in pages:
        regions.setdefault((path, page // REGION_PAGES), set()).add(page)
    lines = []
    for path, group in groupby(regions.items(), key=lambda item: item[0][0]):
        found = sorted(page for _, region in group for page in region)
        lines.append(ProfileLine(path, spans_of(found)))
    return Profile(tuple(lines), tuple(command))


def merged(profiles: Sequence[Profile]) -> Profile:
    """Return one profile with the pages of all of them, in the order of the first that has each."""
    pages = (
        (line.path, page)
        for profile in profiles
        for line in profile.lines
        for first, stop in line.spans
        for page in range(first, stop)
    )
    metadata = {
        page
        for profile in profiles
        for first, stop in profile.metadata
        for page in range(first, stop)
    }
    found = profile_of(pages, profiles[0].command)
    return found._replace(metadata=spans_of(sorted(metadata)))


def spans_of(pages: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Join ascending numbers into (first, behind the last)."""
    spans: list[tuple[int, int]] = []
    for page in pages:
        if spans and spans[-1][1] == page:
            spans[-1] = spans[-1][0], page + 1
        else:
            spans.append((page, page + 1))
    return tuple(spans)


def encode_profile(profile: Profile) -> str:
    """Return the text."""
    lines = [TITLE, _COMMAND + msgspec.json.encode(list(profile.command)).decode()]
    if profile.metadata:
        lines.append(_METADATA + _shown_spans(profile.metadata))
    lines += [f"{_shown_spans(line.spans)} {_shown_path(line.path)}" for line in profile.lines]
    return "\n".join(lines) + "\n"


def decode_profile(text: str) -> Profile:
    """Read the text.  Raises FormatError that names the line."""
    command: tuple[str, ...] = ()
    metadata: tuple[tuple[int, int], ...] = ()
    lines = []
    rows = text.split("\n")
    if not rows or rows[0].strip() != TITLE:
        raise FormatError(f"this is no start profile: it does not begin with {TITLE!r}")
    if len(rows) > MAX_LINES:
        raise FormatError(f"the start profile has more than {MAX_LINES} lines")
    for number, row in enumerate(rows, 1):
        if row.startswith(_COMMAND):
            try:
                command = msgspec.json.decode(row[len(_COMMAND) :], type=tuple[str, ...])
            except msgspec.DecodeError as error:
                raise FormatError(f"line {number} of the start profile: {error}") from error
        elif row.startswith(_METADATA):
            metadata = _spans(number, row.removeprefix(_METADATA).strip())
        elif row.strip() and not row.startswith("#"):
            lines.append(_line(number, row))
    return Profile(tuple(lines), command, metadata)


def _line(number: int, row: str) -> ProfileLine:
    spans, _, path = row.partition(" ")
    if not path.startswith("/"):
        raise FormatError(f"line {number} of the start profile has no absolute path")
    name = re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], path)
    return ProfileLine(os.fsencode(name), () if spans == "*" else _spans(number, spans))


def _spans(number: int, text: str) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        span = _SPAN.fullmatch(part)
        first = int(span[1]) if span else 0
        stop = int(span[2] or span[1]) + 1 if span else 0
        if not first < stop <= MAX_PAGE or (found and first < found[-1][1]):
            raise FormatError(f"line {number} of the start profile has no pages as 0-3,17")
        found.append((first, stop))
    return tuple(found)


def _shown_spans(spans: Sequence[tuple[int, int]]) -> str:
    return (
        ",".join(
            str(first) if stop == first + 1 else f"{first}-{stop - 1}" for first, stop in spans
        )
        or "*"
    )


def _shown_path(path: bytes) -> str:
    return os.fsdecode(path).replace("\\", "\\\\").replace("\n", "\\n")
