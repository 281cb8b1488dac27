"""Readahead over a sysfs of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.serve.readahead import LAZY_KIB, lazy_readahead_kib, shorten_readahead


@pytest.mark.parametrize(
    ("current_kib", "wanted_kib"), [(0, 0), (16, 16), (64, 64), (128, 64), (4096, 64)]
)
def test_never_further_than_it_was(current_kib: int, wanted_kib: int) -> None:
    assert LAZY_KIB == 64
    assert lazy_readahead_kib(current_kib) == wanted_kib


def device(sysfs: Path, name: str, text: str) -> Path:
    file = sysfs / name / "read_ahead_kb"
    file.parent.mkdir()
    file.write_text(text)
    return file


def test_every_device_is_set(tmp_path: Path) -> None:
    far, near = device(tmp_path, "erofs-1", "128\n"), device(tmp_path, "erofs-2", "32\n")
    shorten_readahead([str(far.parent), str(near.parent)])
    assert far.read_text() == "64\n"
    assert near.read_text() == "32\n"


@pytest.mark.parametrize("text", ["", "\n", "-1\n", "many\n", "٣\n", "9" * 40])
def test_a_strange_value_stays(tmp_path: Path, text: str) -> None:
    file = device(tmp_path, "erofs-1", text)
    shorten_readahead([str(file.parent)])
    # A value cut short by the bound of the read is a number, and a long one.
    assert file.read_text() == ("64\n" if text.isascii() and text.isdigit() else text)


def test_what_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "erofs-1" / "read_ahead_kb"
    folder.mkdir(parents=True)
    file = device(tmp_path, "erofs-2", "128\n")
    shorten_readahead([str(tmp_path / "gone"), str(folder.parent), str(file.parent)])
    assert file.read_text() == "64\n"
