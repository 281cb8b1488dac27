"""What an image may describe is bounded in sum, in one layer or in many, and so is memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.layers import oci_layout

from lamina.archive.tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK, Entry
from lamina.archive.tar_writer import END_MARK, encode_entry
from lamina.build import budget
from lamina.build.budget import Budget
from lamina.build.convert import convert
from lamina.build.index import index_image
from lamina.build.options import ConvertOptions
from lamina.build.source_image import open_source_image
from lamina.errors import UnsupportedError
from lamina.oci.reference import parse_reference

MEASURE = r"""
import re, resource, sys
from lamina.cli import main
code = main(sys.argv[1:])
# Not ru_maxrss of this process, which counts what the test runner had before exec.  Of all
# processes together it was not more: there is one for the trees, or one for each of two layers.
own = int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1])
children = 1 if sys.argv[1] == "convert" else 2
print("PEAK", own + children * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
sys.exit(code)
"""
MOST_MIB = 800


def header(
    path: str, kind: int = REGULAR, link: bytes = b"", xattrs: dict[bytes, bytes] | None = None
) -> bytes:
    return encode_entry(
        Entry(path.encode(), kind, 0o755, 0, 0, 1, 0, 0, link, 0, 0, xattrs or {}, 0)
    )


def large_attributes(layer: int, count: int) -> Iterator[bytes]:
    """Files of 240 KiB of attributes each, no two alike."""
    for number in range(count):
        start = b"%d %d " % (layer, number)
        yield header(
            f"{layer}-{number}",
            xattrs={b"user.%d" % i: start.ljust(60_000, b"v") for i in range(4)},
        )


def many_attributes(layer: int, count: int) -> Iterator[bytes]:
    """Files of a thousand attributes of nothing."""
    for number in range(count):
        start = b"user.%d.%d." % (layer, number)
        yield header(f"{layer}-{number}", xattrs={start + b"%d" % i: b"" for i in range(1000)})


def deep_paths(layer: int, count: int) -> Iterator[bytes]:
    """Files below nineteen hundred folders of their own, which nothing describes."""
    for number in range(count):
        yield header(f"{layer}-{number}/" + "a/" * 1900 + "f")


def long_targets(layer: int, count: int) -> Iterator[bytes]:
    for number in range(count):
        yield header(f"{layer}-{number}", SYMLINK, b"%d" % number + b"t" * 4000)


def files(layer: int, count: int) -> Iterator[bytes]:
    for number in range(count):
        yield header(f"{layer}/{number}")


def one_byte_files(layer: int, count: int) -> Iterator[bytes]:
    for number in range(count):
        entry = Entry(b"%d/%d" % (layer, number), REGULAR, 0o644, 0, 0, 1, 0, 3, b"", 0, 0, {}, 0)
        yield encode_entry(entry) + (layer << 16 | number).to_bytes(3, "big").ljust(512, b"\0")


def equal_attributes(layer: int, count: int) -> Iterator[bytes]:
    """Every inode has its own copy of 120 KiB."""
    xattrs = {b"user.%d" % i: b"v" * 60_000 for i in range(2)}
    for number in range(count):
        yield header(f"{layer}-{number}", xattrs=xattrs)


def folders(layer: int, count: int) -> Iterator[bytes]:
    for number in range(count):
        yield header(f"{layer}-{number}", DIRECTORY)


def hard_links(layer: int, count: int) -> Iterator[bytes]:
    yield header(f"{layer}-file")
    for number in range(count):
        yield header(f"{layer}-{number}", HARD_LINK, b"%d-file" % layer)


Shape = Callable[[int, int], Iterator[bytes]]


def image(folder: Path, shape: Shape, counts: list[int]) -> str:
    layers = [b"".join(shape(layer, count)) + END_MARK for layer, count in enumerate(counts)]
    return oci_layout(folder / "source", layers, "zstd")


def converted(reference: str, folder: Path) -> None:
    target = parse_reference(f"oci:{folder / 'native'}:a")
    convert(parse_reference(reference), target, ConvertOptions(jobs=2))


def indexed(reference: str, _folder: Path) -> None:
    index_image(parse_reference(reference))


def compared(reference: str, _folder: Path) -> None:
    open_source_image(parse_reference(reference)).close()


@pytest.mark.parametrize("verb", [converted, indexed, compared])
@pytest.mark.parametrize(
    ("shape", "count", "name", "most"),
    [
        (files, 1500, "MAX_ENTRIES", 4000),
        (hard_links, 1500, "MAX_ENTRIES", 4000),
        (folders, 1500, "MAX_MEMORY_BYTES", 4_500_000),
        (long_targets, 300, "MAX_TEXT_BYTES", 12_000_000),
        (many_attributes, 12, "MAX_TEXT_BYTES", 8_000_000),
        (large_attributes, 12, "MAX_TEXT_BYTES", 28_000_000),
        (equal_attributes, 12, "MAX_TEXT_BYTES", 8_000_000),
        (deep_paths, 2, "MAX_ENTRIES", 10_000),
        (deep_paths, 2, "MAX_MEMORY_BYTES", 11_500_000),
        (files, 1500, "MAX_MEMORY_BYTES", 800_000),
        (one_byte_files, 1500, "MAX_MEMORY_BYTES", 1_600_000),
    ],
)
def test_sums_over_all_layers_are_bounded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: Callable[[str, Path], None],
    shape: Shape,
    count: int,
    name: str,
    most: int,
) -> None:
    """Two layers of *count* are right, three are too much."""
    monkeypatch.setattr(budget, name, most)
    verb(image(tmp_path / "right", shape, [count] * 2), tmp_path / "right")
    with pytest.raises(UnsupportedError, match=r"layers of the image have more .* together"):
        verb(image(tmp_path / "much", shape, [count] * 3), tmp_path / "much")


def test_equal_attributes_are_counted_and_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a label of SELinux on every file."""
    # For each set and its name it would be over 700 bytes, and is 180.
    monkeypatch.setattr(budget, "MAX_TEXT_BYTES", 400_000)
    label = {b"security.selinux": b"system_u:object_r:container_file_t:s0"}
    layer = b"".join(header(f"{number}", xattrs=label) for number in range(2000)) + END_MARK
    reference = oci_layout(tmp_path / "source", [layer], "zstd")
    converted(reference, tmp_path)
    with closing(open_source_image(parse_reference(reference))) as opened:
        nodes = opened._nodes[1:]
        assert len(nodes) == 2000
        assert {id(node.xattrs) for node in nodes} == {id(nodes[0].xattrs)}


@pytest.mark.parametrize("verb", [converted, indexed, compared])
def test_the_ways_that_links_lead_are_bounded_in_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: Callable[[str, Path], None]
) -> None:
    """Else ten kilobytes are hours: every entry goes thousands of names to and fro."""

    def layer(count: int) -> bytes:
        way = header("d", DIRECTORY) + header("l", SYMLINK, b"d/../" * 400 + b"d")
        names = [header(f"l/{number}/f") for number in range(count)]
        links = [header(f"h{number}", HARD_LINK, b"l/0/f") for number in range(count)]
        return b"".join((way, *names, *links, END_MARK))

    monkeypatch.setattr(budget, "MAX_LINK_PARTS", 801 * 20)
    (tmp_path / "right").mkdir()
    (tmp_path / "much").mkdir()
    verb(oci_layout(tmp_path / "right" / "source", [layer(10)], "zstd"), tmp_path / "right")
    with pytest.raises(UnsupportedError, match=r"more than 16020 parts of link targets"):
        verb(oci_layout(tmp_path / "much" / "source", [layer(11)], "zstd"), tmp_path / "much")


@pytest.mark.parametrize(
    ("folders", "are_right"), [(100_000, True), (150_000, True), (400_000, False)]
)
def test_a_million_files_have_folders(folders: int, are_right: bool) -> None:
    """Trees of Node packages have one folder for seven to ten files."""
    with closing(Budget()) as sums:
        share = sums.share()
        names = budget.text_bytes(b"usr/lib/node_modules/package/some-name.js", b"")
        share.add_chunks(1_000_000)
        share.add(999_999, 999_999 * names)
        if are_right:
            share.add(folders, folders * names, folders)
            share.flush()
        else:
            with pytest.raises(UnsupportedError, match="layers of the image have more"):
                share.add(folders, folders * names, folders)


def test_shares_of_other_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_ENTRIES", 1000)
    with closing(Budget(2)) as sums:
        pid = os.fork()
        if not pid:
            sums.share(1).add(900, 0)
            os._exit(0)
        os.waitpid(pid, 0)
        own = sums.share(0)
        own.add(100, 0)
        own.flush()
        own.add(1, 0)
        with pytest.raises(UnsupportedError, match="1000 entries"):
            own.flush()


@pytest.mark.parametrize("verb", ["convert", "index"])
@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        (large_attributes, [900]),
        (large_attributes, [230] * 4),
        (equal_attributes, [1000]),
        (many_attributes, [1200]),
        (long_targets, [14_000]),
    ],
    ids=["attributes", "attributes in four layers", "equal", "many", "targets"],
)
def test_memory_of_all_processes(
    tmp_path: Path, verb: str, shape: Shape, counts: list[int]
) -> None:
    """Some hundred KiB as compressed, which took over a gigabyte."""
    reference = image(tmp_path, shape, counts)
    words = [verb, reference] + ([f"oci:{tmp_path / 'native'}:a"] if verb == "convert" else [])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == UnsupportedError.exit_code, done.stderr
    assert "192 MiB of names, link targets and extended attributes" in done.stderr
    assert int(done.stdout.split()[-1]) < MOST_MIB
