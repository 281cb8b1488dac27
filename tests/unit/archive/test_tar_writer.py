"""Written headers, read back by tarfile and by the walker."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.archive.blocks import BlockReader
from lamina.archive.tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK, Entry, walk
from lamina.archive.tar_writer import END_MARK, encode_entry, padding

names = st.binary(min_size=1, max_size=120).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
paths = st.lists(names, min_size=1, max_size=5).map(b"/".join).filter(lambda path: len(path) < 600)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from((REGULAR, DIRECTORY, SYMLINK, HARD_LINK)))
    xattrs = st.dictionaries(
        names.map(lambda name: b"user." + name.replace(b"=", b"-")[:100]), st.binary(max_size=50)
    )
    return Entry(
        path=draw(paths),
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 0xFFFFFFFF)),
        gid=draw(st.integers(0, 0xFFFFFFFF)),
        mtime=draw(st.integers(-(1 << 40), 1 << 40)),
        mtime_ns=draw(st.sampled_from((0, 1, 500_000_000, 999_999_999))),
        size=draw(st.integers(0, 2000)) if kind == REGULAR else 0,
        link=draw(paths) if kind in (SYMLINK, HARD_LINK) else b"",
        device_major=0,
        device_minor=0,
        xattrs=draw(xattrs),
        data_offset=0,
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(entries(), max_size=6))
def test_round_trip(wanted: list[Entry]) -> None:
    parts = []
    for entry in wanted:
        parts += [encode_entry(entry), bytes(entry.size), padding(entry.size)]
    data = b"".join([*parts, END_MARK])
    found = [entry._replace(data_offset=0) for entry in walk(BlockReader.over(data))]
    assert found == wanted


def test_plain_entries_need_no_pax_header() -> None:
    entry = Entry(b"d/file", REGULAR, 0o4755, 1000, 100, 1_700_000_000, 0, 3, b"", 0, 0, {}, 0)
    assert len(encode_entry(entry)) == 512
    with tarfile.open(fileobj=io.BytesIO(encode_entry(entry) + b"abc".ljust(512, b"\0"))) as tar:
        [member] = tar.getmembers()
    assert (member.name, member.mode, member.uid, member.gid) == ("d/file", 0o4755, 1000, 100)
    assert (member.mtime, member.size) == (1_700_000_000, 3)


def test_tarfile_reads_what_needs_pax() -> None:
    path = "/".join(["ä" * 60] * 4)
    entry = Entry(
        path.encode(), REGULAR, 0o644, 1 << 31, 0, -7, 250_000_000, 9 << 30, b"", 0, 0,
        {b"user.x": b"y\n=z"}, 0,
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(encode_entry(entry)), mode="r|") as tar:
        member = tar.next()
    assert member is not None
    assert (member.name, member.uid, member.size) == (path, 1 << 31, 9 << 30)
    assert member.mtime == -6.75
    assert member.pax_headers["SCHILY.xattr.user.x"] == "y\n=z"


def test_record_length_that_grows_by_its_own_digits() -> None:
    for size in range(85, 105):
        entry = Entry(b"f", REGULAR, 0, 0, 0, 0, 0, 0, b"", 0, 0, {b"user.x": b"v" * size}, 0)
        [found] = walk(BlockReader.over(encode_entry(entry)))
        assert found.xattrs == {b"user.x": b"v" * size}
