"""Walking a tree takes memory for its depth and its open hard links, not for its size."""

from __future__ import annotations

import os
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.opened_blobs import OpenedBlobs
from tests.support.rafs import Content, directory, make_image

from lamina.build.layer_tar import write_layer
from lamina.build.unpack import unpack_to_folder
from lamina.content.lazy_image import LazyImage
from lamina.erofs.check import check_bootstrap
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.errors import FormatError
from lamina.image import first_names
from lamina.image.base import Stat
from lamina.image.compare import compare


def opened(entries: dict[bytes, Content]) -> LazyImage:
    return LazyImage(Bootstrap(make_image(entries).bootstrap), OpenedBlobs())


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def wide() -> Iterator[LazyImage]:
    yield opened({b"d/%07d" % number: b"" for number in range(30_000)})


def test_a_wide_directory_is_never_in_memory_as_a_whole(wide: LazyImage) -> None:
    assert peak_bytes(lambda: sum(1 for _ in wide.walk())) < 1 << 20
    assert peak_bytes(lambda: write_layer(wide, len)) < 1 << 20
    assert peak_bytes(lambda: check_bootstrap(wide.bootstrap.view)) < 1 << 20


def test_unpacking_many_folders(tmp_path: Path) -> None:
    names = [b"a" * 250 + b"/%d" % number for number in range(3000)]
    image = opened({name: directory(0o500) for name in names})
    assert peak_bytes(lambda: unpack_to_folder(image, tmp_path / "out")) < 1 << 20
    for name in names:
        assert stat.S_IMODE(os.stat(os.fsencode(tmp_path / "out") + b"/" + name).st_mode) == 0o500


def test_the_order_of_a_walk() -> None:
    image = opened({b"a/z": b"", b"a/b/c": b"", b"a.": b"", b"z": b""})
    assert [path for path, _ in image.walk()] == [
        b"/",
        b"/a",
        b"/a/b",
        b"/a/b/c",
        b"/a/z",
        b"/a.",
        b"/z",
    ]


def test_hard_links_that_cannot_be_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tree(pairs: int) -> LazyImage:
        nodes = [Node(0o100644) for _ in range(pairs)]
        folders = b"one", b"two"
        return opened({b"%s/%d" % (d, n): node for d in folders for n, node in enumerate(nodes)})

    monkeypatch.setattr(first_names, "MAX_BYTES", 100 * 210)
    few, many = tree(90), tree(110)
    write_layer(few, len)
    unpack_to_folder(few, tmp_path / "few")
    assert (tmp_path / "few/one/7").stat().st_ino == (tmp_path / "few/two/7").stat().st_ino
    assert not list(compare(few, few))
    for work in (
        lambda: write_layer(many, len),
        lambda: unpack_to_folder(many, tmp_path / "many"),
        lambda: list(compare(many, many)),
    ):
        with pytest.raises(FormatError, match="more hard links"):
            work()


def test_links_that_are_complete_are_forgotten() -> None:
    names = first_names.FirstNames()
    for number in range(3000):
        first = Stat(b"/a%d" % number, number, 0o100644, 2, 0, 0, 0, 0, 0, 0)
        assert names.of(first) == first.path
        assert names.of(first._replace(path=b"/b")) == first.path
    assert not names._names
