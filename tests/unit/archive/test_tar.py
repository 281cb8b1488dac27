"""The tar walker against tarfile, and the archives that only hostile or odd tools make."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import layers
from tests.support.layers import Item, tar_bytes

from lamina.archive.blocks import BlockReader
from lamina.archive.tar import Entry, walk
from lamina.errors import Error, FormatError, UnsupportedError

MAX_OLD_ID = 0o7777777
names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)
paths = st.lists(names, min_size=1, max_size=6).map("/".join)


@st.composite
def items(draw: st.DrawFn) -> Item:
    kind = draw(
        st.sampled_from(
            (layers.FILE, layers.DIRECTORY, layers.SYMLINK, layers.CHARACTER, layers.FIFO)
        )
    )
    return Item(
        path=draw(paths),
        data=draw(st.binary(max_size=1500)) if kind == layers.FILE else b"",
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 0xFFFFFFFF)),
        gid=draw(st.integers(0, MAX_OLD_ID)),
        mtime=draw(st.integers(0, 1 << 40)),
        link=draw(paths) if kind == layers.SYMLINK else "",
        device=draw(st.tuples(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF)))
        if kind == layers.CHARACTER
        else (0, 0),
    )


def walk_all(data: bytes, block_bytes: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    """Entries with their data, read in blocks of any size."""
    stream = io.BytesIO(data)
    reader = BlockReader(lambda: stream.read(block_bytes))
    return [(entry, b"".join(reader.pieces(entry.size))) for entry in walk(reader)]


def raw_header(**fields: bytes) -> bytearray:
    """One ustar header of a file without content, fields replaced by offset name."""
    places = {"mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136, "flag": 156}
    places |= {"link": 157, "magic": 257, "major": 329, "minor": 337, "prefix": 345, "name": 0}
    header = bytearray(layers.tar_bytes([Item("file")], tarfile.USTAR_FORMAT)[:512])
    for name, value in fields.items():
        header[places[name] : places[name] + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return header


def first(header: bytes, data: bytes = b"") -> Entry:
    """The first entry of an archive that begins with this header."""
    return walk_all(bytes(header) + data + bytes(1024))[0][0]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(items(), max_size=8),
    st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)),
    st.integers(1, 3000),
)
def test_walker_sees_what_tarfile_sees(
    content: list[Item], tar_format: int, block_bytes: int
) -> None:
    data = tar_bytes(content, tar_format)
    found = walk_all(data, block_bytes)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        assert len(found) == len(members) == len(content)
        for (entry, content_bytes), member in zip(found, members, strict=True):
            file = archive.extractfile(member) if member.isfile() else None
            assert content_bytes == (file.read() if file else b"")
            assert entry.path == member.name.strip("/").encode("utf-8", "surrogateescape")
            assert bytes([entry.kind]) == member.type
            assert (entry.mode, entry.uid, entry.gid) == (member.mode, member.uid, member.gid)
            assert (entry.mtime, entry.mtime_ns) == (int(member.mtime), 0)
            assert entry.data_offset == member.offset_data
            if member.issym():
                assert entry.link == member.linkname.encode()
            if member.ischr():
                device = entry.device_major, entry.device_minor
                assert device == (member.devmajor, member.devminor)


@settings(max_examples=200, deadline=None)
@given(st.lists(items(), min_size=1, max_size=3), st.data())
def test_damage_ends_in_one_of_our_errors(content: list[Item], data: st.DataObject) -> None:
    archive = bytearray(tar_bytes(content))
    position = data.draw(st.integers(0, len(archive) - 1))
    archive[position] = data.draw(st.integers(0, 255))
    try:
        walk_all(bytes(archive[: data.draw(st.integers(0, len(archive)))]))
    except Error as error:
        assert str(error)


def test_names_long_enough_for_every_extension() -> None:
    long = "/".join(["d" * 120] * 5) + "/file"
    for tar_format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        content = [Item(long, b"x"), layers.symlink("link", long), layers.hard_link("hard", long)]
        found = [entry for entry, _ in walk_all(tar_bytes(content, tar_format))]
        assert [entry.path for entry in found] == [long.encode(), b"link", b"hard"]
        assert [entry.link for entry in found] == [b"", long.encode(), long.encode()]


def test_ustar_prefix_is_joined() -> None:
    path = "p" * 100 + "/" + "n" * 90
    assert walk_all(tar_bytes([Item(path)], tarfile.USTAR_FORMAT))[0][0].path == path.encode()


def test_xattrs_of_both_forms() -> None:
    info = Item("file").info()
    info.pax_headers = {
        "SCHILY.xattr.user.both": "raw",
        "LIBARCHIVE.xattr.user.both": "b3RoZXI",
        "LIBARCHIVE.xattr.user.100%25": "AAEC",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    [(entry, _)] = walk_all(buffer.getvalue())
    assert entry.xattrs == {b"user.both": b"raw", b"user.100%": b"\0\1\2"}


def test_global_headers_are_passed_over() -> None:
    """As containerd, podman and umoci do, whatever is in them (docs/adr/0015)."""
    records = (
        b"12 gid=4321\n" + b"14 mtime=77.5\n" + b"13 path=evil\n" + b"23 GNU.sparse.size=999\n"
    )
    records += b"29 SCHILY.xattr.user.a=bcdef\n"
    header = raw_header(flag=b"g", size=b"%011o\0" % len(records))
    item = Item("a", gid=7, mtime=5)
    archive = bytes(header) + records.ljust(512, b"\0") + tar_bytes([item])
    [(entry, _)] = walk_all(archive)
    assert (entry.path, entry.gid, entry.mtime, entry.mtime_ns) == (b"a", 7, 5, 0)
    assert not entry.xattrs
    long = Item("d" * 120, gid=MAX_OLD_ID + 9)
    [(entry, _)] = walk_all(bytes(header) + records.ljust(512, b"\0") + tar_bytes([long]))
    assert (entry.path, entry.gid) == (b"d" * 120, MAX_OLD_ID + 9)
    assert walk_all(bytes(header) + records.ljust(512, b"\0") + bytes(1024)) == []


def test_records_are_not_too_many() -> None:
    data = b"".join(b"10 k%04d=\n" % number for number in range(1025))
    header = raw_header(flag=b"x", size=b"%011o\0" % len(data))
    archive = bytes(header) + data.ljust(-(-len(data) // 512) * 512, b"\0")
    with pytest.raises(FormatError, match="too large together"):
        walk_all(archive + tar_bytes([Item("a")]))


def test_extended_headers_do_not_pile_up() -> None:
    """None of them is too large, all before one entry are."""

    def record(number: int) -> bytes:
        text = b" k%d=%s\n" % (number, b"v" * 400_000)
        return b"%d%s" % (len(text) + 6, text)

    archive = b""
    for number in range(4):
        data = record(number)
        header = raw_header(flag=b"x", size=b"%011o\0" % len(data))
        archive += bytes(header) + data.ljust(-(-len(data) // 512) * 512, b"\0")
    with pytest.raises(FormatError, match="too large together"):
        walk_all(archive + tar_bytes([Item("a")]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"12.5", (12, 500_000_000)),
        (b"12", (12, 0)),
        (b"1.1234567899", (1, 123_456_789)),
        (b"-1.5", (-2, 500_000_000)),
        (b"-0.0000000001", (-1, 999_999_999)),
        (b".5", (0, 500_000_000)),
    ],
)
def test_times_below_a_second(text: bytes, expected: tuple[int, int]) -> None:
    record = b"mtime=" + text + b"\n"
    size = len(record) + 3
    body = b"%d " % size + record
    header = raw_header(flag=b"x", size=b"%011o\0" % len(body))
    archive = bytes(header) + body.ljust(512, b"\0") + tar_bytes([Item("file")])
    [(entry, _)] = walk_all(archive)
    assert (entry.mtime, entry.mtime_ns) == expected


@st.composite
def odd_number(draw: st.DrawFn, size: int, values: st.SearchStrategy[int]) -> bytes:
    """A number field as some writer might fill it."""
    value = draw(values)
    if value < 0 or draw(st.booleans()):
        lead = b"\xff" if value < 0 else b"\x80"
        return lead + (value % (1 << 8 * (size - 1))).to_bytes(size - 1, "big")
    text = b"%o" % value
    text = draw(st.sampled_from((text, text.rjust(size - 1, b"0"), text.rjust(size - 1))))
    end = draw(st.sampled_from((b"", b"\0", b" ", b" \0", b"\0junk!!")))
    field = (text + end)[:size]
    return field.ljust(size, b"\0") if len(field) < size else field


SMALL = st.integers(0, 0o777777)


@settings(max_examples=400, deadline=None)
@given(
    odd_number(8, st.integers(0, 0o7777)),
    odd_number(8, SMALL),
    odd_number(8, SMALL),
    odd_number(12, st.integers(0, 1500)),
    odd_number(12, st.integers(-100_000, 1 << 32)),
    st.sampled_from((b"ustar\x0000", b"ustar  \0", bytes(8), b"whatever")),
    st.sampled_from((b"name", b"n\0behind", b"\xc3\xa9", b"\xff\xfe", b"a" * 100)),
    st.binary(max_size=3),
)
def test_odd_headers_are_read_as_tarfile_reads_them(
    mode: bytes,
    uid: bytes,
    gid: bytes,
    size: bytes,
    mtime: bytes,
    magic: bytes,
    name: bytes,
    owner: bytes,
) -> None:
    fields = {"mode": mode, "uid": uid, "gid": gid, "size": size, "mtime": mtime, "magic": magic}
    header = raw_header(name=name.ljust(100, b"\0"), **fields)
    header[265 : 265 + len(owner)] = owner
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + b"d" * 1536
    data = data[: 512 + -(-tarfile.nti(size) // 512) * 512] + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        [member] = archive
    [(entry, content)] = walk_all(data)
    assert entry.path == member.name.encode("utf-8", "surrogateescape")
    assert (entry.mode, entry.uid, entry.gid) == (member.mode & 0o7777, member.uid, member.gid)
    assert (entry.size, entry.mtime) == (member.size, member.mtime)
    assert content == b"d" * member.size


def test_numbers_in_base_256_and_empty_fields() -> None:
    big = b"\x80" + (1 << 33).to_bytes(11, "big")
    past = b"\xff" * 4 + (-5).to_bytes(8, "big", signed=True)
    assert first(raw_header(mtime=big)).mtime == 1 << 33
    assert first(raw_header(mtime=past)).mtime == -5
    assert first(raw_header(mode=b" 644 \0\0\0")).mode == 0o644
    fifo = first(raw_header(flag=b"6", major=b"\0" * 8, minor=b"\0" * 8, mode=b"\0" * 8))
    assert (fifo.device_major, fifo.device_minor, fifo.mode) == (0, 0, 0)


def test_old_directory_and_contiguous_file() -> None:
    old = raw_header(name=b"dir/\0", flag=b"\0", magic=b"\0" * 8)
    assert bytes([first(old).kind]) == tarfile.DIRTYPE
    assert bytes([first(raw_header(flag=b"7")).kind]) == tarfile.REGTYPE


def test_signed_checksum_of_old_writers() -> None:
    header = raw_header(name=b"\xe9t\xe9\0")
    header[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in header)
    header[148:156] = b"%06o\0 " % signed
    assert first(header).path == b"\xe9t\xe9"


@pytest.mark.parametrize("path", ["../up", "a/../../b", "/..", "a/..", "x/../..", "../a"])
def test_paths_that_lead_upwards_are_refused(path: str) -> None:
    with pytest.raises(FormatError, match="leads upwards"):
        walk_all(tar_bytes([Item(path)]))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("./a/b", b"a/b"),
        ("/a//b/", b"a/b"),
        ("./", b""),
        ("a/./b", b"a/b"),
        (".x/.y", b".x/.y"),
        ("a/../b", b"b"),
        ("/a/b/../../c/./d/..", b"c"),
        ("..a/b../...", b"..a/b../..."),
    ],
)
def test_paths_are_normalised(path: str, expected: bytes) -> None:
    assert walk_all(tar_bytes([layers.folder(path)]))[0][0].path == expected


@pytest.mark.parametrize(("target", "expected"), [("x/../f", b"f"), ("../f", None)])
def test_targets_of_hard_links_are_cleaned_too(target: str, expected: bytes | None) -> None:
    archive = tar_bytes([Item("f"), layers.hard_link("h", target)])
    if expected is None:
        with pytest.raises(FormatError, match="leads upwards"):
            walk_all(archive)
    else:
        assert walk_all(archive)[1][0].link == expected


def test_sparse_files_are_refused_where_nobody_asks_for_them() -> None:
    with pytest.raises(UnsupportedError, match="sparse"):
        first(raw_header(flag=b"S"))
    info = Item("file").info()
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    with pytest.raises(UnsupportedError, match="sparse"):
        walk_all(buffer.getvalue())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (raw_header(size=b"\xff" * 12), "impossible size"),
        (raw_header(uid=b"\x80" + b"\x7f" * 7), "impossible user id"),
        (raw_header(size=b"zzz\0"), "not a number"),
        (raw_header(name=b"./\0", flag=b"0"), "root of the tree"),
        (raw_header(flag=b"2"), "no target"),
        (raw_header(flag=b"L", size=b"77777777777\0"), "claims"),
        (raw_header(flag=b"x", size=b"%011o\0" % 0), "before its entry"),
        (raw_header(flag=b"3", major=b"0777777\0"), "major device"),
        (raw_header(name=b"n" * 100), None),
    ],
)
def test_headers_that_cannot_be(header: bytearray, message: str | None) -> None:
    if message is None:
        assert len(first(header).path) == 100
    else:
        with pytest.raises(FormatError, match=message):
            walk_all(bytes(header) + bytes(1024))


def test_unknown_types_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="of type b'M'"):
        first(raw_header(flag=b"M"))


def test_damaged_checksum_is_found() -> None:
    header = raw_header()
    header[0] ^= 1
    with pytest.raises(FormatError, match="checksum"):
        first(header)


def test_truncation_is_found_wherever_it_is() -> None:
    data = tar_bytes([Item("file", b"x" * 700)])
    for length in (1, 511, 513, 512 + 699, 1536 + 511):
        with pytest.raises(FormatError, match="ends"):
            walk_all(data[:length])
    # Some tools leave the end mark out, umoci insert also what fills up the last block.
    for length in (512 + 700, 1024 + 511, 1536):
        for block_bytes in (1, 100, 1 << 20):
            [(entry, content)] = walk_all(data[:length], block_bytes)
            assert (entry.size, content) == (700, b"x" * 700)
    assert walk_all(b"") == []


def test_only_the_last_block_may_be_short() -> None:
    data = tar_bytes([Item("file", b"x" * 700), Item("next", b"y" * 700)])
    with pytest.raises(FormatError, match="damaged"):
        walk_all(data[: 512 + 700] + data[1536:])


def test_a_lone_zero_block_is_no_end() -> None:
    data = tar_bytes([Item("file")])[:512]
    assert len(walk_all(data + bytes(512))) == 1
    with pytest.raises(FormatError, match="lone zero block"):
        walk_all(data + bytes(512) + data)


def test_names_longer_than_linux_has() -> None:
    with pytest.raises(FormatError, match="name length"):
        walk_all(tar_bytes([Item("d/" + "n" * 256)]))
    with pytest.raises(FormatError, match="path length"):
        walk_all(tar_bytes([Item("/".join(["d" * 200] * 25))]))


def test_unread_data_is_skipped() -> None:
    data = tar_bytes([Item("a", b"x" * 5000), Item("b", b"y")])
    reader = BlockReader.over(data)
    assert [entry.path for entry in walk(reader)] == [b"a", b"b"]


@pytest.mark.parametrize("data", [b"#!/bin/sh\n" * 200, b'{"a":1}', bytes(range(256)) * 40])
def test_what_is_no_tar_archive_is_said_to_be_none(data: bytes) -> None:
    """It came whole, so nobody is told to fetch it again."""
    with pytest.raises(FormatError, match="no tar archive") as failure:
        walk_all(data)
    assert "again" not in str(failure.value.hint)
