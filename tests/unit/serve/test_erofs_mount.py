from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from lamina.errors import KernelError, StoreError, UnsupportedError
from lamina.linux.mount import SuperblockWatch
from lamina.serve import erofs_mount, holder
from lamina.serve.erofs_mount import ErofsMount, mount_erofs


class Device:
    """A blob device that cannot go on once the mount is made."""

    name = "fanotify"
    connection = 0

    def __init__(self) -> None:
        self.calls: list[str] = []

    def prepare(self) -> Sequence[str]:
        return []

    def private_fds(self) -> Sequence[int]:
        return []

    def serve(self) -> None:
        self.calls.append("serve")

    def mounted(self) -> None:
        raise StoreError("the disk is full")

    def abandon(self) -> None:
        self.calls.append("abandon")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """With everything around it that mounts nothing."""
    device = Device()

    @contextlib.contextmanager
    def lock() -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(note_connection=lambda _: None)

    table = iter([None, "a new mount"])
    monkeypatch.setattr(erofs_mount, "mounting_lock", lock)
    monkeypatch.setattr(erofs_mount, "topmost_mount", lambda _: next(table))
    monkeypatch.setattr(erofs_mount, "unmount", lambda *_: device.calls.append("unmount"))
    monkeypatch.setattr(erofs_mount, "create_erofs", lambda *_: -1)
    monkeypatch.setattr(erofs_mount, "attach_mount", lambda *_: None)
    return device


TARGET = ErofsMount("/bootstrap", "/mnt/x", 0, lazy=False)


def test_a_mount_that_nobody_can_answer_for_is_undone(device: Device) -> None:
    with pytest.raises(StoreError, match="full"):
        mount_erofs(TARGET, device)  # type: ignore[arg-type]
    assert device.calls == ["serve", "unmount", "abandon"]


def test_who_mounts_is_killed_when_it_has(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erofs_mount, "attach_mount", lambda *_: os.kill(os.getpid(), 9))
    with pytest.raises(KernelError, match="killed"):
        mount_erofs(TARGET, device)  # type: ignore[arg-type]
    assert device.calls == ["serve", "unmount", "abandon"]


def test_an_interrupt_while_the_fork_mounts_is_undone(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[int] = []
    fork = os.fork

    def noted_fork() -> int:
        forks.append(fork())
        return forks[-1]

    monkeypatch.setattr(os, "fork", noted_fork)
    monkeypatch.setattr(erofs_mount, "attach_mount", lambda *_: time.sleep(60))
    monkeypatch.setattr(device, "serve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mount_erofs(TARGET, device)  # type: ignore[arg-type]
    assert device.calls == ["unmount", "abandon"]
    with pytest.raises(ChildProcessError):
        os.waitpid(forks[0], os.WNOHANG)


def interrupted() -> None:
    raise KeyboardInterrupt


def test_nothing_is_watched_without_sysfs(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="when a mount has ended"):
        SuperblockWatch("erofs", str(tmp_path / "absent")).require()
    SuperblockWatch("erofs", str(tmp_path)).require()


def test_the_holder_survives_events_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENFILE, for instance: it is the last that keeps readers from zeros."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    holder._deny_all(-1)
    assert pauses == [0.25]
