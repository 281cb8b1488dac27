"""The suite's own rule: a folder goes when those who write to it have ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import leaks

WRITER = """\
import os, sys
print("begun", flush=True)
sys.stdin.read()
open(sys.argv[1], "x").close()
"""


def test_a_process_that_the_test_has_started_is_waited_for(tmp_path: Path) -> None:
    written = tmp_path / "last"
    environment = {**os.environ, leaks.TEST_VARIABLE: "this"}
    with leaks.ended_processes("this"):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, written],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdout.readline()
        # Told to end only while it is waited for.
        timer = threading.Timer(0.3, writer.stdin.close)
        timer.start()
    assert written.exists()
    timer.join()
    writer.stdout.close()
    writer.wait()


def test_one_that_does_not_end_is_killed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "END_S", 0.1)
    environment = {**os.environ, leaks.TEST_VARIABLE: "this"}
    with (
        pytest.raises(AssertionError, match=r"process \d+: sleep 4321"),
        leaks.ended_processes("this"),
    ):
        sleeper = subprocess.Popen(["sleep", "4321"], env=environment)
    assert sleeper.wait() == -9


def test_a_folder_is_removed_anew_while_somebody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    remove, calls = leaks.shutil.rmtree, []

    def late_writer(path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise OSError(39, "Directory not empty")
        remove(path)

    monkeypatch.setattr(leaks.shutil, "rmtree", late_writer)
    leaks.remove_folder(folder)
    assert not folder.exists()
    assert len(calls) == 2


def test_what_a_test_has_put_in_a_place_is_gone_before_its_folder_goes(
    request: pytest.FixtureRequest,
) -> None:
    """Fixtures go in the other order than they came."""
    order = request.fixturenames
    assert order.index("_own_mounts") < order.index("monkeypatch")
