"""A kernel is believed once it was seen to fail whole reads, and only until the next boot."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from lamina.errors import UnsupportedError
from lamina.serve import short_read_probe
from lamina.serve.devices.fuse_blob import BlobFilesystem
from lamina.serve.short_read_probe import (
    PAGE_BYTES,
    NoKernelMountError,
    TwoPages,
    require_no_short_reads,
)
from lamina.wire import fuse

READ = struct.Struct("=QQIIQII")


class Trials:
    """Stands for trying the kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, verdict: bool) -> None:
        self.folders: list[str] = []
        self.verdict = verdict
        monkeypatch.setattr(short_read_probe, "fails_whole", self.fails_whole)

    def fails_whole(self, folder: str) -> bool:
        self.folders.append(folder)
        return self.verdict


def test_a_kernel_that_was_seen_to_fail_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(monkeypatch, verdict=True)
    for _ in range(2):
        require_no_short_reads(tmp_path)
    assert trials.folders == [str(tmp_path)]
    monkeypatch.setattr(short_read_probe, "current_boot_id", lambda: b"another boot")
    require_no_short_reads(tmp_path)
    assert len(trials.folders) == 2


def test_a_kernel_that_hides_failures_is_refused_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(monkeypatch, verdict=False)
    for _ in range(2):
        with pytest.raises(NoKernelMountError, match="zeros") as caught:
            require_no_short_reads(tmp_path)
        assert isinstance(caught.value, UnsupportedError)
        assert caught.value.hint is not None and "--device fuse" in caught.value.hint
    assert len(trials.folders) == 2


def read(offset: int, size: int) -> fuse.Request:
    body = memoryview(READ.pack(0, offset, size, 0, 0, 0, 0))
    return fuse.Request(fuse.Opcode.READ, 1, 2, 0, 0, 0, body)


def test_the_first_page_is_there_and_the_second_fails() -> None:
    pages = TwoPages()
    served = BlobFilesystem([pages])
    scratch = memoryview(bytearray(2 * PAGE_BYTES))
    assert pages.first_page_reads == 0
    body = served.handle(read(0, PAGE_BYTES), scratch)
    assert len(body) == PAGE_BYTES and 0 not in bytes(body)
    for offset, size in ((PAGE_BYTES, PAGE_BYTES), (0, 2 * PAGE_BYTES)):
        with pytest.raises(OSError) as caught:
            served.handle(read(offset, size), scratch)
        assert caught.value.errno == errno.EIO
    assert pages.first_page_reads == 1
