"""Who may mount now."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lamina.errors import KernelError
from lamina.serve import mounting_lock as lock
from lamina.serve.mounting_lock import claimed, mounting_lock

_TRY = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("taken")
"""


def test_a_mount_that_never_ends_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path))
    monkeypatch.setattr(lock, "_AFTER_ABORT_S", 0.05)
    aborted: list[int] = []
    monkeypatch.setattr(lock, "abort_connection", aborted.append)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with mounting_lock() as first:
        first.note_connection(77)
        with (
            pytest.raises(KernelError, match=rf"\(process {os.getpid()}\) has not come to an end"),
            mounting_lock(deadline_s=0.05),
        ):
            pass
    assert aborted == [77]


def test_a_mount_that_ends_when_its_connection_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    first = mounting_lock()
    first.__enter__().note_connection(77)
    monkeypatch.setattr(lock, "abort_connection", lambda _: first.__exit__(None, None, None))
    with mounting_lock(deadline_s=0.05):
        pass
    assert (tmp_path / "mounting.lock").read_bytes() == b"", "nothing is left to abort"


def is_claimed(folder: Path) -> bool:
    """Tell whether another process would have to wait for some mountpoint."""
    command = [sys.executable, "-c", _TRY, str(folder / "mountpoints.lock")]
    return bool(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_thread_that_is_done_leaves_others_what_they_have_claimed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path))
    with claimed("/mnt/a"):
        with claimed("/mnt/b"):
            pass
        assert is_claimed(tmp_path)
    assert not is_claimed(tmp_path)


def test_threads_take_turns_on_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path))
    order: list[str] = []

    def claim() -> None:
        with claimed("/mnt/a"):
            order.append("second")

    with claimed("/mnt/a"):
        thread = threading.Thread(target=claim)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
