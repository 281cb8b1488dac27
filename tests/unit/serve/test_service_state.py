"""What the processes of the service do to each other, whatever the numbers of descriptors are."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lamina.serve.service.state import wait_for_end

BEYOND_SELECT = 1024
"""The first descriptor that select(2) cannot take (FD_SETSIZE)."""


@pytest.fixture
def many_files() -> Iterator[None]:
    """As the service has it: descriptors as high as the hard limit lets them be."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] <= BEYOND_SELECT:
        pytest.skip("the hard limit of open files is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
def test_the_end_of_a_worker_is_seen_by_a_service_of_many_mounts() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    first = os.pidfd_open(process.pid)
    pidfd = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, BEYOND_SELECT)
    try:
        assert not wait_for_end(pidfd, 0)
        process.kill()
        assert wait_for_end(pidfd, 60)
        assert wait_for_end(pidfd)
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        os.close(first)
        os.close(pidfd)
