"""The kernel is asked for regular files of the image only, and a program does not wait for ever."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from tests.support.descriptors import open_descriptors
from tests.support.tools import require_root

from lamina.serve.toucher import StartGate, touch


def lines(*extents: tuple[str, int, int]) -> list[bytes]:
    return [json.dumps(extent).encode() + b"\n" for extent in extents]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    (root / "bin").mkdir(parents=True)
    (root / "bin/program").write_bytes(b"x" * 500_000)
    os.mkfifo(root / "fifo")
    (tmp_path / "secret").write_bytes(b"s" * 9000)
    (root / "absolute").symlink_to(tmp_path / "secret")
    (root / "relative").symlink_to("../secret")
    (root / "inside").symlink_to("bin/program")
    return root


@pytest.mark.parametrize(
    "path", ["/fifo", "/absolute", "/relative", "/inside", "/../secret", "/bin", "/nothing", "/"]
)
def test_nothing_but_regular_files_is_opened(folder: Path, path: str) -> None:
    root = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        assert touch(root, lines((path, 0, 4096))) == 0
        assert touch(root, lines((path, 0, 4096), ("/bin/program", 4096, 300_000))) == 300_000
    finally:
        os.close(root)


def test_many_files_are_not_open_at_once(folder: Path) -> None:
    for number in range(600):
        (folder / str(number)).write_bytes(b"x")
    root = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        before = open_descriptors()
        extents = [(f"/{number}", 0, 4096) for number in range(600)]
        assert touch(root, lines(*extents)) == 600 * 4096
        assert open_descriptors() <= before
    finally:
        os.close(root)


def test_a_gate_that_is_not_wanted_is_open_and_starts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process was started"))
    before = open_descriptors()
    gate = StartGate(is_wanted=False)
    assert gate.serve() == -1
    gate.wait(str(tmp_path))
    gate.close()
    assert open_descriptors() <= before


def test_nobody_is_started_if_nothing_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process was started"))
    gate = StartGate()
    # The server says that the image has no artifact.
    gate.wait(str(tmp_path))
    gate.close()


def test_the_gate_opens_at_the_end_of_the_stream(folder: Path) -> None:
    require_root()
    gate = StartGate()
    server = os.dup(gate._write_end)
    try:
        with open(server, "wb") as pipe:
            pipe.writelines(lines(("/bin/program", 0, 4096)))
        gate.wait(str(folder))
        assert gate._pid == 0, "who asks has ended, and was waited for"
    finally:
        gate.close()


@pytest.mark.parametrize("arrives", [False, True])
def test_the_gate_opens_in_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, arrives: bool
) -> None:
    require_root()
    monkeypatch.setenv("LAMINA_START_WAIT_S", "0.1")
    gate = StartGate()
    server = os.dup(gate._write_end)
    begin = time.monotonic()
    try:
        if arrives:
            os.write(server, b"".join(lines(("/bin/program", 0, 4096))))
        gate.wait(str(folder))
        assert time.monotonic() - begin >= 0.1
    finally:
        gate.close()
        os.close(server)
    gate.close()
