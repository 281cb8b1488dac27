"""System calls that fail, and processes that have ended."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lamina.linux import mount, process
from lamina.linux.syscalls import SyscallError


def test_failures_name_the_call_and_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as caught:
        mount.unmount(str(tmp_path / "absent"))
    assert caught.value.syscall == "umount2"
    assert caught.value.code in (errno.ENOENT, errno.EPERM)
    assert str(tmp_path) in str(caught.value)


def test_start_time_names_a_process() -> None:
    mine = process.start_time_ticks(os.getpid())
    assert mine is not None and mine == process.start_time_ticks(os.getpid())
    assert process.start_time_ticks(2**22 + 1) is None


def test_a_process_that_has_ended_has_no_start() -> None:
    import select

    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        assert select.select([pidfd], [], [], 10)[0]
        assert process.start_time_ticks(pid) is None, "a zombie serves nobody"
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
