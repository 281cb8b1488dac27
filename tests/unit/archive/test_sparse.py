"""GNU tar's sparse files in all four forms, made by tar itself, and maps that cannot be."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.support.layers import Item
from tests.support.tools import require_tool
from tests.unit.archive.test_tar import raw_header

from lamina.archive.blocks import BlockReader
from lamina.archive.tar import walk
from lamina.errors import FormatError, UnsupportedError

FORMS = ("old", "0.0", "0.1", "1.0")


def files() -> dict[str, bytes]:
    """Contents with holes at the beginning, in the middle, at the end, everywhere, and in no
    place.
    """
    many = bytearray(40 * 20_000)
    for number in range(40):
        many[number * 20_000 : number * 20_000 + 900] = b"%03d" % number * 300
    return {
        "all-hole": bytes(300_000),
        "begin": bytes(1 << 20) + b"B" * 5000,
        "d" * 110: bytes(70_000) + b"long name",
        "end": b"A" * 4096 + bytes(200_000),
        "many": bytes(many),
        "plain": b"plain\n",
    }


def sparse_tar(folder: Path, form: str) -> bytes:
    """The files as GNU tar stores them."""
    require_tool("tar")
    for name, content in files().items():
        with open(folder / name, "wb") as file:
            for start in range(0, len(content), 4096):
                part = content[start : start + 4096]
                if part.strip(b"\0"):
                    file.seek(start)
                    file.write(part)
            file.truncate(len(content))
    how = ["--format=gnu"] if form == "old" else ["--format=pax", f"--sparse-version={form}"]
    command = ["tar", "-C", folder, "--sparse", "--hole-detection=raw", *how, "--sort=name"]
    return subprocess.run(
        [*command, "-cf", "-", *sorted(files())], check=True, capture_output=True, timeout=60
    ).stdout


def expanded(data: bytes) -> dict[str, bytes]:
    """The files of an archive as the walker describes them."""
    reader = BlockReader.over(data)
    found = {}
    for entry in walk(reader, with_sparse=True):
        content = bytearray(entry.size)
        for offset, size in entry.segments if entry.segments is not None else [(0, entry.size)]:
            content[offset : offset + size] = b"".join(reader.pieces(size))
        found[entry.path.decode()] = bytes(content)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_sparse_files_are_what_they_were(form: str, tmp_path: Path) -> None:
    data = sparse_tar(tmp_path, form)
    assert len(data) < 300_000
    assert expanded(data) == files()


@pytest.mark.parametrize("form", FORMS)
def test_data_that_nobody_reads_is_skipped(form: str, tmp_path: Path) -> None:
    data = sparse_tar(tmp_path, form)
    names = [entry.path.decode() for entry in walk(BlockReader.over(data), with_sparse=True)]
    assert names == sorted(files())
    with pytest.raises(UnsupportedError, match="sparse"):
        list(walk(BlockReader.over(data)))


def pax(records: dict[str, str], data: bytes = b"") -> bytes:
    """An archive with one file and these records."""
    info = Item("file", data).info()
    info.pax_headers = records
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def version_0(size: int, numbers: str, **more: str) -> dict[str, str]:
    extra = {f"GNU.sparse.{name}": value for name, value in more.items()}
    return {"GNU.sparse.size": str(size), "GNU.sparse.map": numbers, **extra}


@pytest.mark.parametrize(
    ("numbers", "size"),
    [
        ("0,2,1,2", 9),  # overlap
        ("4,2,0,2", 9),  # not in order
        ("6,4", 9),  # beyond the end
        ("0,3", 9),  # less than what is stored
        ("0,5", 9),  # more than what is stored
        ("0,4,9", 9),  # half a pair
        ("-1,4", 9),
        ("0,4", 1 << 50),
        ("0," + "4" * 21, 9),
        (",", 9),
    ],
)
def test_maps_that_cannot_be(numbers: str, size: int) -> None:
    assert expanded(pax(version_0(9, "0,2,5,2"), b"abcd")) == {"file": b"ab\0\0\0cd\0\0"}
    with pytest.raises(FormatError, match=r"malformed|impossible size"):
        expanded(pax(version_0(size, numbers), b"abcd"))


def test_the_number_of_pairs_must_be_right() -> None:
    with pytest.raises(FormatError, match="malformed"):
        expanded(pax(version_0(9, "0,4", numblocks="2"), b"abcd"))


@pytest.mark.parametrize("text", [b"2\n0\n4\n", b"x\n", b"9" * 512, b"999999\n", b"-1\n"])
def test_maps_before_the_data_that_cannot_be(text: bytes) -> None:
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    good = expanded(pax(records, b"1\n5\n4\n".ljust(512, b"\0") + b"abcd"))
    assert good == {"file": b"\0\0\0\0\0abcd"}
    with pytest.raises(FormatError, match="malformed"):
        expanded(pax(records, text.ljust(512, b"\0") + b"abcd"))


def test_versions_and_sizes_that_nobody_knows() -> None:
    with pytest.raises(UnsupportedError, match="unknown version"):
        expanded(pax(version_0(9, "0,4", major="2", minor="0"), b"abcd"))
    with pytest.raises(FormatError, match="does not tell its size"):
        expanded(pax({"GNU.sparse.map": "0,4"}, b"abcd"))


def test_an_old_map_that_does_not_end() -> None:
    header = raw_header(flag=b"S")
    header[482], header[483:495] = 1, b"%011o\0" % 5
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = bytes(504) + b"\1" + bytes(7)
    for count in (0, 3, 3000):
        with pytest.raises(FormatError, match="too long, or the archive ends"):
            expanded(bytes(header) + block * count)


def test_a_folder_cannot_be_sparse() -> None:
    with pytest.raises(FormatError, match="sparse and no file"):
        data = pax(version_0(9, "0,4"), b"")
        expanded(data[:1024] + bytes(raw_header(flag=b"5")) + bytes(1024))
