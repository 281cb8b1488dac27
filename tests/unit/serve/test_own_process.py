"""A mount that this process serves and a fork of it makes."""

from __future__ import annotations

import os
import time
from typing import Any, cast

import pytest

from lamina.errors import KernelError, StoreError
from lamina.opening.request import OpenRequest
from lamina.serve import own_process
from lamina.serve.devices import find_device
from lamina.serve.mount_job import Placed
from lamina.serve.own_process import OwnProcess
from lamina.serve.service.spec import MountSpec

SPEC = MountSpec(image=OpenRequest(reference="oci:x"), mountpoint="/mnt/x")
PLACED = Placed("0:77", 1 << 40, ("/sys/class/bdi/erofs-1",))


@pytest.fixture
def unmounted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was unmounted; something is found mounted when it is looked again."""
    unmounted: list[str] = []
    table = iter([None, "a new mount"])
    monkeypatch.setattr(own_process, "topmost_mount", lambda _: next(table))
    monkeypatch.setattr(own_process, "unmount", lambda mountpoint, _: unmounted.append(mountpoint))
    return unmounted


@pytest.fixture
def host(unmounted: list[str]) -> OwnProcess:
    assert unmounted == []
    return OwnProcess(cast("Any", None), SPEC, find_device("fuse-blob"))


def test_what_was_mounted_comes_over(host: OwnProcess, unmounted: list[str]) -> None:
    assert host.place(lambda: PLACED) == PLACED
    assert unmounted == []


def test_an_error_comes_over(host: OwnProcess, unmounted: list[str]) -> None:
    def fail() -> Placed:
        raise StoreError("the disk is full", hint="buy one")

    with pytest.raises(StoreError, match="full") as caught:
        host.place(fail)
    assert caught.value.hint == "buy one"
    assert unmounted == ["/mnt/x"]


def test_an_error_of_the_system_comes_over(host: OwnProcess) -> None:
    def fail() -> Placed:
        raise OSError(5, "Input/output error", "/sys/x")

    with pytest.raises(KernelError, match=r"Input/output error.*/sys/x"):
        host.place(fail)


def test_who_mounts_is_killed_when_it_has(host: OwnProcess, unmounted: list[str]) -> None:
    def be_killed() -> Placed:
        os.kill(os.getpid(), 9)
        return PLACED

    with pytest.raises(KernelError, match="killed"):
        host.place(be_killed)
    assert unmounted == ["/mnt/x"]


def test_an_interrupt_while_the_fork_mounts_is_undone(
    host: OwnProcess, unmounted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[int] = []
    fork = os.fork

    def noted_fork() -> int:
        forks.append(fork())
        return forks[-1]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def wait() -> Placed:
        time.sleep(60)
        return PLACED

    monkeypatch.setattr(os, "fork", noted_fork)
    monkeypatch.setattr(own_process, "open", interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt):
        host.place(wait)
    assert unmounted == ["/mnt/x"]
    with pytest.raises(ChildProcessError):
        os.waitpid(forks[0], os.WNOHANG)
