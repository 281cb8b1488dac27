"""Opening an image and reading one file costs the same for a hundred times as many files.

Operations are counted, not timed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.native_images import build_image, push_image
from tests.support.opening import open_image

from lamina.erofs.reader import Bootstrap


@contextmanager
def counting_calls(counts: list[int]) -> Iterator[None]:
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
        counts.append(calls)


def test_a_large_image_opens_like_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inodes: list[int] = []
    decode = Bootstrap.inode

    def counted(self: Bootstrap, nid: int) -> object:
        inodes.append(nid)
        return decode(self, nid)

    monkeypatch.setattr(Bootstrap, "inode", counted)
    calls: list[int] = []
    decoded: list[int] = []
    for number in (100, 10_000):
        # Files of one size and directories of one size, so that packs are alike.
        files = {b"d%03d/f%05d" % (n // 100, n): b"%05d" % n * 100 for n in range(number)}
        layout = tmp_path / str(number)
        push_image(build_image(files, chunk_size=1 << 16, pack_size=1 << 14), layout)
        reference = f"oci:{layout}:latest"
        with open_image(reference, store=tmp_path / "store") as image:
            # Makes the cache file.
            image.open("d000/f00001").read()
        inodes.clear()
        with counting_calls(calls), open_image(reference, store=tmp_path / "store") as image:
            assert image.open("d000/f00050").read() == b"00050" * 100
        decoded.append(len(inodes))
    assert decoded[0] == decoded[1] < 10
    small, large = calls
    assert large < small * 1.5, calls
