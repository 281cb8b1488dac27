"""Asking the kernel for the pages of a start from a process of several threads."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from tests.support.descriptors import open_descriptors

from lamina.serve.start_touch import StartTouch, main
from lamina.serve.toucher import WINDOW_BYTES


def test_what_has_come_is_asked_for_by_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2 * WINDOW_BYTES))
    starting = StartTouch(str(tmp_path))
    pipe = os.dup(starting.write_end)
    starting.mounted()
    begin_s = time.monotonic()
    assert not starting.is_over
    for name in ("/file", "/nowhere", "/../outside"):
        os.write(pipe, json.dumps([name, 0, 2 * WINDOW_BYTES]).encode() + b"\n")
    os.close(pipe)
    starting.wait()
    assert starting.is_over or time.monotonic() - begin_s >= 5
    starting.end()


def test_nobody_is_started_for_an_image_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_: pytest.fail("something was started"))
    starting = StartTouch(str(tmp_path))
    starting.mounted()
    starting.wait()
    assert starting.is_over


def test_a_start_waits_no_longer_than_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_START_WAIT_S", "0.1")
    starting = StartTouch(str(tmp_path))
    pipe = os.dup(starting.write_end)
    starting.mounted()
    starting.wait()
    os.close(pipe)


def test_an_image_that_is_not_mounted_leaves_nothing(tmp_path: Path) -> None:
    before = open_descriptors()
    starting = StartTouch(str(tmp_path))
    starting.failed()
    starting.wait()
    assert starting.is_over
    assert open_descriptors() <= before


def test_the_process_asks_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, __: asked.append((start, size)))
    monkeypatch.setattr("signal.alarm", lambda _: 0)
    read_end, write_end = os.pipe()
    os.write(write_end, b'["/file", 4096, 904]\n')
    os.close(write_end)
    main(read_end, str(tmp_path))
    assert asked == [(4096, 904)]
