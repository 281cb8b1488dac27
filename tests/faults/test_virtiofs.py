"""A guest reads a virtio-fs share while its network lies and its servers die: no wrong byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.network import Network, faulty_network
from tests.faults.sample import make_samples
from tests.support.guest import GuestRun, require_guest, run_in_guest
from tests.support.guest_kernel import require_kernel_package
from tests.support.shell import Shell
from tests.support.tools import missing, require_kernel, require_root

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.guest,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        "LAMINA_GUEST_FAULTS" not in os.environ,
        reason="takes minutes; `make faults` sets LAMINA_GUEST_FAULTS=1",
    ),
]

GUEST = Path(__file__).parents[1] / "support" / "in_guest_share.py"
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
RATE = 0.3
SEED, SMALL_FILES, BIG_FILES = 13, 200, 12
MORE_READS = 25
"""So many right reads come between two things that break."""
REFUSED = 20
"""So many requests a registry refuses that is lost: more than a read makes."""


class Board:
    """The host's end of what :mod:`tests.support.in_guest_share` talks by."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(1 << 20))

    @property
    def devices(self) -> list[str]:
        drive = f"if=none,id=board,format=raw,cache=writethrough,file={self.path}"
        return ["-drive", drive, "-device", "virtio-blk-pci,drive=board"]

    def right(self) -> int:
        return int.from_bytes(self.path.read_bytes()[512:520], "little")

    def say_enough(self) -> None:
        fd = os.open(self.path, os.O_WRONLY)
        os.pwrite(fd, b"e", 0)
        os.close(fd)


def more(board: Board, guest: Future[GuestRun], count: int = MORE_READS) -> None:
    """Return when the guest has read so many times more."""
    goal = board.right() + count
    while board.right() < goal:
        assert not guest.done(), guest.result()
        time.sleep(0.05)


@contextmanager
def share(shell: Shell, reference: str) -> Iterator[list[str]]:
    """Serve it; the options of QEMU for it."""
    socket = shell.folder / "share.sock"
    words = ["serve", "--json", "--store-budget", "4M", "virtiofs"]
    process = subprocess.Popen(
        shell.words(*words, "--socket", str(socket), reference),
        stdout=subprocess.PIPE,
        text=True,
        cwd=shell.folder,
        env=shell.environment,
    )
    memory = "memory-backend-memfd,id=memory,size=1536M,share=on"
    try:
        assert process.stdout is not None
        with process.stdout:
            said = json.loads(process.stdout.readline())
        yield [
            *("-object", memory, "-numa", "node,memdev=memory"),
            *("-chardev", f"socket,id=share,path={socket}"),
            *("-device", "vhost-user-fs-pci,chardev=share,tag=" + said["tag"]),
        ]
    finally:
        process.terminate()
        process.wait(120)


def kill(shell: Shell, role: str) -> bool:
    """Kill a process of the mount service; False if there is none of that role now."""
    done = subprocess.run(
        [sys.executable, "-m", "lamina", "mounts", "--json"],
        capture_output=True,
        text=True,
        env=shell.environment,
        check=False,
    )
    for line in done.stdout.splitlines():
        pid = json.loads(line).get("pids", {}).get(role)
        if pid:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


@pytest.fixture
def network() -> Iterator[Network]:
    with faulty_network(SEED, 0.0) as network:
        yield network


def test_a_share_has_no_wrong_byte_whatever_breaks(
    network: Network, shell: Shell, tmp_path: Path
) -> None:
    require_guest()
    require_root()
    require_kernel(6, 12, "file-backed EROFS")
    if not VIRTIOFSD.exists():
        missing("not installed: virtiofsd, of Debian 12's qemu-system-common")
    sample, _ = make_samples(network, tmp_path / "trees", SEED, SMALL_FILES, BIG_FILES)
    shell.environment["LAMINA_RETRY"] = "deadline_s=10,attempts=8,max_pause_s=0.5"
    board = Board(tmp_path / "board")
    wanted = {"seed": SEED, "small_files": SMALL_FILES, "big_files": BIG_FILES, "tag": "image"}
    reference = f"docker://{network.host}/faults@{sample.digest}"
    with share(shell, reference) as devices, ThreadPoolExecutor(1) as pool:
        guest = pool.submit(
            run_in_guest,
            require_kernel_package("6.12"),
            GUEST,
            json.dumps(wanted),
            devices=[*board.devices, *devices],
        )
        try:
            network.rate = RATE
            for role in ("worker", "supervisor", "holder", "worker"):
                more(board, guest)
                while not kill(shell, role):
                    time.sleep(0.1)
            more(board, guest)
            # The registry is lost: each request is refused, until it is there again.
            network.rate, network.only = 1.0, "reset before answer"
            goal = network.injected.total() + REFUSED
            while network.injected.total() < goal:
                assert not guest.done(), guest.result()
                time.sleep(0.05)
            network.rate, network.only = 0.0, None
            more(board, guest)
        finally:
            board.say_enough()
        run = guest.result()
    assert run.exit_code == 0, f"{run.output}\n{run.console[-3000:]}"
    counts = json.loads(run.output)
    assert counts.get("wrong", 0) == 0, counts
    assert counts["right"] >= 5 * MORE_READS, counts
    assert network.injected.total() > 5, network.injected
